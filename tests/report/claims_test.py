"""The paper's claims: its own numbers agree; a planted effect is found."""

import pathlib

import numpy as np
import pytest

from gc_jax.method.metrics import EPSILONS, Key
from gc_jax.report import artefact, claims, exchanges, rows
from gc_jax.report.claims import CLAIMS, FAILS, HOLDS, NOT_SHOWN, TOO_FEW
from gc_jax.report.rows import CASES, Rows
from tests.report import evaluations

BY_CELL = "gradcam_elementwise"
METRICS = {
  name: Key(claims._METRICS[name], BY_CELL) for name in ("PG", "CH", "NQH")
}


def test_the_papers_numbers_agree_with_every_claim():
  """On average over its rows: ResNet50's GMP lowers CH against the text."""
  against = set()
  for claim in CLAIMS:
    differences = claim.of_paper()
    assert bool(differences) == bool(claim.tables)
    if differences:
      towards = np.mean(differences) * (1 if claim.rises else -1)
      if towards + claim.margin <= 0:
        against.add((claim.ours.model, claim.theirs.model, claim.metric))
  # "Improves over the baseline model on all evaluation metrics."
  assert against == {("GMP+GC", "Baseline", "negative_quadrants_heatmap")}
  assert len({claim.words for claim in CLAIMS}) == len(CLAIMS)
  first = CLAIMS[0]
  assert "at most 2 points" in first.words
  assert first.of_paper() == pytest.approx([-0.35, -1.69, -1.73])


def run(where, base, model, seed, shift, count=120):
  """An evaluation whose maps, and F1, are shifted by some points."""
  rng = np.random.default_rng([seed, *map(len, (where, base, model))])
  shared = np.random.default_rng(0)
  index = np.sort(shared.integers(0, count // 2, count))
  ease, chance = shared.random(count), rng.standard_normal
  luck = 0.01 * chance()
  columns = {
    METRICS["CH"]: 0.5 * ease + shift / 100 + luck + 0.02 * chance(count),
    METRICS["NQH"]: 0.5 * ease + 0.02 * chance(count),
    METRICS["PG"]: 0.5 * ease - shift / 100 + luck + 0.02 * chance(count),
    Key("top1"): ease + 0.02 * chance(count) > 0.3,
  }
  for epsilon in EPSILONS:
    columns[Key("top1", "", "fgsm", epsilon)] = ease > 0.6 + 0.1 * rng.random()
  columns = {key: np.float32(values) for key, values in columns.items()}
  results = {
    f"val/{key.name}": 100 * float(v.mean()) for key, v in columns.items()
  }
  consistency = "GC" in model
  name = base + "-gmp" * ("GMP" in model)
  return artefact.Evaluated(
    pathlib.Path("nowhere"),
    evaluations.about(
      architecture=name,
      consistency=consistency,
      trained=evaluations.config(
        seed=seed,
        model__name=name,
        loss__consistency_weight=25.0 * consistency,
      ),
    ),
    results,
    class_names=evaluations.CLASSES,
    rows=Rows(index, index % 3, np.array([""] * count), columns),
  )


def test_what_was_planted_is_found_and_nothing_else():
  """GC moves CH up and PG down by five points on both sets, and no more."""
  sets = {
    name: [
      run(name, base, model, seed, 5.0 * ("GC" in model))
      for base in ("resnet18", "resnet101")
      for model in ("Baseline", "GC", "GMP", "GMP+GC")
      for seed in range(5)
    ]
    for name in ("digits", "objects")
  }
  found = {one.claim: one for one in claims.tested(sets)}
  of = {
    (c.ours.model, c.theirs.model, c.metric): found[c]
    for c in CLAIMS
    if c.ours.method == c.theirs.method == BY_CELL and not c.architecture
  }
  ch = of["GC", "Baseline", "content_heatmap"]
  assert ch.overall.verdict == HOLDS and ch.overall.p < 0.01
  assert ch.overall.found.low < 5 < ch.overall.found.high
  assert {one.verdict for one in ch.by_set.values()} == {HOLDS}
  assert of["GC", "Baseline", "pointing_game"].overall.verdict == FAILS
  for sides in (("GC", "Baseline"), ("GMP+GC", "GMP")):
    nqh = of[*sides, "negative_quadrants_heatmap"]
    assert nqh.overall.verdict == NOT_SHOWN
  assert of["GMP+GC", "GC", "content_heatmap"].overall.verdict == NOT_SHOWN
  assert found[CLAIMS[0]].overall.verdict == HOLDS  # accuracy within 2 points
  unmeasured = [one for one in found.values() if one.overall is None]
  assert {one.claim.ours.method for one in unmeasured} >= {"cmwp", "pgd"}

  text = claims.to_markdown(list(found.values()))
  start = f"| {ch.claim.number} | GC has a higher CH than Baseline (Grad-CAM, "
  line = next(x for x in text.splitlines() if x.startswith(start))
  assert "Tables 1 and 2: +2.32, +3.37, +4.64, +0.80" in line
  assert " | < 0.0001 | < 0.0001 | holds | " in line
  own = of["GMP+GC", "GMP", "negative_quadrants_heatmap"]
  line = next(
    x for x in text.splitlines() if x.startswith(f"| {own.claim.number} | ")
  )
  assert f"] | {own.overall.found.p:.4f} | 1.0000 | not shown |" in line
  line = next(x for x in text.splitlines() if x.startswith(start))
  assert line.endswith("| holds | digits, objects |  |")
  assert "| not measured |" in text


def test_of_few_runs_it_says_that_they_could_not_show_it():
  """Two of one network on each side: p is 2/6 at best; of three sets, 0.01."""
  of = lambda name, seeds: [
    run(name, "resnet18", model, seed, 9.0 * ("GC" in model))
    for model in ("Baseline", "GC")
    for seed in range(seeds)
  ]
  verdicts = []
  for sets in (["a"], ["a", "bb", "ccc"]):
    found = claims.tested({name: of(name, 2) for name in sets})
    verdicts.append({one.overall.verdict for one in found if one.overall})
    alone = {j.verdict for one in found for j in one.by_set.values()}
    assert alone == {TOO_FEW}
  assert verdicts[0] == {TOO_FEW}
  # Few claims are measured here: the clearest may be shown.
  assert TOO_FEW not in verdicts[1]
  text = claims.to_markdown(found)
  assert " | too few runs |" not in text and " · too few runs |" in text


@pytest.mark.parametrize(
  "rises, margin, ends, p, verdict",
  [
    (True, 0.0, (1, 3), 0.01, HOLDS),
    (True, 0.0, (-3, -1), 0.01, FAILS),
    (True, 0.0, (-1, 3), 0.01, NOT_SHOWN),  # p and interval disagree
    (True, 0.0, (1, 3), 0.06, NOT_SHOWN),
    (False, 0.0, (-3, -1), 0.01, HOLDS),
    (False, 0.0, (1, 3), 0.01, FAILS),
    (True, 2.0, (-1, 1), 0.01, HOLDS),
    (True, 2.0, (-3, -1), 0.01, NOT_SHOWN),
    (True, 2.0, (-4, -3), 0.01, FAILS),
  ],
)
def test_a_verdict_takes_p_and_interval_together(
  rises, margin, ends, p, verdict, monkeypatch
):
  found = exchanges.Finding(sum(ends) / 2, *ends, p, least=1e-6)
  monkeypatch.setattr(exchanges, "compared", lambda *_: found)
  claim = CLAIMS[0]._replace(rises=rises, margin=margin)
  runs = exchanges.Stratum(np.zeros((1, 1)), np.zeros((1, 1)), "a")
  assert claims._judged({claim: [runs]})[claim].verdict == verdict


@pytest.mark.parametrize("metric", ["pointing_game", "f1_overall"])
@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_pseudo_values_have_the_mean_and_the_spread_of_the_number(
  metric, protocol
):
  """As the jackknife has it, which leaves out one picture at a time."""
  rng = np.random.default_rng(0)
  count = 300
  index = np.sort(rng.integers(0, 100, count))
  pairs = Rows(index, rng.integers(0, 3, count), np.array([""] * count), {})
  values = rng.random(count)
  if metric == "f1_overall":
    values = rng.poisson(1.0, (count, len(CASES))).astype(float)
  sample = lambda of, v: rows.sample(metric, v, of, protocol, 4)
  number = rows.mean(sample(pairs, values))
  pictures = np.unique(index)
  found = rows.pseudo_values(sample(pairs, values), pictures)
  assert found.mean() == pytest.approx(number)
  without = []
  for picture in pictures:
    kept = index != picture
    fewer = Rows(index[kept], pairs.target[kept], pairs.name[kept], {})
    without.append(rows.mean(sample(fewer, values[kept])))
  jackknife = len(pictures) * number - (len(pictures) - 1) * np.array(without)
  np.testing.assert_allclose(found, jackknife, atol=0.1 * np.std(jackknife))
