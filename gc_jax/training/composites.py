"""The consistency term: maps of composites against maps of their pictures.

The method of the paper, read in a row: cam -> compose -> cam -> consistency.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax.method import cam as cams
from gc_jax.method import compose, losses
from gc_jax.method.types import Batch
from gc_jax.models import pure_head
from gc_jax.models.network import context_of
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
    mode = compose.MODES[how.mode]
    layout = jax.vmap(mode.draw)(keys, contains, target, mask)
  return Draw(_flat(layout.mask), layout)


def given(layout: compose.Layout) -> Draw:
  """Returns the draw of a layout of positions in the whole part, one group.

  Raises:
    ValueError: `layout.holds` is known, and an image is in two cells.
  """
  layout = jax.tree.map(jnp.asarray, layout)
  if layout.holds is not None and not isinstance(layout.tiles, jax.core.Tracer):
    seen, counts = np.unique(layout.tiles, return_counts=True)
    if counts.max() > 1:
      raise ValueError(
        "With `holds`, each image must be in one cell of a layout; image "
        f"{seen[counts.argmax()]} is in {counts.max()}. Leave `holds` out, or "
        "draw another layout."
      )
  return Draw(layout.mask, jax.tree.map(lambda x: x[None], layout))


def consistency(
  how: Settings, seen: Seen, drawn: Draw, key: PRNGKeyArray
) -> Float[Array, "M P"]:
  """Returns the consistency loss of every (composite, class) pair.

  The key is that of the composites' dropout masks.

  Source: Pillai & Pirsiavash 2021, eq. 3-5.
  Differs: see `compose.MODES` and `compose.supplied`.
  """
  layout, model = drawn.how, seen.model
  # A layout that was given is one group, whatever the recipe's are.
  how = dataclasses.replace(how, groups=len(layout.tiles))
  by_class = layout.holds is not None
  if by_class:
    cam = compose.expected_by_class(
      jax.tree.map(_flat, layout), _tile_cams(how, seen, layout)
    )
  else:
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
    elementwise_cam(
      pure_head(model, key),
      model.features(composites),
      target,
      context_of(model),
    )
  )
  cam, composite_cam = compose.at_one_scale(
    cam, composite_cam, *seen.images.shape[1:3]
  )
  if by_class:
    expected = jax.vmap(compose.place)(cam)
  else:
    expected = _flat(jax.vmap(compose.expected_cam)(layout, how.grouped(cam)))
  return losses.consistency_loss(expected, composite_cam, how.reduction)


def _tile_cams(
  how: Settings, seen: Seen, layout: compose.Layout
) -> Float[Array, "M P 4 h w"]:
  """Returns what each cell's image adds to the map of each explained class.

  These are element-wise Grad-CAMs, not normalised, of the originals' features.
  Under average pooling it is each image's own map. Under maximum pooling a
  channel speaks where it is largest, so for the image alone that has its
  maximum over all that hold the class; the others' maps lack it. The weights
  of a perceptron belong to a cell's place, and attention weighs each cell
  against all others: what they make of four images does not follow from what
  they make of each, and the own maps are taken here too.

  No image may sit in two cells: see `given`.

  Source: none; ours. Where one image holds the class, its map is `seen.cam()`.
  """
  target = how.grouped(seen.explained.target)
  explained = jax.vmap(jnp.take)(target, layout.explained)  # [G M P]
  # Maps are made in the order of the batch, as the head's dropout has it. Cell
  # k % 4 of composite k // 4 holds the image; an unused one says k = 0.
  cells = lambda tiles: jnp.arange(tiles.size).reshape(tiles.shape)
  k = jax.vmap(
    lambda tiles: jnp.zeros(target.shape[1], int).at[tiles].set(cells(tiles))
  )(layout.tiles)
  by_composite = lambda x: _flat(jax.vmap(lambda x, k: x[k // 4])(x, k))
  in_cells = lambda x: jax.vmap(jnp.take, (0, 0, None))(x, layout.tiles, 0)

  targets = by_composite(explained)
  if seen.model.pooling != "max":
    num_context = context_of(seen.model)
    cam = elementwise_cam(seen.classify, seen.features, targets, num_context)
  else:
    pooled = in_cells(how.grouped(seen.classify.pool(seen.features)))
    holds = layout.holds[..., None]
    heard = jnp.where(holds, pooled[:, :, None], -jnp.inf)  # [G M P 4 C]
    loudest = jnp.argmax(heard, 3)  # [G M P C]
    speaks = jax.nn.one_hot(loudest, 4, axis=2, dtype=bool)  # [G M 4 P C]
    speaks = speaks.reshape(len(speaks), -1, *speaks.shape[3:])
    speaks = _flat(jax.vmap(lambda x, k: x[k])(speaks, k))  # [B P C]
    others = by_composite(jax.lax.stop_gradient(heard.max(3)))

    def joint_cam(target, speaks, others):
      def classify(features):
        pooled = jnp.where(speaks, seen.classify.pool(features), others)
        return seen.classify.classify_pooled(pooled)

      return elementwise_cam(classify, seen.features, target[:, None])[:, 0]

    cam = jax.vmap(joint_cam, 1, 1)(targets, speaks, others)
  return _flat(in_cells(how.grouped(cam))).swapaxes(1, 2)


def images_unit(config: ConfigDict, num_devices: int) -> int:
  """Returns the multiple of images in a part that makes whole composites."""
  of_batch = config.compose.distractors == "batch"
  return _num_groups(config, num_devices) * (4 if of_batch else 1)


def images_in_one(config: ConfigDict) -> int:
  """Returns how many images share one composite, each explained in it."""
  return compose.MODES[config.compose.mode].images_in_one


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
