"""Map metrics for users: values by hand, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

import gc_jax


def peaks():
  """Two maps: one peaks at the upper left, the other at the lower right."""
  maps = np.zeros((2, 4, 4), np.float32)
  maps[0, 0, 0] = maps[1, 3, 3] = 1
  return jnp.asarray(maps)


def left_half():
  masks = np.zeros((2, 64, 64), bool)
  masks[:, :, :32] = True
  return masks


def test_values_by_hand():
  found = gc_jax.localize(peaks(), masks=left_half())
  np.testing.assert_array_equal(found.pointing_game, [1, 0])
  np.testing.assert_allclose(found.content_heatmap, [1, 0], atol=1e-6)
  # Without a tolerance the games ask for the object itself.
  strict = gc_jax.localize(peaks(), masks=left_half(), tolerance_px=1.0)
  np.testing.assert_allclose(
    strict.stochastic_pointing_game_exact, strict.content_heatmap
  )


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("side", [6, 14])
def test_a_map_that_is_the_same_everywhere_points_at_the_first_pixel(
  side, value
):
  """Enlarged, its numbers would differ in their last digits."""
  first = np.zeros((2, 224, 224), bool)
  first[0, :2, :2] = True
  first[1, :8, 17:40] = True
  maps = np.full((2, side, side), value)
  found = gc_jax.localize(maps, masks=first, tolerance_px=1.0)
  np.testing.assert_array_equal(found.pointing_game, [1, 0])


def test_a_map_spread_evenly_scores_the_share_of_the_object():
  found = gc_jax.localize(jnp.ones((2, 4, 4)), masks=left_half())
  np.testing.assert_allclose(found.content_heatmap, 32 / 64, rtol=1e-5)
  # A point hits at a distance of 14 pixels, and not of 15.
  np.testing.assert_allclose(
    found.stochastic_pointing_game_exact, (32 + 14) / 64, rtol=1e-5
  )


def test_boxes_are_masks_of_their_pixels():
  boxes = np.array([[[0, 0, 64, 32]], [[0, 0, 64, 32]]])
  empty = np.zeros((2, 1, 4), int)  # boxes without area do not count
  found = gc_jax.localize(
    peaks(), boxes=np.concatenate([boxes, empty], 1), size=(64, 64)
  )
  expected = gc_jax.localize(peaks(), masks=left_half())
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_a_box_that_begins_outside_is_clipped_or_as_the_release_slices_it():
  boxes = np.array([[[-1, 0, 63, 32]], [[0, 0, 64, 32]]])
  at = {"boxes": boxes, "size": (64, 64)}
  clipped = gc_jax.localize(peaks(), **at)
  sliced = gc_jax.localize(peaks(), protocol="release", **at)
  assert clipped.pointing_game[0] == 1
  assert np.isnan(sliced.pointing_game[0])
  assert sliced.pointing_game[1] == clipped.pointing_game[1]
  row = np.zeros((2, 64, 64))
  row[:, -1:64, :32] = 1
  found = gc_jax.localize(
    peaks(),
    boxes=np.array([[[-1, 0, 64, 32]]] * 2),
    size=(64, 64),
    protocol="release",
  )
  expected = gc_jax.localize(peaks(), masks=row)
  np.testing.assert_array_equal(found.content_heatmap, expected.content_heatmap)


def test_a_box_of_one_pixel_in_integers_is_no_fraction():
  """Of floats, nobody could tell."""
  boxes = np.tile([0, 0, 1, 1], (2, 1, 1))
  found = gc_jax.localize(peaks(), boxes=boxes, size=(64, 64))
  mask = np.zeros((2, 64, 64), bool)
  mask[:, 0, 0] = True
  expected = gc_jax.localize(peaks(), masks=mask)
  np.testing.assert_array_equal(found.content_heatmap, expected.content_heatmap)
  with pytest.raises(ValueError, match="look like fractions"):
    gc_jax.localize(peaks(), boxes=boxes / 1.0, size=(64, 64))


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({}, "either masks= or boxes="),
    ({"boxes": np.ones((2, 1, 4))}, r"size=\(H, W\)"),
    ({"boxes": np.ones((2, 4)), "size": (8, 8)}, r"boxes must be \[B N 4\]"),
    (
      {"boxes": np.array([[[0, 0, 0.5, 1]]] * 2), "size": (8, 8)},
      "look like fractions",
    ),
    ({"masks": np.ones((3, 8, 8))}, "Each of the 2 maps must have a mask"),
    ({"masks": np.ones((2, 8, 8)), "protocol": "x"}, "protocol must be one of"),
    ({"masks": np.ones((2, 8, 8)), "size": (8, 8)}, "size= goes with boxes="),
    # Nothing is nearer than that: all would miss.
    (
      {"masks": np.ones((2, 8, 8)), "tolerance_px": 0.0},
      "tolerance_px must be ab",
    ),
    (
      {"masks": np.ones((2, 8, 8)), "tolerance_px": np.inf},
      "above 0 and finite; it is inf",
    ),
  ],
)
def test_wrong_arguments_are_named(given, message):
  with pytest.raises(ValueError, match=message):
    gc_jax.localize(peaks(), **given)


def test_maps_with_a_sign_are_refused_as_they_are_no_distribution():
  with pytest.raises(ValueError, match=r"maps must be >= 0.*value is -0\.5"):
    gc_jax.localize(peaks() - 0.5, masks=left_half())


def test_maps_in_bfloat16_are_measured_in_float32():
  """Enlarged in bfloat16, 224 pixels of a ramp are a few steps."""
  ramp = jnp.broadcast_to(jnp.arange(1.0, 9.0), (1, 8, 8))
  masks = np.zeros((1, 224, 224), bool)
  masks[:, :, 100:] = True
  found, expected = (
    gc_jax.localize(ramp.astype(dtype), masks=masks, tolerance_px=1.0)
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
