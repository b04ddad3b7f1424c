"""What is measured of a batch of pairs: its law, its padding, its rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.data import annotation
from gc_jax.evaluation import programs
from gc_jax.method import metrics
from gc_jax.method.metrics import Key

NUM_CLASSES = 10
METHODS = ("gradcam", "gradcam_elementwise", "cmwp", "uniform", "center")
ROWS, REAL = 8, 6
GRIDS = ((4, 4), (8, 8))
TOLERANCE = 2.0


@pytest.fixture(scope="module")
def model(make_tiny):
  net = make_tiny("max")
  net.eval()
  return net


def object_masks():
  rng = np.random.default_rng(1)
  masks = np.zeros((ROWS, 16, 16), bool)
  for mask in masks:
    top, left = rng.integers(0, 10, 2)
    mask[top : top + 5, left : left + 4] = True
  masks[4] = False  # nothing known of it
  return masks


def batch(filler=0):
  """Six rows, two of one picture, one without a class; and two of padding."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (ROWS, 16, 16, 3), np.uint8)
  images[1] = images[0]
  label = rng.integers(0, NUM_CLASSES, ROWS)
  other = np.random.default_rng(filler)
  images[REAL:] = other.integers(0, 256, (2, 16, 16, 3))
  masks = object_masks()
  masks[REAL:] = other.random((2, 16, 16)) < 0.5
  rows = [
    {
      annotation.name(grid): annotation.on_grid(
        mask, annotation.dilate(mask, TOLERANCE), grid
      )
      for grid in GRIDS
    }
    for mask in masks
  ]
  made = {
    "image": images,
    "row": np.array([10, 11, 12, 13, 14, 15, -1, -1], np.int32),
    "mask": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
    "first": np.array([1, 0, 1, 1, 1, 1, 0, 0], np.float32),
    "target": label.astype(np.int32),
    "target_mask": np.array([1, 1, 1, 0, 1, 1, 0, 0], np.float32),
    "label": label.astype(np.int32),
    "annotated": masks.any((1, 2)).astype(np.float32),
    "difficult": np.zeros(ROWS, np.float32),
    "annotations": jax.tree.map(lambda *x: np.stack(x), *rows),
  }
  return jax.tree.map(jnp.asarray, made)


@pytest.fixture(scope="module")
def located(model):
  return programs.localization(*nnx.split(model), batch(), METHODS, True)


def test_columns_are_the_metrics_in_pixels(model, located):
  made, masks = batch(), jnp.asarray(object_masks())
  near = metrics.dilate(masks, TOLERANCE)
  counts = np.array([1, 1, 1, 0, 0, 1, 0, 0], bool)
  for name in METHODS:
    cam = programs.ALL_METHODS[name](
      model, made["image"], made["target"][:, None]
    )[:, 0]
    cam = metrics.as_distribution(metrics.upsample(cam, 16, 16))
    for metric, expected in {
      "pointing_game": metrics.pointing_game(cam, near),
      "stochastic_pointing_game_exact": metrics.content_heatmap(cam, near),
      "content_heatmap": metrics.content_heatmap(cam, masks),
    }.items():
      column = np.asarray(located.columns[Key(metric, name)])
      np.testing.assert_array_equal(np.isnan(column), ~counts)
      np.testing.assert_allclose(
        column[counts], np.asarray(expected)[counts], atol=1e-5
      )


def test_predictions_count_each_picture_once(model, located):
  made = batch()
  logits = np.asarray(
    model.classify(model.features(model.normalize(made["image"])))
  )
  right = logits.argmax(-1) == np.asarray(made["label"])
  first = np.asarray(made["first"]) > 0
  column = np.asarray(located.columns[Key("top1")])
  np.testing.assert_array_equal(np.isnan(column), ~first)
  np.testing.assert_array_equal(column[first], right[first])
  total, weight = located.totals[Key("top1")]
  assert (total, weight) == (right[first].sum(), 5)


def test_padding_is_measured_nowhere(model, located):
  graph = nnx.split(model)
  other = programs.localization(*graph, batch(1), METHODS, True)
  jax.tree.map(np.testing.assert_array_equal, located.totals, other.totals)
  for name, column in located.columns.items():
    np.testing.assert_array_equal(
      column, other.columns[name], err_msg=str(name)
    )
    assert np.isnan(column[REAL:]).all()
  attacked = [
    programs.attacked(*graph, batch(filler), ("fgsm",), (8,)).totals
    for filler in (0, 1)
  ]
  jax.tree.map(np.testing.assert_array_equal, *attacked)


def test_of_composites_the_uniform_map_leaves_three_quarters(model):
  made = batch() | {"cell": jnp.arange(ROWS) % 4}
  del made["annotations"]
  found = programs.negative_quadrants(*nnx.split(model), made, METHODS).columns
  counts = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
  uniform = np.asarray(found[Key("negative_quadrants_heatmap", "uniform")])
  np.testing.assert_array_equal(np.isnan(uniform), ~counts)
  np.testing.assert_allclose(uniform[counts], 0.75)
  cam = metrics.as_distribution(
    programs.ALL_METHODS["gradcam"](
      model, made["image"], made["target"][:, None]
    )[:, 0]
  )
  for row in np.flatnonzero(counts):
    y, x = divmod(row % 4, 2)
    own = cam[row, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum()
    found_here = found[Key("negative_quadrants_heatmap", "gradcam")][row]
    np.testing.assert_allclose(found_here, 1 - own, atol=1e-6)


def test_faithfulness_has_areas_by_row_and_curves_in_sum(model):
  graph = nnx.split(model)
  _, cams = programs.maps(*graph, batch(), ("gradcam", "uniform"))
  found = programs.faithful(*graph, batch(), cams, 4)
  counts = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
  for what in ("insertion", "deletion"):
    area = np.asarray(found.columns[Key(f"{what}_auc", "gradcam")])
    np.testing.assert_array_equal(np.isnan(area), ~counts)
    total, weight = found.totals[Key(what, "gradcam")]
    assert weight == 5 and total.shape == (5,)
    # The area of the mean curve is the mean of the areas.
    mean = np.trapezoid(np.asarray(total) / 5, dx=0.25)
    np.testing.assert_allclose(area[counts].mean(), mean, rtol=1e-5)
  assert found.cams["gradcam"].shape == (ROWS, 4, 4)


def test_an_attack_is_counted_on_first_rows(model):
  found = programs.attacked(*nnx.split(model), batch(), ("fgsm", "pgd"), (0, 8))
  clean = programs.predictions(*nnx.split(model), batch()).totals
  for attack in ("fgsm", "pgd"):
    assert found.totals[Key("top1", "", attack, 0)] == clean[Key("top1")]
    total, weight = found.totals[Key("top1", "", attack, 8)]
    assert weight == 5
    column = np.asarray(found.columns[Key("top1", "", attack, 8)])
    np.testing.assert_array_equal(np.isnan(column), batch()["first"] == 0)
    assert np.nansum(column) == total


def test_beside_pgd_stands_fgsm_of_the_same_pictures(model):
  found = programs.attacked(
    *nnx.split(model), batch(), ("fgsm", "pgd"), (8,), True
  )
  for measured in (found.totals, found.columns):
    names = {(key.attack, key.epsilon) for key in measured}
    assert names == {("fgsm-few", 8), ("pgd", 8)}


def test_grids_are_those_of_the_maps(model):
  assert programs.grids(model, METHODS, 16, 16) == ((4, 4), (8, 8))
  assert programs.grids(model, ("gradcam",), 24, 32) == ((6, 8),)
  assert programs.num_classes(model, 16) == NUM_CLASSES
