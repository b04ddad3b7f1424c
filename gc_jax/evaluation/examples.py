"""The pictures a person looks at: which, and with which maps."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from gc_jax import metrics, parallel
from gc_jax.data import pairs as pair_rows
from gc_jax.evaluation import plan, programs
from gc_jax.evaluation.ledger import Ledger
from gc_jax.metrics import Key
from gc_jax.report.gallery import GalleryExample

_EXAMPLES_PER_KIND = 4
_FIXED_EXAMPLES = 8


def gallery(
  model: nnx.Module,
  planner: plan.Planner,
  ledger: Ledger,
  method: str,
  mesh: jax.sharding.Mesh,
) -> list[GalleryExample]:
  """Returns the pictures and maps of the chosen examples."""
  content = ledger.columns[Key("content_heatmap", method)]
  outside = ledger.columns[Key("negative_quadrants_heatmap", method)]
  candidates = planner.pairs.first & ~np.isnan(outside)
  chosen = chosen_rows(candidates, content)
  kinds = [(kind, row) for kind, rows in chosen.items() for row in rows]
  rows = [row for _, row in kinds]
  look = lambda maker: explained(
    model, planner.pairs, rows, maker, (method,), mesh
  )
  alone, together = look(planner.with_objects()), look(planner.composite())
  return [
    GalleryExample(
      index=int(planner.pairs.index[row]),
      kind=kind,
      image=picture.batch["image"],
      object_mask=picture.batch["object_mask"],
      target=int(planner.pairs.target[row]),
      predicted=picture.predicted,
      cam=picture.cams[method],
      # 0 where nothing is annotated.
      content_heatmap=float(100 * np.nan_to_num(content[row])),
      composite=composite.batch["image"],
      composite_cam=composite.cams[method],
      cell=int(composite.batch["cell"]),
      negative_quadrants_heatmap=float(100 * outside[row]),
    )
    for (kind, row), picture, composite in zip(
      kinds, alone, together, strict=True
    )
  ]


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
