"""Sums of the map metrics: per pair, padded, split, and of control maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax import metrics
from gc_jax.evaluators import localization
from tests.evaluators import batches

PROTOCOL = localization.Protocol(tolerance_px=15.0, spg_samples=20, spg_runs=3)
SIDE = 32
sums = jax.jit(localization.sums, static_argnums=3)


def split(count=6, pairs=2):
  """Maps and objects of some images, the last pair of each third absent."""
  rng = np.random.default_rng(0)
  boxes = np.zeros((count, pairs, SIDE, SIDE), bool)
  for pair in np.ndindex(count, pairs):
    top, left = rng.integers(0, SIDE - 8, 2)
    boxes[pair][top : top + 7, left : left + 5] = True
  target_mask = np.ones((count, pairs), np.float32)
  target_mask[::3, 1] = 0
  boxes[::3, 1] = False
  return {
    "cam": rng.random((count, pairs, 4, 4)).astype(np.float32) ** 4,
    "target_mask": target_mask,
    "object_mask": boxes,
  }


def evaluated(batch, protocol=PROTOCOL, seed=0):
  cam = batch.pop("cam")
  return sums(
    {"a": cam, "uniform": jnp.ones_like(cam)},
    batch,
    jax.random.key(seed),
    protocol,
  )


def whole(rows):
  (batch,) = batches.cut(rows, (6,), 6)
  return batch


@pytest.fixture(scope="module")
def results():
  totals, content = evaluated(whole(split()))
  return localization.summarize(totals), content


def test_every_metric_is_the_mean_over_annotated_pairs(results):
  results, content = results
  rows = split()
  counted = rows["target_mask"] > 0
  assert results["num_pairs"] == counted.sum() == 10
  cam = metrics.as_distribution(
    metrics.upsample(jnp.asarray(rows["cam"]), SIDE, SIDE)
  )
  mask = jnp.asarray(rows["object_mask"])
  # 15 pixels of 224 are 2.14 of 32.
  near = metrics.dilate(mask, 15 * SIDE / 224)
  for name, values in {
    "content_heatmap": metrics.content_heatmap(cam, mask),
    "stochastic_pointing_game_exact": metrics.content_heatmap(cam, near),
    "pointing_game": metrics.pointing_game(cam, near),
  }.items():
    mean = 100 * np.asarray(values)[counted].mean()
    assert results[f"a/{name}"] == pytest.approx(mean, rel=1e-5)
  np.testing.assert_allclose(
    content["a"], metrics.content_heatmap(cam, mask), atol=1e-6
  )
  assert (
    results["a/content_heatmap"] < results["a/stochastic_pointing_game_exact"]
  )


def test_the_uniform_map_scores_the_masks_share(results):
  results, _ = results
  share = 100 * 7 * 5 / SIDE**2
  assert results["uniform/content_heatmap"] == pytest.approx(share, rel=1e-5)


def test_the_stochastic_game_is_given_as_mean_and_deviation_over_runs():
  rows = whole(split())
  protocol = localization.Protocol(spg_samples=2_000, spg_runs=5)
  totals, _ = evaluated(rows, protocol)
  runs = 100 * np.asarray(totals["a/stochastic_pointing_game"][0]) / 10
  assert runs.shape == (5,)
  results = localization.summarize(totals)
  name = "a/stochastic_pointing_game"
  assert results[name] == pytest.approx(runs.mean())
  assert results[f"{name}_std"] == pytest.approx(runs.std(ddof=1))
  # 10 pairs x 2,000 points x 5 runs: at most 0.5 / sqrt(100,000) a point.
  assert abs(results[name] - results[f"{name}_exact"]) < 4 * 0.16


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (4, 2)])
def test_batches_and_padding_change_nothing(sizes):
  """But for the random points, whose keys differ from batch to batch."""
  expected, _ = evaluated(whole(split()))
  parts = [evaluated(batch)[0] for batch in batches.cut(split(), sizes, 6)]
  totals = batches.added(parts)
  drawn = {name for name in totals if name.endswith("stochastic_pointing_game")}
  assert len(drawn) == 2
  for name in drawn:
    assert totals[name][1] == expected[name][1]
  keep = lambda sums: {
    k: v for k, v in sums.items() if k not in drawn | {"num_pairs"}
  }
  batches.assert_totals_close(keep(totals), keep(expected))
  assert localization.summarize(totals)["num_pairs"] == 10


def test_a_pair_without_annotated_pixels_is_left_out():
  rows = split()
  rows["object_mask"][1, 0] = False
  totals, _ = evaluated(whole(rows))
  assert localization.summarize(totals)["num_pairs"] == 9
  assert totals["a/content_heatmap"][1] == 9


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_empty_maps_are_counted_and_score_as_uniform_ones(value):
  rows = split()
  counted = rows["target_mask"] > 0
  rows["cam"][:] = value
  results = localization.summarize(evaluated(whole(rows))[0])
  assert results["a/zero_map_frac"] == 1
  assert results["uniform/zero_map_frac"] == 0
  for name in ("content_heatmap", "stochastic_pointing_game_exact"):
    assert results[f"a/{name}"] == pytest.approx(
      results[f"uniform/{name}"], rel=1e-6
    )
  rows["cam"][counted.nonzero()[0][0]] = 1.0
  results = localization.summarize(evaluated(whole(rows))[0])
  assert 0 < results["a/zero_map_frac"] < 1


def test_nothing_annotated_gives_zeros_not_nan():
  rows = split()
  rows["target_mask"][:] = 0
  results = localization.summarize(evaluated(whole(rows))[0])
  assert results["num_pairs"] == 0
  assert np.isfinite(list(results.values())).all()
