"""What a config must satisfy, for training."""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from gc_jax.data import check_name
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation.config import validate_evaluation
from gc_jax.method import compose
from gc_jax.method.losses import Field
from gc_jax.models import MODELS
from gc_jax.runtime.config import at_least, one_of
from gc_jax.training import guidance, optim
from gc_jax.training.composites import neighbours

DTYPES = ("auto", "float32", "bfloat16")
TARGET_DRAWS = ("category", "instance")
CROPS = ("center", "random_resized")
ON_ERROR = ("raise", "skip")
DISTRACTORS = ("batch", "dataset")


def validate(config: ConfigDict, num_devices: int) -> None:
  """Checks what can be known before any data is read or code compiled.

  Args:
    config: resolved, overrides included.
    num_devices: over which a batch is divided.

  Raises:
    ValueError: names the field, what it must be, what it is, what to do.
  """
  one_of("model.name", config.model.name, MODELS)
  check_name(config.data.name)
  one_of("compute_dtype", config.compute_dtype, DTYPES)
  one_of("compose.mode", config.compose.mode, compose.MODES)
  one_of("compose.distractors", config.compose.distractors, DISTRACTORS)
  one_of("data.crop", config.data.crop, CROPS)
  one_of("data.on_error", config.data.on_error, ON_ERROR)
  one_of("loss.target_draw", config.loss.target_draw, TARGET_DRAWS)
  one_of("optim.schedule", config.optim.schedule, optim.SCHEDULES)

  for field in (
    "num_epochs",
    "batch_size",
    "accumulate_steps",
    "optim.lr_per_256",
    "data.image_size",
    "eval.every_epochs",
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "log.every_steps",
  ):
    at_least(config, field, 0, exclusive=True)
  for field in (
    "seed",
    "loss.classification_weight",
    "optim.momentum",
    "optim.weight_decay",
    "optim.warmup_epochs",
    "optim.clip_norm",
    "compose.groups",
    "model.bn_group",
    "data.crop_padding_px",
    "data.eval_resize_px",
    "data.num_workers",
  ):
    at_least(config, field, 0)
  for term in guidance.TERMS.values():
    _validate_fields(config, term.fields.every())
  _validate_profile(tuple(config.profile_steps))
  _validate_pictures(config)
  _validate_batch(config, num_devices)
  validate_evaluation(config)


def _validate_fields(config: ConfigDict, fields: Iterable[Field]) -> None:
  """Checks what a guidance term says of its own fields."""
  for field in fields:
    if field.choices:
      value = config.loss[field.name]
      one_of(f"loss.{field.name}", value, field.choices)
    elif not isinstance(field.default, bool):
      at_least(config, f"loss.{field.name}", 0)


def _validate_profile(steps: tuple[int, ...]) -> None:
  if steps == (0, 0):
    return
  if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
    raise ValueError(
      f"--config.profile_steps={steps} must be the first and the last step to "
      "trace, at least 1 and in this order, like (10,12); or (0,0) for none."
    )


def _validate_pictures(config: ConfigDict) -> None:
  data = config.data
  if data.name == "folder" and not data.path:
    raise ValueError(
      "--config.data.path must name a folder of pictures for --config.data."
      "name='folder', and is empty; set --config.data.path=DIR."
    )
  if data.crop != "center" and data.crop_padding_px:
    raise ValueError(
      f"--config.data.crop_padding_px={data.crop_padding_px} shifts the centre "
      f"crop and must be 0 with --config.data.crop={data.crop!r}, which is "
      "random already."
    )
  if data.eval_squash and data.eval_resize_px:
    raise ValueError(
      f"--config.data.eval_resize_px={data.eval_resize_px} resizes before a "
      "crop and must be 0 with --config.data.eval_squash=True, which crops "
      "nothing."
    )
  smallest = MODELS[config.model.name].min_px
  if data.image_size < smallest:
    raise ValueError(
      f"--config.data.image_size={data.image_size} must be at least {smallest} "
      f"for --config.model.name={config.model.name!r}, so that features are "
      "left of a picture. Use larger pictures, or another model."
    )
  if 0 < data.eval_resize_px < data.image_size:
    raise ValueError(
      f"--config.data.eval_resize_px={data.eval_resize_px} must be at least "
      f"--config.data.image_size={data.image_size}, which is cropped from it; "
      "use 0 for the same."
    )
  if config.compose.distractors == "dataset" and (
    config.compose.mode != "independent"
  ):
    raise ValueError(
      "--config.compose.distractors='dataset' must go with --config.compose."
      f"mode='independent', and it is {config.compose.mode!r}: in a packed "
      "composite the distractors of each picture are the others of the batch, "
      "so that none from elsewhere has a cell. Use 'batch' or 'independent'."
    )


def _validate_batch(config: ConfigDict, num_devices: int) -> None:
  batch_size, num_parts = config.batch_size, config.accumulate_steps
  parts = f" by --config.accumulate_steps={num_parts}" * (num_parts > 1)
  share = num_devices * num_parts
  if batch_size % share:
    raise ValueError(
      f"--config.batch_size={batch_size} must be divisible by {num_devices} "
      f"devices{parts}; use {neighbours(batch_size, share)}."
    )
  for term in guidance.chosen(config).values():
    term.check(config, num_devices)
  _validate_bn_group(config, num_devices)


def _validate_bn_group(config: ConfigDict, num_devices: int) -> None:
  size = config.model.bn_group
  part = config.batch_size // config.accumulate_steps
  on_device = part // num_devices
  # Pictures that hold several images, fewer than these, are grouped like them.
  terms = guidance.chosen(config).values()
  multiple = math.lcm(*(term.images_in_one(config) for term in terms))

  def fits(size):
    aligned = not (on_device % size and size % on_device)
    return aligned and part % size == 0 and size % multiple == 0

  if not size or fits(size):
    return
  known = [other for other in range(1, part + 1) if fits(other)]
  nearest = min(known, key=lambda other: abs(other - size))
  raise ValueError(
    f"--config.model.bn_group={size} must divide the {part} images that are "
    f"computed at once into equal groups, of which a device's {on_device} "
    "images are several, or a part of one"
    + f", and of multiples of {multiple} images, as many as a packed composite "
    "has" * (multiple > 1) + f"; use {nearest}, or 0 for all images together."
  )


def validate_data(config: ConfigDict, train_set: Dataset) -> None:
  """Checks the config against the data that was found.

  Args:
    config: resolved.
    train_set: the training split.

  Raises:
    ValueError: names what must hold, what came, what to do.
  """
  num_classes = len(train_set.class_names)
  if num_classes < 2:
    raise ValueError(
      f"--config.data.name={config.data.name!r} must have at least two "
      f"classes, so that there is something to tell apart; it has "
      f"{num_classes}."
    )
  num_examples = len(train_set.source)
  if config.batch_size > num_examples:
    raise ValueError(
      f"--config.batch_size={config.batch_size} must be at most the "
      f"{num_examples} examples of --config.data.train_split="
      f"{config.data.train_split!r}."
    )
  if "object_mask" not in guidance.needs(config) or train_set.has_objects():
    return
  fields = [
    f"--config.loss.{term.fields.weight.name}={config.loss[term.fields.weight.name]}"
    for term in guidance.chosen(config).values()
    if "object_mask" in term.needs(config)
  ]
  raise ValueError(
    f"{' and '.join(fields)} must be told where objects are, by masks or "
    f"boxes of the pictures' own classes; {train_set.name}, split "
    f"{config.data.train_split!r}, has none. Add them, or set "
    f"{' and '.join(field.split('=')[0] + '=0' for field in fields)}."
  )
