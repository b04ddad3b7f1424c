"""What two models differ in: chance in pictures, chance in training."""

import pathlib

import numpy as np
import pytest

from gc_jax.method.metrics import Key
from gc_jax.report import artefact, differences, rows
from gc_jax.report.differences import Difference, Side
from gc_jax.report.rows import CASES, Rows
from gc_jax.report.tables import Cell, Row, Table, column
from tests.report import evaluations

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


def paired(ours, theirs, protocol="paper", seeds=((0, 1, 2), (0, 1, 2))):
  """What two models differ in, of rows by seed."""

  def model(members, own_seeds):
    return [
      artefact.Evaluated(
        pathlib.Path("nowhere"),
        evaluations.about(
          protocol=protocol, trained=evaluations.config(seed=seed)
        ),
        {},
        class_names=list("abcdefg"),
        rows=one,
      )
      for one, seed in zip(members, own_seeds, strict=False)
    ]

  models = {"theirs": model(theirs, seeds[1]), "ours": model(ours, seeds[0])}
  keys = (TOP1, PG, CH, Key("f1_overall"))
  wanted = {(Side("ours", key), Side("theirs", key)): key for key in keys}
  found, whys = differences.paired(models, wanted)
  assert whys == {}
  return {wanted[sides]: one for sides, one in found.items()}


@pytest.mark.parametrize("protocol", ["paper", "release", "corrected"])
def test_paired_intervals_are_those_of_pictures_drawn_for_both(protocol):
  """One picture after the other, with all pairs of it that both have."""
  ours, theirs = made(seed=1, shift=0.1), made(seed=2)
  found = paired([ours], [theirs], protocol)
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


def test_pairing_narrows_the_interval_of_models_that_find_the_same_hard():
  ours, theirs = made(seed=1, shift=0.05, noise=0.05), made(seed=2, noise=0.05)
  difference = paired([ours], [theirs])[CH]

  def width(one):
    sample = rows.sample("content_heatmap", one.columns[CH], one, "paper")
    low, high = rows.interval(rows.resampled({0: sample}, one.index, 1_000)[0])
    return 100 * (high - low)

  unpaired = np.hypot(width(ours), width(theirs))
  assert difference.high - difference.low < unpaired / 3
  # A model does not differ from itself, and the signs turn with the sides.
  assert paired([ours], [ours])[CH][:3] == (0, 0, 0)
  turned = paired([theirs], [ours])[CH]
  assert (turned.value, turned.low, turned.high) == pytest.approx(
    (-difference.value, -difference.high, -difference.low)
  )


def test_of_several_seeds_f1_is_the_mean_of_each_ones():
  """Not that of their counts together, which is another number."""
  key = Key("f1_overall")
  every = lambda one: of(key, one, np.arange(200), "paper")
  ours, theirs = [made(seed=1), made(seed=2)], [made(seed=3), made(seed=4)]
  for one in (ours[0], theirs[1]):  # a cautious one, which says little
    for name in CASES[:2]:  # of true and false positives
      one.columns[Key(name)][20:] = 0
  means = [np.mean([every(one) for one in own]) for own in (ours, theirs)]
  assert paired(ours, theirs)[key].value == pytest.approx(means[0] - means[1])


def _of_seeds(rng):
  """Rows of three seeds whose means differ, on pictures that are the same."""
  one = made(seed=1)
  columns = [one.columns[CH] + 0.05 * rng.normal() for _ in range(3)]
  return [one._replace(columns={CH: np.float32(own)}) for own in columns]


@pytest.mark.parametrize("own_seeds", [(0, 1, 2), (3, 4, 5)])
def test_the_interval_of_several_seeds_holds_their_chance(own_seeds):
  """No difference in truth: 95% of intervals hold 0, paired or not."""
  rng, hits, narrow = np.random.default_rng(0), 0, 0
  for _ in range(60):
    ours, theirs = _of_seeds(rng), _of_seeds(rng)
    one = paired(ours, theirs, seeds=(own_seeds, (0, 1, 2)))[CH]
    hits += not one.is_shown
    # What pictures alone would say, of which none differs here.
    narrow += abs(one.value) < 1e-6
    assert one.over_seeds
  assert hits >= 53 and narrow == 0


def test_seeds_that_both_have_are_pairs_and_a_single_one_tells_nothing():
  rng = np.random.default_rng(0)
  theirs = _of_seeds(rng)
  shift = lambda one: one._replace(
    columns={CH: one.columns[CH] + np.float32(0.02)}
  )
  ours = [shift(one) for one in theirs]
  width = lambda one: one.high - one.low
  same = paired(ours, theirs)[CH]
  others = paired(ours, theirs, seeds=((3, 4, 5), (0, 1, 2)))[CH]
  assert same.value == pytest.approx(2, abs=1e-3)
  assert width(same) < 0.01 < width(others)
  assert same.is_shown and not others.is_shown
  assert not paired(ours[:1], theirs[:1])[CH].over_seeds
  assert paired(theirs, theirs)[CH].over_seeds  # though nothing differs
  # The spread of the side with several is taken for both.
  assert width(paired(ours[:1], theirs)[CH]) > width(others)


@pytest.mark.parametrize(
  "ends, metric, verdict",
  [
    ((1, 3), "content_heatmap", "better"),
    ((-3, -1), "content_heatmap", "worse"),
    ((-3, -1), "negative_quadrants_heatmap", "better"),
    ((-1, 5), "content_heatmap", "no difference shown"),
    ((0, 5), "content_heatmap", "no difference shown"),
    ((0, 0), "top1", "no difference shown"),
    ((1, 3), "zero_map_frac", "differs"),
  ],
)
def test_better_is_said_where_the_interval_excludes_0(ends, metric, verdict):
  one = Difference(sum(ends) / 2, *ends, num_pairs=9)
  assert one.verdict(metric) == verdict


def test_a_best_number_is_bold_only_where_it_differs_from_every_other():
  cells = lambda value: {"top1": Cell(float(value))}
  table = Table(
    [column("top1")],
    [Row(name, "", cells(v)) for name, v in (("a", 80), ("b", 82), ("c", 70))],
  )
  key = Key("top1")
  wanted = differences.contests([table])
  assert wanted == [(Side("b", key), Side(name, key)) for name in "ac"]
  sure, chance = Difference(2, 1, 3, 9), Difference(2, -1, 5, 9)
  for last, is_bold in ((sure, True), (chance, False), (None, False)):
    found = {wanted[0]: sure, wanted[1]: last}
    found = {sides: one for sides, one in found.items() if one}
    (settled,) = differences.settled([table], found)
    row = settled.rows[1]
    assert settled.is_best(row, settled.columns[0]) == is_bold
    assert "Bold is the best" in settled.notes[-1]
