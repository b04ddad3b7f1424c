"""The consistency term: maps of composites against maps of their pictures.

The method of the paper, read in a row: cam -> compose -> cam -> consistency.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax.method import cam as cams
from gc_jax.method import compose, losses
from gc_jax.method.metrics import upsample
from gc_jax.method.types import Batch
from gc_jax.models import pure_head
from gc_jax.training.term import Draw, Explained, Seen, elementwise_cam


@dataclasses.dataclass(frozen=True)
class Settings:
  """How composites are made and compared."""

  reduction: str = "mean"  # of the loss over cells, "mean" or "sum"
  stop_gradient: bool = False  # whether the original's map is a fixed target
  # A key of `compose.MODES`. If a batch brings distractors along, there is one
  # composite for each image whatever the mode.
  mode: str = "packed"
  # Composites mix images within one of these equal, contiguous shares of a
  # part. With a multiple of the number of devices no image leaves its device.
  groups: int = 1

  def grouped(self, x: Array) -> Array:
    """Returns a part with a leading axis of the groups that do not mix."""
    return x.reshape(self.groups, -1, *x.shape[1:])


def _flat(x: Array) -> Array:
  """Returns the array without its leading axis of groups."""
  return x.reshape(-1, *x.shape[2:])


def settings(config: ConfigDict, num_devices: int) -> Settings:
  """Returns what a recipe says of composites."""
  return Settings(
    reduction=config.loss.reduction,
    stop_gradient=config.loss.stop_gradient,
    mode=config.compose.mode,
    groups=_num_groups(config, num_devices),
  )


def _num_groups(config: ConfigDict, num_devices: int) -> int:
  return config.compose.groups or num_devices


def needs(config: ConfigDict) -> tuple[str, ...]:
  """Returns what the batch must bring."""
  return ("distractors",) * (config.compose.distractors == "dataset")


def draw(
  how: Settings, batch: Batch, explained: Explained, key: PRNGKeyArray
) -> Draw:
  """Draws the layouts of composites, with a leading axis of groups."""
  keys = jax.random.split(key, how.groups)
  mask = how.grouped(explained.mask)
  if "distractors" in batch:
    has_distractors = how.grouped(batch["distractor_mask"])
    layout = jax.vmap(compose.supplied)(keys, mask * has_distractors)
  else:
    contains, target = map(how.grouped, (explained.contains, explained.target))
    layout = jax.vmap(compose.MODES[how.mode])(keys, contains, target, mask)
  return Draw(_flat(layout.mask), layout)


def given(layout: compose.Layout) -> Draw:
  """Returns the draw of a layout of positions in the whole part, one group."""
  layout = jax.tree.map(jnp.asarray, layout)
  return Draw(layout.mask, jax.tree.map(lambda x: x[None], layout))


def consistency(
  how: Settings, seen: Seen, drawn: Draw, key: PRNGKeyArray
) -> Float[Array, "M P"]:
  """Returns the consistency loss of every (composite, class) pair.

  The key is that of the composites' dropout masks.

  Source: Pillai & Pirsiavash 2021, eq. 3-5.
  Differs: see `compose.packed`, `compose.independent`, `compose.supplied`.
  """
  layout, model = drawn.how, seen.model
  # A layout that was given is one group, whatever the recipe's are.
  how = dataclasses.replace(how, groups=len(layout.tiles))
  cam = cams.normalize_cam(seen.cam())
  if how.stop_gradient:
    cam = jax.lax.stop_gradient(cam)

  tiles = how.grouped(seen.images)
  if "distractors" in seen.batch:
    distractors = model.normalize(_flat(seen.batch["distractors"]))
    tiles = jnp.concatenate([tiles, how.grouped(distractors)], axis=1)
  composites = _flat(jax.vmap(compose.assemble)(layout, tiles))
  target = how.grouped(seen.explained.target)
  target = _flat(jax.vmap(jnp.take)(target, layout.explained))

  composite_cam = cams.normalize_cam(
    elementwise_cam(pure_head(model, key), model.features(composites), target)
  )
  cam, composite_cam = at_one_scale(cam, composite_cam, *seen.images.shape[1:3])
  expected = _flat(jax.vmap(compose.expected_cam)(layout, how.grouped(cam)))
  return losses.consistency_loss(expected, composite_cam, how.reduction)


def at_one_scale(
  cam: Float[Array, "B h w"],
  composite_cam: Float[Array, "M P h2 w2"],
  height: int,
  width: int,
) -> tuple[Float[Array, "B y x"], Float[Array, "M P y2 x2"]]:
  """Returns both maps, a composite's twice as high and wide as an original's.

  They are so already if strides divide the image. Poolings without padding,
  AlexNet's, make 6x6 cells of 224 pixels but 13x13 of 448: then both maps, each
  already normalised, are enlarged to pixels, and not normalised again.

  Source: the release's AlexNet.
  """
  if composite_cam.shape[-2:] == (2 * cam.shape[-2], 2 * cam.shape[-1]):
    return cam, composite_cam
  return (
    upsample(cam, height, width),
    upsample(composite_cam, 2 * height, 2 * width),
  )


def images_unit(config: ConfigDict, num_devices: int) -> int:
  """Returns the multiple of images in a part that makes whole composites."""
  of_batch = config.compose.distractors == "batch"
  return _num_groups(config, num_devices) * (4 if of_batch else 1)


def images_in_one(config: ConfigDict) -> int:
  """Returns how many images share one composite, each explained in it."""
  return 4 if config.compose.mode == "packed" else 1


def check(config: ConfigDict, num_devices: int) -> None:
  """Checks that a batch divides into composites."""
  batch_size, num_parts = config.batch_size, config.accumulate_steps
  parts = f" by --config.accumulate_steps={num_parts}" * (num_parts > 1)
  groups = _num_groups(config, num_devices)
  if groups % num_devices:
    raise ValueError(
      f"--config.compose.groups={groups} must be a multiple of {num_devices} "
      "devices, so that no image crosses from one to another; use "
      f"{neighbours(groups, num_devices)}, or 0 for one group a device."
    )
  in_one = images_in_one(config)
  share = groups * num_parts * in_one
  if batch_size % share:
    packed = f" by {in_one} images a composite" if in_one > 1 else ""
    raise ValueError(
      f"--config.batch_size={batch_size} must be divisible by {groups} groups"
      f"{packed}{parts} under --config.compose.mode={config.compose.mode!r}; "
      f"use {neighbours(batch_size, share)}."
    )
  in_group = batch_size // (groups * num_parts)
  if config.compose.distractors == "batch" and in_group < 4:
    raise ValueError(
      f"--config.batch_size={batch_size} must have at least 4 images for each "
      f"of {groups} groups{parts}, a picture and three distractors; it has "
      f"{in_group}. Use {4 * share}, or "
      "--config.compose.distractors=dataset."
    )


def neighbours(value: int, divisor: int) -> str:
  """Returns the multiples of `divisor` on either side, as advice."""
  below = value // divisor * divisor
  above = below + divisor
  return f"{below} or {above}" if below else f"{above}"
