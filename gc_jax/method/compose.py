"""2x2 composites: drawing which image fills which cell, and putting together.

A `Layout` is drawn first, from classes alone; `assemble` then gathers the
images, and `expected_cam` or `expected_by_class` returns the map that a
perfectly consistent model would have. Cells are numbered row-major:

  0 1
  2 3
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real, Shaped

from gc_jax.method.cam import normalize_cam
from gc_jax.method.metrics import upsample
from gc_jax.method.sharding import dividing_freely
from gc_jax.method.types import is_present


class Layout(NamedTuple):
  """M composites of four images, and the P explained images in each.

  Attributes:
    tiles: `[M 4]`, position in the batch of the image in each cell.
    cell: `[M P]`, where each explained image sits.
    mask: `[M P]`, 0 where the pair must not count: one of the other three
      images holds the explained class, or, where `holds` is known, all do.
    holds: `[M P 4]`, whether the image in each cell holds the explained class:
      the map is expected in all their cells. None: in the explained image's.
  """

  tiles: Int[Array, "M 4"]
  cell: Int[Array, "M P"]
  mask: Float[Array, "M P"]
  holds: Bool[Array, "M P 4"] | None = None

  @property
  def explained(self) -> Int[Array, "*groups M P"]:
    """Returns the position in the batch of each explained image."""
    return jnp.take_along_axis(self.tiles, self.cell, axis=-1)


@dividing_freely
def independent(
  key: PRNGKeyArray,
  contains: Shaped[Array, "B K"],
  target: Int[Array, "B"],
  mask: Float[Array, "B"],
) -> Layout:
  """Draws one composite for each image (M = B, P = 1).

  The image sits in a uniformly random cell, among three different images that
  do not hold its target. If the batch has only one or two, they are repeated;
  if it has none, the image is masked.

  Args:
    key: the draw is a function of it.
    contains: above 0, or True, for the classes that each image holds.
    target: class explained in each image.
    mask: 0 for padding, which is neither explained nor a distractor.

  Source: Pillai & Pirsiavash 2021, section 3.
  Differs: distractors come from the batch, not from the whole training set.
  """
  key_cell, key_order = jax.random.split(key)
  lacks_class = ~is_present(contains)[:, target].T  # [explained, distractor]
  allowed = lacks_class & (mask > 0)[None]
  # A random order of the allowed ones; forbidden ones are sorted to the end.
  order = jax.random.uniform(key_order, allowed.shape, jnp.float32)
  order = jnp.argsort(jnp.where(allowed, order, 2.0), axis=1)
  num_allowed = allowed.sum(1, keepdims=True)
  pick = jnp.arange(3)[None] % jnp.maximum(num_allowed, 1)
  distractors = jnp.take_along_axis(order, pick, axis=1)
  tiles, cell = _in_random_cells(key_cell, distractors)
  valid = (num_allowed > 0) & (mask[:, None] > 0)
  return Layout(tiles, cell, valid.astype(jnp.float32))


def supplied(key: PRNGKeyArray, mask: Float[Array, "B"]) -> Layout:
  """Draws one composite of each image and its own three distractors.

  The layout holds positions in a batch of B images followed by their 3 B
  distractors, those of the first image first. The image sits in a uniformly
  random cell.

  Args:
    key: the draw is a function of it.
    mask: 1 where an image is to be explained and has distractors.

  Source: Pillai & Pirsiavash 2021, section 3, and the release.
  Differs: none.
  """
  batch_size = mask.shape[0]
  distractors = batch_size + jnp.arange(3 * batch_size).reshape(-1, 3)
  tiles, cell = _in_random_cells(key, distractors)
  return Layout(tiles, cell, (mask[:, None] > 0).astype(jnp.float32))


def _in_random_cells(
  key: PRNGKeyArray, distractors: Int[Array, "B 3"]
) -> tuple[Int[Array, "B 4"], Int[Array, "B 1"]]:
  """Returns tiles and cell of composites of each image and its distractors."""
  batch_size = distractors.shape[0]
  cell = jax.random.randint(key, (batch_size, 1), 0, 4, jnp.int32)
  # Cell c holds the image; the cells before and after, distractors in order.
  cells = jnp.arange(4)[None]
  slot = jnp.clip(cells - (cells > cell).astype(cells.dtype), 0, 2)
  tiles = jnp.where(
    cells == cell,
    jnp.arange(batch_size)[:, None],
    jnp.take_along_axis(distractors, slot, axis=1),
  )
  return tiles, cell


@dividing_freely
def packed(
  key: PRNGKeyArray,
  contains: Shaped[Array, "B K"],
  target: Int[Array, "B"],
  mask: Float[Array, "B"],
) -> Layout:
  """Draws B/4 composites in which all four images are explained (P = 4).

  A random permutation of the batch is taken four at a time: each image is
  explained once and is a distractor for three others. A pair whose class also
  occurs in a neighbour is masked. The distractors of the pairs that count have
  the law of `independent`; the forward pass costs a quarter.

  Args:
    key: the draw is a function of it.
    contains: above 0, or True, for the classes that each image holds. B must be
      divisible by 4.
    target: class explained in each image.
    mask: 1 where the image is to be explained; the others only distract.

  Raises:
    ValueError: 4 does not divide B.

  Source: none; ours.
  """
  _check_fours(target)
  tiles = jax.random.permutation(key, target.shape[0]).reshape(-1, 4)
  cell = jnp.broadcast_to(jnp.arange(4), tiles.shape)
  alone = _holders(tiles, contains, target).sum(-1) == 1
  valid = alone & (mask[tiles] > 0)
  return Layout(tiles, cell, valid.astype(jnp.float32))


@dividing_freely
def packed_by_class(
  key: PRNGKeyArray,
  contains: Shaped[Array, "B K"],
  target: Int[Array, "B"],
  mask: Float[Array, "B"],
) -> Layout:
  """Draws B/4 composites that spread each class, all four images explained.

  Images are sorted by their explained class, classes in a random order, and
  dealt like cards to the composites. So a class of at most B/4 images sits at
  most once in a composite, and all four share their class only where it has
  more than 3 B/4: nowhere in such a composite could its map have to vanish, and
  its pairs are masked. Each image is explained once, as in `packed`.

  Args:
    key: the draw is a function of it.
    contains: above 0, or True, for the classes that each image holds. B must be
      divisible by 4. An image that holds several is dealt by its target, and
      counts as a holder of each.
    target: class explained in each image.
    mask: 1 where the image is to be explained; the others only distract.

  Raises:
    ValueError: 4 does not divide B.

  Source: none; ours.
  """
  _check_fours(target)
  key_rank, key_order, key_cell = jax.random.split(key, 3)
  rank = jax.random.permutation(key_rank, contains.shape[1])[target]
  order = jnp.lexsort(
    (jax.random.uniform(key_order, target.shape, jnp.float32), rank)
  )
  tiles = jax.random.permutation(
    key_cell, order.reshape(4, -1).T, axis=1, independent=True
  )
  cell = jnp.broadcast_to(jnp.arange(4), tiles.shape)
  holds = _holders(tiles, contains, target)
  valid = ~holds.all(-1) & (mask[tiles] > 0)
  return Layout(tiles, cell, valid.astype(jnp.float32), holds)


def _check_fours(target: Int[Array, "B"]) -> None:
  if len(target) % 4:
    raise ValueError(
      "The batch must be divisible by 4: packed composites take four images "
      f"each, and it has {len(target)}. Use {len(target) // 4 * 4 + 4}, or "
      "independent composites."
    )


def _holders(
  tiles: Int[Array, "M 4"],
  contains: Shaped[Array, "B K"],
  target: Int[Array, "B"],
) -> Bool[Array, "M 4 4"]:
  """Returns whether cell c has the class explained in cell p: `[m, p, c]`."""
  holds = is_present(contains)[tiles[:, None, :], target[tiles][:, :, None]]
  return holds | jnp.eye(4, dtype=bool)[None]  # an image has its own


class Mode(NamedTuple):
  """A way to make composites.

  Attributes:
    draw: (key, contains, target, mask) -> layout.
    images_in_one: how many images of the batch share a composite, each
      explained in it.
    title: as people write it, before "composites".
    if_masked: what to do where many pairs do not count, a sentence.
  """

  draw: Callable[..., Layout]
  images_in_one: int
  title: str
  if_masked: str


# name in --config.compose.mode -> what is known of it
MODES = {
  "independent": Mode(
    independent,
    images_in_one=1,
    title="independent",
    if_masked="Raise --config.batch_size, so that other classes are met.",
  ),
  "packed": Mode(
    packed,
    images_in_one=4,
    title="packed",
    if_masked="Use --config.compose.mode=packed_by_class: it masks a pair only "
    "where all four pictures of a composite show the class.",
  ),
  "packed_by_class": Mode(
    packed_by_class,
    images_in_one=4,
    title="packed by class",
    if_masked="Add pictures that do not show the commonest class: composites "
    "of it alone have no cell where its map must vanish.",
  ),
}


@dividing_freely
def place(tiles: Array) -> Array:
  """Returns each row of four tiles as one 2x2 composite.

  Args:
    tiles: `[M 4 H W *rest]`: images, or maps when nothing follows W.

  Returns:
    `[M 2H 2W *rest]`.
  """
  num, _, height, width, *rest = tiles.shape
  grid = tiles.reshape(num, 2, 2, height, width, *rest)
  # [m, row, column, y, x, ...] -> [m, row, y, column, x, ...]
  return grid.swapaxes(2, 3).reshape(num, 2 * height, 2 * width, *rest)


@dividing_freely
def assemble(
  layout: Layout, images: Real[Array, "B H W C"]
) -> Real[Array, "M H2 W2 C"]:
  """Returns the composite images, twice as high and wide as the originals."""
  return place(images[layout.tiles])


@dividing_freely
def expected_cam(
  layout: Layout, cam: Float[Array, "B h w"]
) -> Float[Array, "M P h2 w2"]:
  """Returns the map a consistent model has on each composite.

  It is the image's own map in its cell, and exactly zero in the other three.

  Args:
    layout: where images sit.
    cam: map of each image alone, for its target.

  Source: Pillai & Pirsiavash 2021, eq. 4.
  """
  own = cam[layout.explained]  # [M P h w]
  in_cell = jax.nn.one_hot(layout.cell, 4, dtype=cam.dtype)  # [M P 4]
  tiles = own[:, :, None] * in_cell[..., None, None]  # [M P 4 h w]
  return jax.vmap(place)(tiles)


@dividing_freely
def expected_by_class(
  layout: Layout, cam: Float[Array, "M P 4 h w"]
) -> Float[Array, "M P 4 h w"]:
  """Returns each cell's part of the map a consistent model has; see `place`.

  g / (sum(g) + 1e-8) + 1e-8 in the cells of images that hold the class, where g
  are their maps and the sum is over all of them; exactly zero in the others.

  Args:
    layout: with `holds`.
    cam: map of the image in each cell for each explained class, not normalised.

  Source: none; ours. Where one image holds the class, the paper's eq. 4.
  """
  holds = layout.holds[..., None, None]
  normalized = normalize_cam(jnp.where(holds, cam, 0), of_tiles=True)
  return jnp.where(holds, normalized, 0)


def at_one_scale(
  cam: Float[Array, "*B h w"],
  composite_cam: Float[Array, "M P h2 w2"],
  height: int,
  width: int,
) -> tuple[Float[Array, "*B y x"], Float[Array, "M P y2 x2"]]:
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
