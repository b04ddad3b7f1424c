"""The evaluations of a training run, and the pictures a person looks at."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from gc_jax import data, measure, metrics, parallel, passes
from gc_jax import step as steps
from gc_jax.data import pairs as pair_rows
from gc_jax.data import pipeline
from gc_jax.evaluators import boxes, classification, robustness, summary
from gc_jax.evaluators.ledger import Ledger
from gc_jax.report import files, gallery
from gc_jax.report.gallery import GalleryExample
from gc_jax.state import TrainState

_EXAMPLES_PER_KIND = 4
_FIXED_EXAMPLES = 8
_POOLED = ("true_positives", "false_positives", "false_negatives")


class Evaluation:
  """The evaluations of one run: a quick one while it trains, a full one after.

  Composites and random points are the same for every run and state, so that
  two results differ by their models alone.

  Args:
    config: resolved.
    graphdef: structure of the model.
    mesh: the batch is divided along it.
  """

  def __init__(
    self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ):
    self._config = config
    self._graphdef = graphdef
    self._mesh = mesh
    self._val = data.load(config.data, config.data.val_split)
    self._test = data.load(config.data, config.data.eval_split)
    self._quick_step = jax.jit(steps.make_classification_step(graphdef))

  def quick(self, state: TrainState) -> dict[str, float]:
    """Returns classification on the validation split."""
    ledger = Ledger(0)
    config = self._config
    process_index, process_count = parallel.process()
    for batch in pipeline.eval_batches(
      self._val,
      batch_size=parallel.divisible(config.eval.batch_size, self._mesh),
      image_size=config.data.image_size,
      resize_px=config.data.eval_resize_px,
      squash=config.data.eval_squash,
      on_error=config.data.on_error,
      process_index=process_index,
      process_count=process_count,
    ):
      sums = self._quick_step(state, parallel.to_devices(batch, self._mesh))
      ledger.add("quick", np.zeros(0, int), {}, parallel.fetch(sums))
    results = classification.summarize(ledger.totals["classification"])
    return {f"val/{name}": value for name, value in results.items()}

  def full(
    self,
    state: TrainState,
    workdir: files.AnyPath,
    after_batch: Callable[[], None] = lambda: None,
  ) -> dict[str, float | int]:
    """Returns every metric on the evaluation split; writes the gallery.

    Args:
      state: whose model it is.
      workdir: where the gallery goes.
      after_batch: called after every batch, on every process; it may raise.
    """
    config, dataset = self._config, self._test
    model = steps.eval_model(self._graphdef, state)
    planner = passes.Planner(model, dataset, config, self._mesh)
    ledger = Ledger(len(planner.pairs.index))
    methods = tuple(config.eval.methods)
    plan = planner.standard(methods)
    for _ in passes.run(plan, planner.pairs, self._mesh, ledger):
      after_batch()
    found, _ = results(ledger, planner.pairs, config, dataset.class_names)
    if config.data.on_error == "skip":
      num_skipped = len(dataset.source) - found["val/num_examples"]
      found["data/skipped_eval"] = num_skipped
      found["data/dropped_eval"] = dataset.num_dropped
    examples = self._examples(model, planner, ledger, methods[0])
    if parallel.is_main():
      gallery.save_gallery(
        workdir / gallery.FILENAME, examples, dataset.class_names
      )
    return found

  def _examples(
    self,
    model: nnx.Module,
    planner: passes.Planner,
    ledger: Ledger,
    method: str,
  ) -> list[GalleryExample]:
    """Returns the pictures and maps of the chosen examples."""
    content = ledger.columns[f"{method}/content_heatmap"]
    outside = ledger.columns[f"{method}/negative_quadrants_heatmap"]
    candidates = planner.pairs.first & ~np.isnan(outside)
    chosen = chosen_rows(candidates, content)
    kinds = [(kind, row) for kind, rows in chosen.items() for row in rows]
    rows = [row for _, row in kinds]
    look = lambda maker: explained(
      model, planner.pairs, rows, maker, (method,), self._mesh
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
    parallel.divisible(passes.MAPS_AT_ONCE, mesh),
    process_index=process_index,
    process_count=process_count,
  ):
    batch = parallel.to_devices(share.batch, mesh)
    logits, cams = measure.maps(*graph, batch, methods)
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


def results(
  ledger: Ledger,
  pairs: pair_rows.Pairs,
  config: ConfigDict,
  class_names: Sequence[str],
) -> tuple[dict[str, float | int], dict[str, dict[str, float]]]:
  """Returns what a ledger says, in percent: of all rows, and by class.

  Args:
    ledger: after its passes.
    pairs: its rows.
    config: of the evaluation.
    class_names: of the data set.
  """
  columns = dict(ledger.columns)
  difficult = columns.pop("difficult", np.zeros(ledger.num_rows))
  pooled = _pooled(columns)
  rows = summary.Rows(pairs.index, pairs.target, difficult > 0)
  protocol = summary.Protocol(
    name=config.eval.protocol,
    spg_samples=config.eval.spg_samples,
    spg_runs=config.eval.spg_runs,
    num_resamples=config.eval.num_resamples,
  )
  read = pooled[""][:, 0] if "" in pooled else columns.get("top1", np.zeros(0))
  located = [v for k, v in columns.items() if k.endswith("/content_heatmap")]
  found: dict[str, Any] = {
    "num_examples": int((~np.isnan(read)).sum()),
    "num_pairs": int((~np.isnan(located[0])).sum()) if located else 0,
  }
  totals = ledger.totals
  if "classification" in totals:
    found |= classification.summarize(totals["classification"])
  found |= summary.summarize(columns, rows, protocol)
  for prefix, counts in pooled.items() if protocol.num_resamples else ():
    real = ~np.isnan(counts[:, 0])
    low, high = summary.f1_interval(
      pairs.index[real], counts[real], protocol.num_resamples
    )
    found[f"{prefix}f1_overall_low"] = low
    found[f"{prefix}f1_overall_high"] = high
  if "robustness" in totals:
    found |= robustness.summarize(totals["robustness"])
  for name, (correct, count) in totals.get("boxes", {}).items():
    accuracies = boxes.max_box_acc(correct, float(count))
    found |= {f"{name}/{k}": v for k, v in accuracies.items()}
  by_class = summary.by_class(columns, rows, protocol, class_names)
  return {f"val/{name}": value for name, value in found.items()}, by_class


def _pooled(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Takes out what F1 is made of; by what its names begin with, `[N, 3]`."""
  first = _POOLED[0]
  prefixes = [k.removesuffix(first) for k in columns if k.endswith(first)]
  return {
    prefix: np.stack([columns.pop(prefix + name) for name in _POOLED], 1)
    for prefix in prefixes
  }
