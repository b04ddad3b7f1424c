"""Composites: who sits where, who must not, and what the map should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gc_jax.method import cam as cams
from gc_jax.method import compose, losses

MODES = tuple(compose.MODES)
# For statistical tests, of fixed seed: 1 in 1,000 such seeds would fail.
SIGNIFICANCE = 1e-3


NUM_DRAWS = 30_000


@functools.cache
def drawn(mode, in_axes=None):
  """The mode compiled; with `in_axes`, over a leading axis of these."""
  draw = compose.MODES[mode].draw
  return jax.jit(jax.vmap(draw, in_axes) if in_axes else draw)


def draw_many(mode, contains, target, mask, seed=0):
  keys = jax.random.split(jax.random.key(seed), NUM_DRAWS)
  layout = drawn(mode, (0, None, None, None))(
    keys, jnp.asarray(contains), jnp.asarray(target), jnp.asarray(mask)
  )
  return jax.tree.map(np.asarray, layout), np.asarray(layout.explained)


def one_hot(label, num_classes):
  return np.eye(num_classes, dtype=bool)[label]


def crop(composites, cell):
  """The quadrant of one cell, row-major."""
  height, width = composites.shape[1] // 2, composites.shape[2] // 2
  row, column = divmod(cell, 2)
  return composites[
    :,
    row * height : (row + 1) * height,
    column * width : (column + 1) * width,
  ]


@pytest.mark.parametrize("shape", [(6, 5, 3), (7, 4), (1, 1), (2, 3, 2, 2)])
def test_placing_then_cropping_is_the_identity(shape):
  """Of images and of maps: one `place` serves both."""
  tiles = np.random.default_rng(0).random((3, 4, *shape)).astype(np.float32)
  composites = compose.place(jnp.asarray(tiles))
  assert composites.shape == (3, 2 * shape[0], 2 * shape[1], *shape[2:])
  for cell in range(4):
    np.testing.assert_array_equal(crop(composites, cell), tiles[:, cell])


@st.composite
def batches(draw):
  """Few classes, so that clashes are common; some padding, some unlabelled."""
  size = draw(st.sampled_from([4, 8]))
  num_classes = 3
  integers = lambda low, high: np.array(
    draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
  )
  target = integers(0, num_classes - 1)
  contains = one_hot(target, num_classes)
  if draw(st.booleans()):  # multi-label
    rest = integers(0, 2**num_classes - 1)
    contains |= (rest[:, None] >> np.arange(num_classes)) % 2 == 1
  mask = integers(0, 1) | integers(0, 1)
  return contains, target, mask.astype(np.float32), draw(st.integers(0, 999))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=150)
@given(batch=batches())
def test_only_pairs_count_whose_map_must_vanish_somewhere(mode, batch):
  """In cells that are known not to hold the class; all of these pairs count."""
  contains, target, mask, seed = batch
  layout = drawn(mode)(
    jax.random.key(seed),
    jnp.asarray(contains),
    jnp.asarray(target),
    jnp.asarray(mask),
  )
  tiles, cell, valid = map(np.asarray, layout[:3])
  explained = np.asarray(layout.explained)
  assert sorted(explained.ravel()) == list(range(len(target)))
  for m, p in np.ndindex(cell.shape):
    image = explained[m, p]
    assert image == tiles[m, cell[m, p]]
    others = np.delete(tiles[m], cell[m, p])
    clash = contains[others, target[image]]
    if mode == "packed":
      possible = not clash.any()
    elif mode == "packed_by_class":
      possible = not clash.all()
      holds = np.insert(clash, cell[m, p], True)
      np.testing.assert_array_equal(layout.holds[m, p], holds)
    else:
      possible = (~contains[:, target[image]] & (mask > 0)).any()
    assert valid[m, p] == (possible and mask[image] > 0)
    if valid[m, p] and mode != "packed_by_class":
      assert not clash.any()
      if mode == "independent":
        assert mask[others].all()  # padding distracts nobody
  if mode == "packed_by_class":  # dealt: as evenly as the numbers allow
    for k in range(contains.shape[1]):
      count = (target == k).sum()
      in_one = (target[tiles] == k).sum(1)
      assert {*in_one} <= {count // len(tiles), -(-count // len(tiles))}
  if compose.MODES[mode].images_in_one == 4:
    np.testing.assert_array_equal(np.sort(tiles.ravel()), range(len(target)))
  else:
    np.testing.assert_array_equal(explained[:, 0], range(len(target)))


@pytest.mark.parametrize("mode", MODES)
def test_counts_of_objects_are_flags(mode):
  """The form of `labels`: two objects of a class are as good as one."""
  contains = one_hot(np.array([0, 0, 1, 1, 2, 2, 0, 3]), 4)
  counts = np.where(contains, np.arange(1, 9)[:, None], 0)
  target = jnp.asarray(contains.argmax(1))
  draws = [
    drawn(mode)(jax.random.key(3), jnp.asarray(held), target, jnp.ones(8))
    for held in (contains, counts, counts.astype(np.float32) / 2)
  ]
  for other in draws[1:]:
    jax.tree.map(np.testing.assert_array_equal, draws[0], other)


@pytest.mark.parametrize("mode", ["packed", "packed_by_class"])
def test_a_batch_that_four_does_not_divide_is_refused(mode):
  flags, target = jnp.ones((6, 3), bool), jnp.zeros(6, int)
  with pytest.raises(ValueError, match=r"divisible by 4.*it has 6\. Use 8"):
    compose.MODES[mode].draw(jax.random.key(0), flags, target, jnp.ones(6))


# Image 0 may meet 2..7, and nobody else of class 0: 20 triples of them.
LABEL = np.array([0, 0, 1, 1, 2, 2, 3, 3])
MULTI = one_hot(LABEL, 4) | one_hot(np.array([1, 2, 2, 3, 3, 1, 1, 2]), 4)


@pytest.mark.parametrize("contains", [one_hot(LABEL, 4), MULTI])
@pytest.mark.parametrize("mode", MODES)
def test_the_law_of_a_pair_that_counts_is_uniform(mode, contains):
  """Over 4 cells times 120 ordered triples of allowed distractors.

  By class, over the 48 triples of one image of each other class.
  """
  layout, explained = draw_many(mode, contains, LABEL, np.ones(8, "f"))
  mine = (explained == 0) & (layout.mask > 0)
  draw, composite, _ = np.nonzero(mine)
  tiles = layout.tiles[draw, composite]
  if mode == "packed":  # 20 of the 35 triples of neighbours lack class 0
    error = np.sqrt(20 / 35 * 15 / 35 / NUM_DRAWS)
    assert abs(len(draw) / NUM_DRAWS - 20 / 35) < 4 * error
  else:
    assert len(draw) == NUM_DRAWS
  outcomes, counts = np.unique(tiles, axis=0, return_counts=True)
  assert all(len(set(row)) == 4 for row in outcomes)
  triples = 6 * 4 * 2 if mode == "packed_by_class" else 6 * 5 * 4
  assert len(outcomes) == 4 * triples
  assert counts.sum() / len(outcomes) > 30  # enough for chi-square
  assert stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_supplied_distractors_are_the_images_own_three_in_order():
  keys = jax.random.split(jax.random.key(0), 4_000)
  mask = jnp.array([1.0, 0.0, 1.0])
  layouts = jax.jit(jax.vmap(compose.supplied, (0, None)))(keys, mask)
  tiles, cell, valid = map(np.asarray, layouts[:3])
  assert (valid == np.array([1, 0, 1])[:, None]).all()
  for image in range(3):
    counts = np.bincount(cell[:, image, 0], minlength=4)
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE / 3
    own = 3 + 3 * image + np.arange(3)
    for c in range(4):
      rows = tiles[cell[:, image, 0] == c, image]
      assert (rows == np.insert(own, c, image)).all()


def test_fewer_than_three_distractors_are_repeated():
  """Image 2 is the only one of class 1 that is no padding."""
  label = np.array([0, 0, 1, 0, 1, 1, 1, 0])
  mask = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
  layout, _ = draw_many("independent", one_hot(label, 4), label, mask)
  tiles = layout.tiles
  assert (layout.mask == mask[:, None]).all()
  for image in (0, 1, 3):
    assert set(np.unique(tiles[:, image])) == {image, 2}
  # Image 2 has three: each of them, always.
  assert (np.sort(tiles[:, 2]) == [0, 1, 2, 3]).all()


def drawn_layout(mode, seed=0):
  return drawn(mode)(
    jax.random.key(seed),
    jnp.asarray(one_hot(LABEL, 4)),
    jnp.asarray(LABEL),
    jnp.ones(8),
  )


@pytest.mark.parametrize("mode", MODES)
def test_the_expected_map_is_the_own_map_where_the_own_pixels_are(mode):
  layout = drawn_layout(mode)
  maps = np.random.default_rng(0).random((8, 3, 5)).astype(np.float32)
  expected = np.asarray(compose.expected_cam(layout, jnp.asarray(maps)))
  images = compose.assemble(layout, jnp.asarray(maps)[..., None])[..., 0]
  tiles, cell, _ = map(np.asarray, layout[:3])
  assert expected.shape == (*cell.shape, 6, 10)
  for c in range(4):
    np.testing.assert_array_equal(crop(images, c), maps[tiles[:, c]])
    for p in range(cell.shape[1]):
      is_own = cell[:, p, None, None] == c
      own = np.where(is_own, maps[tiles[:, c]], 0)
      np.testing.assert_array_equal(crop(expected[:, p], c), own)


@pytest.mark.parametrize("mode", MODES)
def test_a_perfectly_consistent_map_has_no_loss(mode):
  """Its raw map on a composite is the raw map of the image, in its cell."""
  layout = drawn_layout(mode)
  raw = 5 * jax.random.uniform(jax.random.key(0), (8, 4, 4))
  perfect = compose.expected_cam(layout, raw)
  expected = compose.expected_cam(layout, cams.normalize_cam(raw))
  # The epsilon in 48 cells without a target, and float32 sums near 1.
  for cam, loss in ((perfect, 0), (perfect[:, :, ::-1], 2)):
    found = losses.consistency_loss(expected, cams.normalize_cam(cam), "sum")
    np.testing.assert_allclose(found, loss, atol=2e-6)


def test_the_map_of_a_class_is_that_of_all_its_tiles_normalised_once():
  """Each cell by hand; a map is empty, and one of the class's holders too."""
  cam = np.random.default_rng(0).random((2, 4, 4, 3, 5)).astype(np.float32)
  cam[1, 2], cam[0, 1, 3] = 0, 0
  holds = np.arange(32).reshape(2, 4, 4) % 3 == 0
  holds |= np.eye(4, dtype=bool)
  layout = compose.Layout(None, None, None, jnp.asarray(holds))
  found = np.asarray(compose.expected_by_class(layout, jnp.asarray(cam)))
  assert len({*holds.sum(-1).ravel()}) > 1
  for m, p in np.ndindex(2, 4):
    total = cam[m, p][holds[m, p]].sum() + 1e-8
    for c in range(4):
      expected = cam[m, p, c] / total + 1e-8 if holds[m, p, c] else 0
      np.testing.assert_allclose(found[m, p, c], expected, rtol=1e-6)


def test_of_distinct_classes_the_map_is_equation_4_to_the_bit():
  label = np.array([4, 0, 7, 1, 2, 6, 5, 3])
  layout = drawn("packed_by_class")(
    jax.random.key(0), one_hot(label, 8), jnp.asarray(label), jnp.ones(8)
  )
  assert layout.mask.all() and layout.holds.sum() == 8
  cam = jax.random.uniform(jax.random.key(1), (8, 7, 7)).at[3].set(0)
  # What the others' maps for the class would be does not matter.
  cams_of_tiles = jax.random.uniform(jax.random.key(2), (2, 4, 4, 7, 7))
  for m, p in np.ndindex(2, 4):
    own = cam[layout.tiles[m, p]]
    cams_of_tiles = cams_of_tiles.at[m, p, p].set(own)
  found = jax.vmap(compose.place)(
    compose.expected_by_class(layout, cams_of_tiles)
  )
  expected = compose.expected_cam(layout, cams.normalize_cam(cam))
  np.testing.assert_array_equal(found, expected)
