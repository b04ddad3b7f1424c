"""What the programs measure of a batch of pairs: law, padding, rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax.attribution import METHODS as METHODS_OF_MODELS
from gc_jax.data import geometry
from gc_jax.evaluation import attacks, classification, localisation
from gc_jax.evaluation.faithfulness import completeness, faithful
from gc_jax.inference.arrays import evaluated, split
from gc_jax.method import metrics
from gc_jax.method.metrics import Key

METHODS = ("gradcam", "gradcam_elementwise", "cmwp", "uniform", "center")
ROWS, REAL = 8, 6
FIRST = np.array([1, 0, 1, 1, 1, 1, 0, 0], bool)
EXPLAINED = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
LOCATED = np.array([1, 1, 1, 0, 0, 1, 0, 0], bool)
GRIDS = ((4, 4), (8, 8))
TOLERANCE = 2.0


@pytest.fixture(scope="module")
def model(make_tiny):
  net = make_tiny("max")
  net.eval()
  return net


@pytest.fixture(scope="module")
def graph(model):
  return split(model)


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
  label = rng.integers(0, 10, ROWS).astype(np.int32)
  other = np.random.default_rng(filler)
  images[REAL:] = other.integers(0, 256, (2, 16, 16, 3))
  masks = object_masks()
  masks[REAL:] = other.random((2, 16, 16)) < 0.5
  rows = [
    {
      geometry.grid_name(grid): geometry.on_grid(
        mask, geometry.dilate(mask, TOLERANCE), grid
      )
      for grid in GRIDS
    }
    for mask in masks
  ]
  made = {
    "image": images,
    "row": np.array([10, 11, 12, 13, 14, 15, -1, -1], np.int32),
    "mask": (np.arange(ROWS) < REAL).astype(np.float32),
    "first": FIRST.astype(np.float32),
    "target": label,
    "target_mask": EXPLAINED.astype(np.float32),
    "label": label,
    "annotated": masks.any((1, 2)).astype(np.float32),
    "difficult": np.zeros(ROWS, np.float32),
    "annotations": jax.tree.map(lambda *x: np.stack(x), *rows),
  }
  return jax.tree.map(jnp.asarray, made)


def assert_counts(column, rows, expected, atol=1e-5):
  """The column holds the numbers of these rows, and NaN elsewhere."""
  np.testing.assert_array_equal(np.isnan(column), ~rows)
  np.testing.assert_allclose(column[rows], expected[rows], atol=atol)


@pytest.fixture(scope="module")
def located(graph):
  return localisation.localization(*graph, batch(), METHODS, True)


@pytest.fixture(scope="module")
def cams(graph):
  return localisation.maps(*graph, batch(), METHODS)[1]


def test_columns_are_the_metrics_in_pixels(located, cams):
  masks = jnp.asarray(object_masks())
  near = metrics.dilate(masks, TOLERANCE)
  for name in METHODS:
    cam = metrics.as_distribution(metrics.upsample(cams[name], 16, 16))
    for metric, expected in {
      "pointing_game": metrics.pointing_game(cam, near),
      "stochastic_pointing_game_exact": metrics.content_heatmap(cam, near),
      "content_heatmap": metrics.content_heatmap(cam, masks),
    }.items():
      assert_counts(located.columns[Key(metric, name)], LOCATED, expected)


def test_predictions_count_each_picture_once(model, located):
  made = batch()
  logits = model.classify(model.features(model.normalize(made["image"])))
  right = np.asarray(logits).argmax(-1) == np.asarray(made["label"])
  assert_counts(located.columns[Key("top1")], FIRST, right)
  assert located.totals[Key("top1")] == (right[FIRST].sum(), 5)


def test_padding_is_measured_nowhere(graph, located):
  other = localisation.localization(*graph, batch(1), METHODS, True)
  jax.tree.map(np.testing.assert_array_equal, located, other)
  for column in located.columns.values():
    assert np.isnan(column[REAL:]).all()
  attacked = [
    attacks.attacked(*graph, batch(filler), (8,), False).totals
    for filler in (0, 1)
  ]
  jax.tree.map(np.testing.assert_array_equal, *attacked)


def test_a_uniform_map_leaves_three_quarters_of_a_composite(graph, cams):
  made = batch() | {"cell": jnp.arange(ROWS) % 4}
  del made["annotations"]
  found = localisation.negative_quadrants(*graph, made, METHODS).columns
  key = Key("negative_quadrants_heatmap", "uniform")
  assert_counts(found[key], EXPLAINED, np.full(ROWS, 0.75))
  cam = metrics.as_distribution(cams["gradcam"])
  # The map's sum over each quadrant, row-major.
  quadrants = cam.reshape(ROWS, 2, 2, 2, 2).sum((2, 4)).reshape(ROWS, 4)
  own = quadrants[np.arange(ROWS), np.arange(ROWS) % 4]
  key = Key("negative_quadrants_heatmap", "gradcam")
  assert_counts(found[key], EXPLAINED, 1 - np.asarray(own), atol=1e-6)


def test_faithfulness_has_areas_by_row_and_curves_in_sum(graph, cams):
  some = {name: cams[name] for name in ("gradcam", "uniform")}
  found = faithful(*graph, batch(), some, {}, 4)
  for kind in ("insertion", "deletion"):
    area = np.asarray(found.columns[Key(f"{kind}_auc", "gradcam")])
    np.testing.assert_array_equal(np.isnan(area), ~EXPLAINED)
    total, weight = found.totals[Key(kind, "gradcam")]
    assert weight == 5 and total.shape == (5,)
    # The area of the mean curve is the mean of the areas.
    mean = np.trapezoid(np.asarray(total) / 5, dx=0.25)
    np.testing.assert_allclose(area[EXPLAINED].mean(), mean, rtol=1e-5)
  assert found.cams["gradcam"].shape == (ROWS, 4, 4)


def test_the_completeness_error_is_the_missed_share_of_scores(graph, cams):
  scores = np.array([3, -1, 0, 9, 4, 2, 9, 9], np.float32)
  found = faithful(
    *graph,
    batch(),
    {k: cams[k] for k in ("cmwp", "uniform")},
    {"cmwp": (jnp.asarray(scores * 0.75), jnp.asarray(scores))},
    2,
  )
  (key,) = [k for k in found.totals if k.metric == "completeness_error"]
  assert key == Key("completeness_error", "cmwp")
  # The rows that are explained: 3, -1, 0, 4 and 2.
  assert found.totals[key] == (2.5, 10)


def test_a_score_is_divided_once_for_the_map_and_its_sums(graph, monkeypatch):
  def refuse(*_):
    raise AssertionError("the map was computed beside its sums")

  name = "fullgrad"

  @jax.jit
  def explained(images, targets):
    return localisation.ALL_METHODS[name](evaluated(*graph), images, targets)

  expected = explained(batch()["image"], batch()["target"][:, None])[:, 0]
  only = dataclasses.replace(METHODS_OF_MODELS[name], explain=refuse)
  monkeypatch.setitem(METHODS_OF_MODELS, name, only)
  _, cams, sums = localisation.maps(*graph, batch(), (name, "uniform"))
  np.testing.assert_allclose(cams[name], expected, rtol=1e-4, atol=1e-6)
  (missed, score) = completeness(batch(), sums)[Key("completeness_error", name)]
  assert missed < 1e-4 * score


@pytest.mark.parametrize(
  "on_few, names",
  [(False, ["fgsm", "fgsm-within"]), (True, ["fgsm-few", "pgd"])],
)
def test_an_attack_is_counted_on_first_rows(graph, on_few, names):
  found = attacks.attacked(*graph, batch(), (0, 8), on_few)
  clean = classification.predictions(*graph, batch()).totals[Key("top1")]
  assert {key.attack for key in found.totals} == set(names)
  for name in names:
    assert found.totals[Key("top1", "", name, 0)] == clean
    total, weight = found.totals[Key("top1", "", name, 8)]
    column = np.asarray(found.columns[Key("top1", "", name, 8)])
    np.testing.assert_array_equal(np.isnan(column), ~FIRST)
    assert weight == 5 and np.nansum(column) == total
