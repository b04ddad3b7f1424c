"""The pictures a person looks at: which, and with which maps."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from gc_jax.data import pairs as pair_rows
from gc_jax.evaluation import plan, programs
from gc_jax.evaluation.ledger import Ledger
from gc_jax.method import metrics
from gc_jax.method.metrics import Key
from gc_jax.report.artefact import Example
from gc_jax.runtime import parallel

_EXAMPLES_PER_KIND = 4
_FIXED_EXAMPLES = 8


def gallery(
  model: nnx.Module,
  planner: plan.Planner,
  ledger: Ledger,
  chosen: Mapping[str, Sequence[int]],
  methods: tuple[str, ...],
  mesh: jax.sharding.Mesh,
  *,
  with_composites: bool = False,
  strips: Mapping[int, Mapping[str, Mapping[str, np.ndarray]]] | None = None,
) -> list[Example]:
  """Returns the chosen examples with their maps.

  Args:
    model: in evaluation mode.
    planner: of the split.
    ledger: what was measured of its rows.
    chosen: kind of example -> rows.
    methods: keys of `METHODS`.
    mesh: a batch is divided along it.
    with_composites: whether each comes with its composite as well.
    strips: row -> its maps of models randomised.
  """
  kinds = [(kind, row) for kind, rows in chosen.items() for row in rows]
  rows = [row for _, row in kinds]

  def look(maker):
    return explained(model, planner.pairs, rows, maker, methods, mesh)

  alone = look(planner.with_objects())
  composites = (
    look(planner.composite()) if with_composites else [None] * len(rows)
  )
  found = []
  for (kind, row), one, composite in zip(kinds, alone, composites, strict=True):
    beside = {}
    if composite is not None:
      beside = {
        "composite": composite.batch["image"],
        "cell": int(composite.batch["cell"]),
        "composite_maps": composite.cams,
      }
    found.append(
      Example(
        index=int(planner.pairs.index[row]),
        kind=kind,
        image=one.batch["image"],
        object_mask=one.batch["object_mask"],
        target=int(planner.pairs.target[row]),
        predicted=one.predicted,
        maps=one.cams,
        randomized=(strips or {}).get(row, {}),
        scores=_scores(ledger, row, methods),
        **beside,
      )
    )
  return found


def _scores(ledger, row, methods) -> dict[str, dict[str, float]]:
  """Returns metric -> method -> percent of one row, where it was measured."""
  return {
    metric: {
      method: float(100 * column[row])
      for method in methods
      if (column := ledger.columns.get(Key(metric, method))) is not None
      and not np.isnan(column[row])
    }
    for metric in ("content_heatmap", "negative_quadrants_heatmap")
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
  """A pair, with its maps.

  Attributes:
    batch: its entries of the `PairBatch`.
    predicted: the class with the highest score.
    cams: method -> map, a distribution.
  """

  batch: dict[str, np.ndarray | np.generic]
  predicted: int
  cams: dict[str, np.ndarray]


def explained(
  model: nnx.Module,
  pairs: pair_rows.Pairs,
  rows: Sequence[int],
  maker: pair_rows.Maker,
  methods: tuple[str, ...],
  mesh: jax.sharding.Mesh,
) -> list[Explained]:
  """Returns some pairs with their maps.

  Args:
    model: in evaluation mode.
    pairs: of the split.
    rows: which of them, in this order.
    maker: makes them, without annotations.
    methods: keys of `ALL_METHODS`.
    mesh: a batch is divided along it.
  """
  process_index, process_count = parallel.process()
  graph = nnx.split(model)
  found = []
  for share in pair_rows.batches(
    pairs,
    rows,
    maker,
    parallel.divisible(plan.MAPS_AT_ONCE, mesh),
    process_index=process_index,
    process_count=process_count,
  ):
    batch = parallel.to_devices(share.batch, mesh)
    logits, cams = programs.maps(*graph, batch, methods)
    cams = {k: metrics.as_distribution(cam) for k, cam in cams.items()}
    batch, logits, cams = parallel.fetch((batch, logits, cams))
    for i in np.flatnonzero(batch["row"] >= 0):
      row = lambda tree, i=i: {k: v[i] for k, v in tree.items()}
      batch.pop("annotations", None)
      found.append(Explained(row(batch), int(logits[i].argmax()), row(cams)))
  return found


def spread(planner: plan.Planner, count: int) -> list[int]:
  """Returns rows of different pictures, evenly spread over the split."""
  rows = np.flatnonzero(planner.pairs.first & (planner.pairs.target >= 0))
  count = min(count, len(rows))
  return rows[np.linspace(0, len(rows) - 1, count).astype(int)].tolist()


def telling(
  planner: plan.Planner, ledger: Ledger, method: str
) -> dict[str, list[int]]:
  """Returns the best, typical and worst rows by a method, and fixed ones."""
  outside = ledger.columns[Key("negative_quadrants_heatmap", method)]
  candidates = planner.pairs.first & ~np.isnan(outside)
  return chosen_rows(candidates, ledger.columns[Key("content_heatmap", method)])


def chosen_rows(
  candidates: Bool[np.ndarray, "N"], content: Float[np.ndarray, "N"]
) -> dict[str, list[int]]:
  """Returns which rows to show, by kind.

  Args:
    candidates: which may be shown.
    content: content heatmap; NaN where nothing is annotated. Without
      annotation a row is neither good nor bad: where none has any, all are
      shown.

  Returns:
    `best`, `typical` and `worst` by content heatmap, and `fixed`: rows spread
    evenly over the split, the same for every model.
  """
  annotated = candidates & ~np.isnan(content)
  rows = np.flatnonzero(annotated if annotated.any() else candidates)
  order = rows[np.argsort(content[rows], kind="stable")]
  n = min(_EXAMPLES_PER_KIND, len(order))
  middle = (len(order) - n) // 2
  fixed = np.linspace(0, len(order) - 1, min(_FIXED_EXAMPLES, len(order)))
  groups = {
    "best": order[::-1][:n],
    "typical": order[middle : middle + n],
    "worst": order[:n],
    "fixed": rows[fixed.astype(int)],
  }
  return {kind: [int(i) for i in group] for kind, group in groups.items()}
