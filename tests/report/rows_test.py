"""Numbers of pairs: their file, and what two models differ in."""

import numpy as np
import pytest

from gc_jax.method.metrics import Key
from gc_jax.report import rows
from gc_jax.report.rows import CASES, Rows

TOP1 = Key("top1")
PG = Key("pointing_game", "gradcam")
CH = Key("content_heatmap", "gradcam")
CLASSES = 7  # of which the pairs show five


def made(count=200, seed=0, shift=0.0, noise=0.1):
  """Rows of pairs, one to three a picture; what is hard is so for all."""
  shared, own = np.random.default_rng(0), np.random.default_rng(seed)
  index = np.sort(shared.integers(0, count // 2, count))
  target = shared.integers(0, 5, count)
  ease = shared.random(count) + shift
  columns = {CH: ease + noise * own.standard_normal(count)}
  columns[PG] = ease + noise * own.standard_normal(count) > 0.5
  columns[TOP1] = ease + noise * own.standard_normal(count) > 0.3
  for name, mean in zip(CASES, (2, 1 - shift, 1 - shift), strict=True):
    columns[Key(name)] = own.poisson(mean, count)
  columns = {key: np.float32(values) for key, values in columns.items()}
  for key in (CH, PG):
    columns[key][own.random(count) < 0.1] = np.nan
  return Rows(index, target, np.array([""] * count), columns)


def of(key, one, drawn, protocol):
  """The number of some pairs, in percent, from its definition."""
  if key.metric == "f1_overall":
    hits, alarms, misses = (
      one.columns[Key(name)][drawn].sum(dtype=float) for name in CASES
    )
    return 100 * 2 * hits / (2 * hits + alarms + misses)
  values, target = one.columns[key][drawn], one.target[drawn]
  if key != PG or protocol == "paper":
    return 100 * values.mean(dtype=float)
  means = [values[target == k].mean(dtype=float) for k in np.unique(target)]
  return 100 * (
    np.sum(means) / CLASSES if protocol == "release" else np.mean(means)
  )


@pytest.mark.parametrize("protocol", ["paper", "release", "corrected"])
def test_paired_intervals_are_those_of_pictures_drawn_for_both(protocol):
  """One picture after the other, with all pairs of it that both have."""
  ours, theirs = made(seed=1, shift=0.1), made(seed=2)
  found = rows.paired(ours, theirs, protocol, CLASSES)
  assert set(found) == {TOP1, PG, CH, Key("f1_overall")}
  pictures = np.unique(ours.index)
  rng = np.random.default_rng(7)
  for key, one in found.items():
    there = np.ones(200, bool)
    if key in (PG, CH):
      there = ~np.isnan(ours.columns[key] + theirs.columns[key])
    places = {p: np.flatnonzero((ours.index == p) & there) for p in pictures}

    def less(drawn, key=key):
      return of(key, ours, drawn, protocol) - of(key, theirs, drawn, protocol)

    assert one.value == pytest.approx(less(np.flatnonzero(there)))
    assert one.num_pairs == there.sum()
    drawn = [
      less(
        np.concatenate([places[p] for p in rng.choice(pictures, len(places))])
      )
      for _ in range(1_000)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    # Two bootstraps of 1,000 agree on a quantile to a few percent.
    ends = pytest.approx((low, high), abs=0.12 * (high - low))
    assert (one.low, one.high) == ends


def test_the_release_counts_no_class_0_because_few_pairs_were_measured():
  """Of 100 classes with a picture each, 20 pairs; two classes have none."""
  values = np.full(98, np.nan)
  values[:20] = 1.0
  pairs = Rows(np.arange(98), np.arange(98), np.array([""] * 98), {})
  one = rows.sample("pointing_game", values, pairs, "release", 100)
  assert rows.mean(one) == pytest.approx(0.98)
  resampled = rows.resampled({"a": one}, pairs.index, 50)["a"]
  np.testing.assert_allclose(resampled, 0.98)


def test_pairing_narrows_the_interval_of_models_that_find_the_same_hard():
  ours, theirs = made(seed=1, shift=0.05, noise=0.05), made(seed=2, noise=0.05)
  difference = rows.paired(ours, theirs, "paper", CLASSES)[CH]

  def width(one):
    sample = rows.sample("content_heatmap", one.columns[CH], one, "paper")
    low, high = rows.interval(rows.resampled({0: sample}, one.index, 1_000)[0])
    return 100 * (high - low)

  unpaired = np.hypot(width(ours), width(theirs))
  assert difference.high - difference.low < unpaired / 3
  # A model does not differ from itself, and the signs turn with the sides.
  assert rows.paired(ours, ours, "paper", CLASSES)[CH][:3] == (0, 0, 0)
  turned = rows.paired(theirs, ours, "paper", CLASSES)[CH]
  assert (turned.value, turned.low, turned.high) == pytest.approx(
    (-difference.value, -difference.high, -difference.low)
  )


def test_the_file_holds_arrays_of_one_length_by_name(tmp_path):
  one = made()
  rows.save(tmp_path, one)
  with np.load(tmp_path / "rows.npz") as file:
    there = dict(file)
  assert {"index", "target", "name", "top1", "gradcam/pointing_game"} < set(
    there
  )
  assert all(len(values) == 200 for values in there.values())
  read = rows.load(tmp_path, [PG, Key("content_heatmap", "nothing")])
  assert list(read.columns) == [PG]
  np.testing.assert_array_equal(read.columns[PG], one.columns[PG])
  assert rows.load(tmp_path / "older", [PG]) is None
  (tmp_path / "rows.npz").write_bytes(b"{")
  with pytest.raises(ValueError, match=r"rows\.npz must be .*Evaluate again"):
    rows.load(tmp_path, [PG])


def test_seeds_are_averaged_where_all_have_a_number(tmp_path):
  seeds = [made(seed=seed) for seed in (1, 2)]
  folders = [tmp_path / "a", tmp_path / "b"]
  for folder, one in zip(folders, seeds, strict=True):
    rows.save(folder, one)
  mean, why = rows.load_mean(folders, [CH, TOP1])
  assert why == ""
  expected = (seeds[0].columns[CH] + seeds[1].columns[CH].astype(float)) / 2
  np.testing.assert_array_equal(mean.columns[CH], expected)
  others = seeds[0]._replace(target=seeds[0].target[::-1])
  rows.save(folders[1], others)
  for like, among in ((None, folders), (seeds[0], folders[1:])):
    none, why = rows.load_mean(among, [CH], like)
    assert none is None and "b is of other images or classes" in why
