"""The pictures a person looks at, and how their maps depend on the weights.

The second asks whether maps depend on what the model learned. From the head
down, one stage after the other is initialised anew; a map that stays as it was
shows the picture, not the model.

Source: Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from gc_jax.attribution import randomization
from gc_jax.data.pairs import Maker
from gc_jax.evaluation import localisation, plan
from gc_jax.evaluation.ledger import Ledger
from gc_jax.inference.arrays import split
from gc_jax.method import metrics
from gc_jax.method.metrics import Key
from gc_jax.models import init_key
from gc_jax.report import logs
from gc_jax.report.gallery import RANKINGS, Example
from gc_jax.report.rows import CONFIDENCE
from gc_jax.runtime import parallel

# Row -> method -> stage -> map of the model randomised down to there.
Strips = dict[int, dict[str, dict[str, np.ndarray]]]
_EXAMPLES_PER_KIND = 4
_FIXED_EXAMPLES = 8


def gallery(
  planner: plan.Planner,
  ledger: Ledger,
  chosen: Mapping[str, Sequence[int]],
  methods: tuple[str, ...],
  *,
  with_composites: bool = False,
  strips: Strips | None = None,
) -> list[Example]:
  """Returns the chosen examples, kind -> rows, with their maps.

  Each may come with its composite, and with its `strips` from `sanity`.
  """
  kinds = [(kind, row) for kind, rows in chosen.items() for row in rows]
  rows = [row for _, row in kinds]
  names = planner.dataset.names
  beside: list[dict] = [{} for _ in rows]
  total = len(rows) * (1 + with_composites)
  with plan.showing("explaining the gallery", total) as shown:
    alone = _looks(
      planner, rows, planner.with_objects, methods, shown, judges=True
    )
    if with_composites:
      beside = [
        {
          "composite": look.batch["image"],
          "cell": int(look.batch["cell"]),
          "composite_maps": look.cams,
        }
        for look in _looks(planner, rows, planner.composite, methods, shown)
      ]
  return [
    Example(
      index=int(planner.pairs.index[row]),
      kind=kind,
      image=look.batch["image"],
      object_mask=look.batch["object_mask"],
      target=int(planner.pairs.target[row]),
      predicted=look.predicted,
      maps=look.cams,
      randomized=(strips or {}).get(row, {}) if kind == "fixed" else {},
      scores={
        metric: {
          method: float(100 * column[row])
          for method in methods
          if (column := ledger.columns.get(Key(metric, method))) is not None
          and not np.isnan(column[row])
        }
        for metric in ("content_heatmap", "negative_quadrants_heatmap")
      },
      name=names[planner.pairs.index[row]] if names else "",
      probability=float(look.probabilities[planner.pairs.target[row]]),
      predicted_probability=float(look.probabilities[look.predicted]),
      predicted_maps=look.predicted_cams,
      **more,
    )
    for (kind, row), look, more in zip(kinds, alone, beside, strict=True)
    # As squares a map may be empty that was not in a whole picture.
    if kind != "best" or look.cams[methods[0]].any()
  ]


class _Look(NamedTuple):
  """A pair's entries of the batch, what is predicted, its normalised maps."""

  batch: dict[str, np.ndarray | np.generic]
  predicted: int
  probabilities: Float[np.ndarray, "K"]
  cams: dict[str, np.ndarray]
  predicted_cams: dict[str, np.ndarray]  # empty if that is the class explained


def _looks(
  planner: plan.Planner,
  rows: Sequence[int],
  maker: Maker,
  methods: tuple[str, ...],
  shown: logs.Progress,
  model: nnx.Module | None = None,
  judges: bool = False,
) -> list[_Look]:
  """Returns pairs with their maps.

  Args:
    planner: of the pairs.
    rows: of them.
    maker: of their pictures.
    methods: of the maps.
    shown: says how far it is.
    model: another than the planner's.
    judges: whether a picture whose one class is not the predicted one comes
      with maps of that class too.
  """
  graph = planner.graph if model is None else split(model)
  size = parallel.divisible(plan.MAPS_AT_ONCE, planner.mesh)
  several = planner.dataset.multi_label
  to_probability = nnx.sigmoid if several else nnx.softmax
  found = []
  for share in plan.shares(planner.pairs, rows, maker, size):
    batch = parallel.to_devices(share.batch, planner.mesh)
    logits, cams, _ = localisation.maps(*graph, batch, methods)
    cams = {k: _normalized(cam) for k, cam in cams.items()}
    likely = to_probability(logits)
    instead = {}
    predicted = logits.argmax(-1).astype(batch["target"].dtype)
    wrong = parallel.fetch((predicted != batch["target"]) & (batch["row"] >= 0))
    if judges and not several and wrong.any():
      other = batch | {"target": predicted}
      _, instead, _ = localisation.maps(*graph, other, methods)
      instead = {k: _normalized(cam) for k, cam in instead.items()}
    batch, predicted, likely, cams, instead = parallel.fetch(
      (batch, predicted, likely, cams, instead)
    )
    batch.pop("annotations", None)
    for i in np.flatnonzero(batch["row"] >= 0):
      row = lambda tree, i=i: {k: v[i] for k, v in tree.items()}
      others = row(instead) if wrong[i] else {}
      found.append(
        _Look(row(batch), int(predicted[i]), likely[i], row(cams), others)
      )
    shown.advance(int((batch["row"] >= 0).sum()))
  return found


def _normalized(cams: Float[Array, "B h w"]) -> Float[Array, "B h w"]:
  """Returns maps that sum to 1, and zeros for empty ones."""
  empty = metrics.is_empty(cams)[:, None, None]
  return jnp.where(empty, 0.0, metrics.as_distribution(cams))


def spread(planner: plan.Planner, count: int) -> list[int]:
  """Returns rows of different pictures, evenly spread over the split."""
  rows = np.flatnonzero(planner.pairs.first & (planner.pairs.target >= 0))
  return plan.evenly(rows, count).tolist()


def surely_wrong(
  ledger: Ledger, candidates: Bool[np.ndarray, "N"]
) -> list[int]:
  """Returns the candidates whose class the model thinks the least likely.

  Of those classified wrongly: none where pictures show several classes.
  """
  top1 = ledger.columns.get(Key("top1"))
  confidence = ledger.columns.get(Key(CONFIDENCE))
  if top1 is None or confidence is None:
    return []
  rows = np.flatnonzero(candidates & (top1 == 0) & ~np.isnan(confidence))
  order = rows[np.argsort(confidence[rows], kind="stable")]
  return order[:_EXAMPLES_PER_KIND].tolist()


class Telling(NamedTuple):
  """The rows of a gallery."""

  ranked_by: str  # of `RANKINGS`; "" without a row
  chosen: dict[str, list[int]]  # by kind, see `Example`
  with_composites: bool  # whether each has one


def telling(planner: plan.Planner, ledger: Ledger, method: str) -> Telling:
  """Returns rows of pictures: best, typical, worst, fixed and wrong ones.

  They are ranked by a method's maps as far as these were measured, and only
  rows that were are shown: by content heatmap, else by negative quadrants
  heatmap, else by the probability of the class. An empty map is the worst,
  whatever a metric makes of it. `fixed` rows are spread evenly over the split,
  the same for every model.
  """
  nothing = np.full(ledger.num_rows, np.nan, np.float32)
  of = lambda metric, by=method: ledger.columns.get(Key(metric, by), nothing)
  outside = of("negative_quadrants_heatmap")
  scores = {
    "content_heatmap": (of("content_heatmap"), of("zero_map_frac")),
    "negative_quadrants_heatmap": (-outside, of("zero_composite_frac")),
    CONFIDENCE: (of(CONFIDENCE, ""), of("zero_map_frac")),
  }
  candidates = planner.pairs.first & (planner.pairs.target >= 0)
  with_composites = bool((candidates & ~np.isnan(outside)).any())
  if with_composites:
    candidates &= ~np.isnan(outside)
  for ranked_by in RANKINGS:
    score, is_empty = scores[ranked_by]
    rows = np.flatnonzero(candidates & ~np.isnan(score))
    if len(rows):
      break
  else:
    return Telling("", {}, False)
  score = np.where(is_empty > 0, -np.inf, score)
  order = rows[np.argsort(score[rows], kind="stable")]
  n = min(_EXAMPLES_PER_KIND, len(order))
  middle = (len(order) - n) // 2
  groups = {
    "best": [row for row in order[::-1][:n] if np.isfinite(score[row])],
    "typical": order[middle : middle + n],
    "worst": order[:n],
    "fixed": plan.evenly(rows, _FIXED_EXAMPLES),
    "wrong": surely_wrong(ledger, candidates),
  }
  chosen = {kind: list(map(int, group)) for kind, group in groups.items()}
  return Telling(ranked_by, chosen, with_composites)


def sanity(
  planner: plan.Planner, methods: tuple[str, ...], num_rows: int
) -> tuple[list[str], dict[str, list[float | None]], Strips]:
  """Returns how maps change as weights are randomised.

  Returns:
    The stages, from the head down; method -> mean over pictures of the rank
    correlation of the map after each stage with the trained model's, near 1 if
    it did not change, None if no picture has one; and the maps of the first and
    the last pair.
  """
  rows = spread(planner, num_rows)

  stages = list(randomization.stages(planner.model))
  correlations: dict[str, list[float | None]] = {name: [] for name in methods}
  # The first and the last are the same for any number of rows.
  strips = {rows[place]: {name: {} for name in methods} for place in (0, -1)}
  total = len(rows) * (1 + len(stages))
  with plan.showing("randomising weights", total) as shown:

    def maps(model=None):
      looks = _looks(planner, rows, planner.with_objects, methods, shown, model)
      return {m: np.stack([look.cams[m] for look in looks]) for m in methods}

    before = maps()
    for stage in stages:
      anew = randomization.randomized(planner.model, stage, init_key(0))
      after = maps(parallel.on_all_devices(anew, planner.mesh))
      for name in methods:
        mean = randomization.mean_correlation(before[name], after[name])
        correlations[name].append(mean)
        for place in (0, -1):
          strips[rows[place]][name][stage] = after[name][place]
  return stages, correlations, strips
