"""What the paper claims, and whether some models show it.

A claim says that one model's number is higher, or lower, than another's. It is
tested on every set of pictures and on all of them together, over architectures:
a mean of differences, each of them weighing the same. How: see
`report.exchanges`. The p-values of a list are corrected by Holm.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gc_jax.attribution import title_of
from gc_jax.method.metrics import ATTACKS, EPSILONS, Key, accuracy
from gc_jax.models import without_gmp
from gc_jax.report import describe, exchanges, formats, paper, rows
from gc_jax.report.artefact import Evaluated
from gc_jax.report.exchanges import Finding, Stratum
from gc_jax.report.rows import Rows

HOLDS, FAILS = "holds", "does not"
NOT_SHOWN, NOT_MEASURED = "not shown", "not measured"
TOO_FEW = "too few runs"  # even the clearest difference would not be shown
_LEVEL = 0.05
# Points of accuracy: the most that a model of Table 1 loses, which the text
# calls no significant loss.
_MARGIN = 2.0
_BY_CELL, _PLAIN = "gradcam_elementwise", "gradcam"
_ACCURACY = "accuracy"  # top-1, or F1 where a picture shows several classes
_METRICS = {
  "accuracy": _ACCURACY,
  "F1-PerClass": "f1_per_class",
  "F1-Overall": "f1_overall",
  "PG": "pointing_game",
  "SPG": "stochastic_pointing_game_exact",
  "CH": "content_heatmap",
  "NQH": "negative_quadrants_heatmap",
}


class Number(NamedTuple):
  """A number of a model."""

  model: str  # as the paper calls it
  method: str = ""  # whose maps; of no maps, an attack or ""


class Claim(NamedTuple):
  """One number is higher, or lower, than another."""

  number: int
  ours: Number
  theirs: Number
  metric: str  # of `METRICS`, or `_ACCURACY`
  rises: bool
  margin: float = 0.0  # points that ours may fall short by
  tables: tuple[int, ...] = ()  # of the paper; none: ours to ask
  architecture: str = ""  # how the names begin that it is about; "" = all

  @property
  def words(self) -> str:
    """Returns the claim as a sentence without a period."""
    metric = {v: k for k, v in _METRICS.items()}[self.metric]
    ours, theirs = self.ours.model, self.theirs.model
    if self.margin:
      return (
        f"{ours} costs at most {self.margin:g} points of {metric} against "
        f"{theirs}"
      )
    attack = ATTACKS.get(self.ours.method)
    title = attack.title if attack else title_of(self.ours.method)
    said = f"{ours} has a {'higher' if self.rises else 'lower'} {metric} "
    if ours == theirs:
      said += f"by {title} than by {title_of(self.theirs.method)}"
      title = ""
    else:
      said += f"than {theirs}"
    if self.architecture:
      network = describe.architecture_title(self.architecture)
      title = ", ".join(filter(None, (network, title)))
    return f"{said} ({title})" if title else said

  def of_paper(self) -> list[float]:
    """Returns the paper's own differences, in its order."""
    found = []
    for number in self.tables:
      of_models = paper.TABLES[number].rows()
      for name in dict.fromkeys(name for name, _ in of_models):
        sides = [
          of_models.get((name, side.model)) for side in (self.ours, self.theirs)
        ]
        if name.startswith(self.architecture) and all(sides):
          ours, theirs = (
            _of_paper(cells, number, self.metric, side.method)
            for cells, side in zip(sides, (self.ours, self.theirs), strict=True)
          )
          found.append(ours - theirs)
    return found


def _of_paper(cells, number: int, metric: str, method: str) -> float:
  if number == 6:
    return float(np.mean([cell.mean for cell in cells.values()]))
  if number == 5:
    return cells[f"{metric} {method}"].mean
  if metric == _ACCURACY:
    metric = "top1" if "top1" in cells else "f1_overall"
  return cells[metric.removesuffix("_exact")].mean


def _claims() -> Iterable[Claim]:
  number = 0
  for (ours, theirs), methods, metrics, tables, architecture in _LINES:
    own, other = (methods * 2)[:2]
    for word in metrics.split():
      number += 1
      yield Claim(
        number,
        Number(ours, own),
        Number(theirs, other),
        _METRICS[word[1:]],
        word[0] != "-",
        _MARGIN if word[0] == "~" else 0.0,
        tables,
        architecture,
      )


_GC, _GMP = ("GC", "Baseline"), ("GMP", "Baseline")
_BOTH, _ON_GMP, _ON_GC = (
  ("GMP+GC", "Baseline"),
  ("GMP+GC", "GMP"),
  ("GMP+GC", "GC"),
)
# Of the paper's tables and its text: (ours, theirs), explained or attacked how,
# what is higher (+), lower (-) or not much lower (~), tables, architecture. All
# pairs of rows and metrics whose direction is that of the text ("improves over
# the baseline model on all evaluation metrics", which its own NQH of GMP+GC
# does not), or else the same in every row of the tables. Which Grad-CAM those
# are of is uncertain with a maximum, so both are claimed. cMWP's NQH is that of
# a uniform map for every model, and no claim.
_LINES = (
  (_GC, ("",), "~accuracy", (1,), ""),
  (_GMP, ("",), "~accuracy", (1,), ""),
  (_BOTH, ("",), "~accuracy", (1,), ""),
  (_GC, ("",), "+F1-PerClass +F1-Overall", (2,), ""),
  (_GMP, ("",), "+F1-PerClass +F1-Overall", (2,), ""),
  (_BOTH, ("",), "+F1-PerClass +F1-Overall", (2,), ""),
  (_ON_GMP, ("",), "+F1-PerClass +F1-Overall", (2,), ""),
  (_GC, (_BY_CELL,), "+PG +SPG +CH -NQH", (1, 2), ""),
  *(
    line
    for method in (_BY_CELL, _PLAIN)
    for line in (
      (_GMP, (method,), "+SPG +CH +NQH", (1, 2), ""),
      (_BOTH, (method,), "+PG +SPG +CH -NQH", (1, 2), ""),
      (_ON_GMP, (method,), "+PG +SPG +CH -NQH", (1, 2), ""),
      (_ON_GC, (method,), "+SPG +CH +NQH", (1, 2), ""),
    )
  ),
  (_GC, ("cmwp",), "+PG +SPG +CH", (3,), ""),
  (_GMP, ("cmwp",), "+PG +SPG +CH", (3,), ""),
  (_BOTH, ("cmwp",), "+PG +SPG +CH", (3,), ""),
  (_ON_GMP, ("cmwp",), "+PG +SPG +CH", (3,), ""),
  (_GC, ("fullgrad",), "+PG +SPG +CH -NQH", (4,), ""),
  (_GMP, ("fullgrad",), "+PG +SPG +CH -NQH", (4,), ""),
  (_BOTH, ("fullgrad",), "+PG +SPG +CH -NQH", (4,), ""),
  (_ON_GMP, ("fullgrad",), "+PG +SPG -NQH", (4,), ""),
  (_GC, (_PLAIN,), "+PG +CH", (5,), "alexnet"),
  (_GC, (_BY_CELL,), "+PG +CH", (5,), "alexnet"),
  (("Baseline", "Baseline"), (_BY_CELL, _PLAIN), "+PG +CH", (5,), "alexnet"),
  (("GC", "GC"), (_BY_CELL, _PLAIN), "+PG +CH", (5,), "alexnet"),
  (_GMP, ("fgsm",), "+accuracy", (6,), ""),
  (_ON_GMP, ("fgsm",), "+accuracy", (6,), ""),
  (_BOTH, ("fgsm",), "+accuracy", (6,), ""),
  # Not the paper's: a maximum may only hide gradients from a single step.
  (_GMP, ("pgd",), "+accuracy", (), ""),
  (_BOTH, ("pgd",), "+accuracy", (), ""),
)
CLAIMS = tuple(_claims())


class Judged(NamedTuple):
  """What was found of a claim."""

  found: Finding
  p: float  # corrected for the number of claims
  verdict: str


class Tested(NamedTuple):
  """A claim with what was found, of all sets together and of each."""

  claim: Claim
  overall: Judged | None  # None: not measured
  by_set: Mapping[str, Judged]


def tested(sets: Mapping[str, Sequence[Evaluated]]) -> list[Tested]:
  """Returns what evaluations show of every claim.

  Args:
    sets: name to evaluations of one data set; those of one architecture and of
      one name in the paper are repetitions by seed.

  Raises:
    ValueError: evaluations of a set are of other pictures.
  """
  of_sets = {name: _strata(name, own) for name, own in sets.items()}
  every = {
    claim: [one for of in of_sets.values() for one in of[claim]]
    for claim in CLAIMS
  }
  overall = _judged(every)
  by_set = {name: _judged(of) for name, of in of_sets.items()}
  return [
    Tested(
      claim,
      overall.get(claim),
      {name: own[claim] for name, own in by_set.items() if claim in own},
    )
    for claim in CLAIMS
  ]


def _judged(
  strata: Mapping[Claim, Sequence[Stratum]],
) -> dict[Claim, Judged]:
  """Returns what was found of each claim that has strata, after Holm."""
  found = {
    claim: exchanges.compared(
      own, claim.margin if claim.rises else -claim.margin
    )
    for claim, own in strata.items()
    if own
  }
  own = [one.p for one in found.values()]
  adjusted = exchanges.holm(own)
  judged = {}
  for i, (claim, one) in enumerate(found.items()):
    ends = (one.low, one.high) if claim.rises else (-one.high, -one.low)
    low, high = (end + claim.margin for end in ends)
    verdict = NOT_SHOWN
    if adjusted[i] < _LEVEL and not low <= 0 <= high:
      verdict = HOLDS if low > 0 else FAILS
    elif exchanges.holm([*own[:i], one.least, *own[i + 1 :]])[i] >= _LEVEL:
      verdict = TOO_FEW
    judged[claim] = Judged(one, adjusted[i], verdict)
  return judged


# Numbers of pictures.


def _strata(
  name: str, evaluations: Sequence[Evaluated]
) -> dict[Claim, list[Stratum]]:
  """Returns the strata of each claim, of one set."""
  runs: dict[tuple[str, str], dict[str, Evaluated]] = {}
  for one in evaluations:
    architecture = without_gmp(one.about.architecture)
    (model, *_) = describe.paper_names(one.about)
    seed = str(one.about.trained_with("seed"))
    runs.setdefault((architecture, model), {})[seed] = one
  keys = [key for claim in CLAIMS for key in _columns(claim, evaluations)]
  read, why = rows.of_seeds(evaluations, list(dict.fromkeys(keys)))
  if read is None:
    raise ValueError(f"Runs of {name} must be of the same pictures: {why}")
  rows_of = dict(zip(map(id, evaluations), read, strict=True))
  found: dict[Claim, list[Stratum]] = {claim: [] for claim in CLAIMS}
  for claim, own in found.items():
    for architecture in dict.fromkeys(each for each, _ in runs):
      both = [
        runs.get((architecture, side.model), {})
        for side in (claim.ours, claim.theirs)
      ]
      seeds = sorted(both[0].keys() & both[1].keys())
      values = [
        [
          _of_pictures(of[s], rows_of[id(of[s])], claim.metric, side.method)
          for s in seeds
        ]
        for of, side in zip(both, (claim.ours, claim.theirs), strict=True)
      ]
      known = all(v is not None for side in values for v in side)
      if architecture.startswith(claim.architecture) and seeds and known:
        of_one = claim.ours.model == claim.theirs.model
        sides = (np.stack(side) for side in values)
        own.append(Stratum(*sides, name, of_one))
  return found


def _keys(one: Evaluated, metric: str, method: str) -> list[Key]:
  """Returns the numbers whose mean a claim is about."""
  if metric == _ACCURACY:
    metric = accuracy(one.about.multi_label)
  if method in ATTACKS:
    return [Key(metric, "", method, epsilon) for epsilon in EPSILONS]
  return [Key(metric, method)]


def _columns(claim: Claim, evaluations: Sequence[Evaluated]) -> list[Key]:
  return [
    part
    for side in (claim.ours, claim.theirs)
    for key in _keys(evaluations[0], claim.metric, side.method)
    for part in rows.parts(key)
  ]


def _of_pictures(
  one: Evaluated, own: Rows, metric: str, method: str
) -> Float[np.ndarray, "P"] | None:
  """Returns numbers in percent whose mean is the result; None if it has none.

  Of a ratio of sums, what each picture does to it (its pseudo-value, to first
  order). A number that rows.npz does not have is the same for every picture.
  """
  pictures = np.unique(own.index)
  found = []
  for key in _keys(one, metric, method):
    if one.number(key) is None:
      return None
    if key.metric == "f1_per_class":
      found.append(np.full(len(pictures), one.number(key) / 100))
      continue
    values = rows.column(own, key)
    if values is None:
      return None
    made = rows.sample(
      key.metric, values, own, one.about.protocol, len(one.class_names)
    )
    found.append(rows.pseudo_values(made, pictures))
  return 100 * np.mean(found, 0)


# In words.


def to_markdown(found: Sequence[Tested]) -> str:
  """Returns the list of claims, and what each set says, as GitHub tables."""
  sets = list(dict.fromkeys(name for one in found for name in one.by_set))
  lines = [
    [
      *("#", "claim", "paper", "difference", "p by itself", "p", "verdict"),
      *("holds on", "not on"),
    ]
  ]
  of_sets = [["#", *sets]]
  for one in found:
    claim, of = one.claim, one.by_set
    on = [
      ", ".join(name for name in sets if name in of and of[name].verdict == v)
      for v in (HOLDS, FAILS)
    ]
    number = str(claim.number)
    lines.append([number, claim.words, _of_tables(claim)])
    lines[-1] += [*_in_words(one.overall), *on]
    of_sets.append([number])
    for difference, _, p, verdict in (_in_words(of.get(name)) for name in sets):
      said = [difference, p and f"p {p}", verdict]
      of_sets[-1].append(" · ".join(filter(None, said)))
  return formats.render("claims.md", claims=lines, of_sets=of_sets)


def _of_tables(claim: Claim) -> str:
  if not claim.tables:
    return "not asked"
  named = " and ".join(map(str, claim.tables))
  numbers = ", ".join(f"{one:+.2f}" for one in claim.of_paper())
  return f"Table{'s' * (len(claim.tables) > 1)} {named}: {numbers}"


def _in_words(one: Judged | None) -> list[str]:
  """Returns the difference with its interval, p by itself, p, the verdict."""
  if one is None:
    return ["", "", "", NOT_MEASURED]
  value, low, high, *_ = one.found
  ps = ("< 0.0001" if p < 1e-4 else f"{p:.4f}" for p in (one.found.p, one.p))
  return [f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", *ps, one.verdict]
