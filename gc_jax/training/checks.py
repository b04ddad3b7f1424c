"""What a config must satisfy, told before anything that takes long is imported.

Beside the names that a config may use, this needs nothing of jax: no device, no
reader of pictures, no page.
"""

import math

from ml_collections import ConfigDict

from gc_jax import models
from gc_jax.data import check_name
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation.checks import validate_evaluation
from gc_jax.method import compose
from gc_jax.models.architecture import Made
from gc_jax.runtime.config import at_least, flatten, one_of
from gc_jax.training import guidance
from gc_jax.training.composites import neighbours

# Fields with a fixed set of words.
CHOICES = {
  "compute_dtype": ("auto", "float32", "bfloat16"),
  "compose.mode": compose.MODES,
  "compose.distractors": ("batch", "dataset"),
  "compose.distractor_draw": ("category", "picture"),
  "data.crop": ("center", "random_resized"),
  "data.on_error": ("raise", "skip"),
  "loss.target_draw": ("category", "instance"),
  "optim.schedule": ("step", "cosine"),
}
# Numbers that must be above 0; all others may be 0.
_ABOVE_ZERO = (
  "num_epochs",
  "batch_size",
  "accumulate_steps",
  "optim.lr_per_256",
  "data.image_size",
  "eval.every_epochs",
  "checkpoint.every_epochs",
  "checkpoint.keep",
  "log.every_steps",
)


def validate(config: ConfigDict, num_devices: int | None = None) -> None:
  """Checks what can be known before any data is read or code compiled.

  Args:
    config: resolved.
    num_devices: that share a batch; None: not known yet, and what depends on
      them is not checked.

  Raises:
    ValueError: names the field, what it must be, what it is, what to do.
  """
  check_name(config.data.name)
  architecture = models.find(config.model.name, "--config.model.name")
  of_terms = {
    f"loss.{field.name}": field.choices
    for term in guidance.TERMS.values()
    for field in term.fields.every()
    if field.choices
  }
  for field, known in (CHOICES | of_terms).items():
    one_of(field, config[field], known)
  for field, value in flatten(config.to_dict()).items():
    if type(value) in (int, float):
      at_least(config, field, 0, exclusive=field in _ABOVE_ZERO)
  steps = tuple(config.profile_steps)
  if steps != (0, 0) and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
    raise ValueError(
      f"--config.profile_steps={steps} must be the first and the last step to "
      "trace, at least 1 and in this order, like (10,12); or (0,0) for none."
    )
  _validate_pictures(config)
  if isinstance(architecture, Made):
    _validate_made(config, architecture)
  validate_evaluation(config)
  if num_devices is not None:
    _validate_batch(config, num_devices)


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
  architecture = models.find(config.model.name)
  smallest, unit = architecture.min_px, architecture.network.unit_px
  if data.image_size < smallest:
    raise ValueError(
      f"--config.data.image_size={data.image_size} must be at least {smallest} "
      f"for --config.model.name={config.model.name!r}, so that features are "
      "left of a picture. Use larger pictures, or another model."
    )
  if data.image_size % unit:
    raise ValueError(
      f"--config.data.image_size={data.image_size} must be divisible by "
      f"{unit}, the side of a patch, for --config.model.name="
      f"{config.model.name!r}, so that patches cover the picture. Use "
      f"{math.ceil(data.image_size / unit) * unit}."
    )
  if 0 < data.eval_resize_px < data.image_size:
    raise ValueError(
      f"--config.data.eval_resize_px={data.eval_resize_px} must be at least "
      f"--config.data.image_size={data.image_size}, which is cropped from it; "
      "use 0 for the same."
    )
  mode = config.compose.mode
  in_one = compose.MODES[mode].images_in_one
  if config.compose.distractors == "dataset" and in_one > 1:
    raise ValueError(
      "--config.compose.distractors='dataset' must go with --config.compose."
      f"mode='independent', and it is {mode!r}: {in_one} pictures of the batch "
      "fill such a composite, and no cell is left for any other. Use 'batch' "
      "or 'independent'."
    )


def _validate_made(config: ConfigDict, architecture: Made) -> None:
  """Checks what a model of a user's must do; computes nothing."""
  said = f"--config.model.name={config.model.name!r}"
  for field, instead in (
    ("bn_group", "nnx.BatchNorm normalises all of a batch together"),
    ("remat", "use nnx.remat inside the model"),
  ):
    if config.model[field]:
      raise ValueError(
        f"--config.model.{field}={config.model[field]} is for the models of "
        f"gc_jax, and {said} is none: {instead}. Leave it out."
      )
  size = config.data.image_size
  for side in (size, 2 * size):
    try:
      architecture.check_takes(side)
    except Exception as error:
      raise ValueError(
        f"{said} must take pictures of --config.data.image_size={size} pixels, "
        f"and composites of {2 * size}; it fails at {side}: "
        f"{type(error).__name__}: {error}"
      ) from error


def _validate_batch(config: ConfigDict, num_devices: int) -> None:
  batch_size, num_parts = config.batch_size, config.accumulate_steps
  parts = f" by --config.accumulate_steps={num_parts}" * (num_parts > 1)
  share = num_devices * num_parts
  if batch_size % share:
    raise ValueError(
      f"--config.batch_size={batch_size} must be divisible by {num_devices} "
      f"devices{parts}; use {neighbours(batch_size, share)}."
    )
  terms = guidance.chosen(config).values()
  for term in terms:
    term.check(config, num_devices)

  size = config.model.bn_group
  part = batch_size // num_parts
  on_device = part // num_devices
  # A term's own pictures hold several images and are fewer; each group of
  # images must make whole pictures.
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
    f"computed at once into equal groups, and either divide the {on_device} "
    "images of a device or be a multiple of them"
    + f"; it must also be a multiple of {multiple}, the images of a packed "
    "composite" * (multiple > 1) + f"; use {nearest}, or 0 for all images "
    "together."
  )


def validate_data(config: ConfigDict, train_set: Dataset) -> None:
  """Checks the config against the training split that was found."""
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
  fields = {
    f"loss.{term.fields.weight.name}": config.loss[term.fields.weight.name]
    for term in guidance.chosen(config).values()
    if "object_mask" in term.needs(config)
  }
  given = " and ".join(f"--config.{k}={v}" for k, v in fields.items())
  off = " and ".join(f"--config.{k}=0" for k in fields)
  raise ValueError(
    f"{given} must be told where objects are, by masks or boxes of the "
    f"pictures' own classes; {train_set.name}, split "
    f"{config.data.train_split!r}, has none. Add them, or set {off}."
  )
