"""Runs evaluators over a split, and picks the pictures a person looks at."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import data, metrics, parallel
from gc_jax import step as steps
from gc_jax.data import pipeline
from gc_jax.evaluators import EVALUATORS, localization
from gc_jax.report import gallery
from gc_jax.report.gallery import GalleryExample
from gc_jax.state import TrainState
from gc_jax.types import EvalBatch, Metrics

_EXAMPLES_PER_KIND = 4
_FIXED_EXAMPLES = 8


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
    self._mesh = mesh
    self._batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size
    self._val = data.load(config.data, config.data.val_split)
    self._test = data.load(config.data, config.data.eval_split)
    self._quick_step = jax.jit(steps.make_classification_step(graphdef))
    protocol = localization.Protocol(
      tolerance_px=config.eval.tolerance_px,
      spg_samples=config.eval.spg_samples,
      spg_runs=config.eval.spg_runs,
    )
    self._full_step = jax.jit(
      steps.make_eval_step(graphdef, len(self._test.class_names), protocol)
    )

  def quick(self, state: TrainState) -> dict[str, float]:
    """Returns classification on the validation split."""
    totals: dict[str, Metrics] = {}
    for batch in self._batches(self._val):
      on_devices = parallel.to_devices(batch, self._mesh)
      totals = _added(
        totals, parallel.fetch(self._quick_step(state, on_devices))
      )
    return _summarized(totals)

  def full(self, state: TrainState, workdir: Path) -> dict[str, float]:
    """Returns every metric on the evaluation split; writes the gallery."""
    totals: dict[str, Metrics] = {}
    content, annotated, indices = [], [], []
    for i, batch in enumerate(self._batches(self._test)):
      sums, explained, index = self._explain(state, batch, i)
      totals = _added(totals, sums)
      content.append(explained.content_heatmap)
      annotated.append(explained.annotated)
      indices.append(index)
    index = np.concatenate(indices)
    real = index >= 0
    index = index[real]
    content_heatmap = np.concatenate(content)[real]
    annotated = np.concatenate(annotated)[real]
    results = _summarized(totals)
    results["val/num_examples"] = len(content_heatmap)
    if self._config.data.on_error == "skip":
      num_skipped = len(self._test.source) - len(content_heatmap)
      results["data/skipped_eval"] = num_skipped
      results["data/dropped_eval"] = self._test.num_dropped

    # Without annotation a picture is neither good nor bad; where none has any,
    # all are shown.
    shown = annotated if annotated.any() else np.ones_like(annotated)
    order = index[shown][np.argsort(content_heatmap[shown], kind="stable")]
    examples = self._examples(state, chosen_examples(order))
    if parallel.is_main():
      gallery.save_gallery(
        workdir / gallery.FILENAME, examples, self._test.class_names
      )
    return results

  def _explain(self, state: TrainState, batch: EvalBatch, number: int):
    key = jax.random.fold_in(jax.random.key(0), number)
    on_devices = parallel.to_devices(batch, self._mesh)
    sums, explained = self._full_step(state, on_devices, key)
    return parallel.fetch((sums, explained, on_devices["index"]))

  def _examples(
    self, state: TrainState, chosen: dict[str, Sequence[int]]
  ) -> list[GalleryExample]:
    """Returns the pictures and maps of the chosen examples."""
    kinds = [(kind, i) for kind, group in chosen.items() for i in group]
    examples = []
    batches = self._batches(self._test, [index for _, index in kinds])
    for number, batch in enumerate(batches):
      _, explained, index = self._explain(state, batch, number)
      on_devices = parallel.to_devices(batch, self._mesh)
      whole = parallel.fetch(on_devices)
      cam = np.asarray(metrics.as_distribution(explained.cam))
      composite_cam = np.asarray(
        metrics.as_distribution(explained.composite_cam)
      )
      negative = np.asarray(
        metrics.negative_quadrants_heatmap(composite_cam, explained.cell)
      )
      for row in range((index >= 0).sum()):
        kind, example = kinds[len(examples)]
        examples.append(
          GalleryExample(
            index=int(example),
            kind=kind,
            image=whole["image"][row],
            object_mask=whole["object_mask"][row, 0],
            target=int(whole["target"][row, 0]),
            predicted=int(explained.predicted[row]),
            cam=cam[row],
            content_heatmap=float(100 * explained.content_heatmap[row]),
            composite=explained.composite[row],
            composite_cam=composite_cam[row],
            cell=int(explained.cell[row]),
            negative_quadrants_heatmap=float(100 * negative[row]),
          )
        )
    return examples

  def _batches(
    self, dataset: data.Dataset, indices: Sequence[int] | None = None
  ) -> Iterator[EvalBatch]:
    process_index, process_count = parallel.process()
    return pipeline.eval_batches(
      dataset,
      batch_size=self._batch_size,
      image_size=self._config.data.image_size,
      resize_px=self._config.data.eval_resize_px,
      squash=self._config.data.eval_squash,
      on_error=self._config.data.on_error,
      indices=indices,
      process_index=process_index,
      process_count=process_count,
    )


def chosen_examples(order: np.ndarray) -> dict[str, list[int]]:
  """Returns which examples to show, by kind.

  Args:
    order: positions in the split, by content heatmap, ascending.

  Returns:
    `best`, `typical` and `worst` by content heatmap, and `fixed`: examples
    spread evenly over the split, the same for every model.
  """
  n = min(_EXAMPLES_PER_KIND, len(order))
  middle = (len(order) - n) // 2
  fixed = np.linspace(0, len(order) - 1, min(_FIXED_EXAMPLES, len(order)))
  groups = {
    "best": order[::-1][:n],
    "typical": order[middle : middle + n],
    "worst": order[:n],
    "fixed": np.sort(order)[fixed.astype(int)],
  }
  return {kind: [int(i) for i in group] for kind, group in groups.items()}


def _added(totals: dict[str, Metrics], sums: dict[str, Metrics]):
  if not totals:
    return sums
  # In float64 on the host: a sum over 50,000 examples outgrows float32.
  return jax.tree.map(lambda a, b: np.asarray(a, np.float64) + b, totals, sums)


def _summarized(totals: dict[str, Metrics]) -> dict[str, float]:
  results = {}
  for name, sums in totals.items():
    results |= EVALUATORS[name].summarize(sums)
  return {f"val/{name}": value for name, value in results.items()}
