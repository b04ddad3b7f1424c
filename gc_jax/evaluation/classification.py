"""Is the class right? Top-1 and top-5, or F1 per class and overall."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from gc_jax.evaluation.ledger import Measured, counted
from gc_jax.inference.arrays import logits_of, program
from gc_jax.method import losses
from gc_jax.method.metrics import Key
from gc_jax.method.types import Batch, Metrics, PairBatch
from gc_jax.report.rows import CASES, CONFIDENCE, PREDICTED


@program()
def predictions(model: nnx.Module, batch: PairBatch) -> Measured:
  """Returns whether the class is right, once for each picture."""
  return measured(logits_of(model, batch["image"]), batch)


def measured(
  logits: Float[Array, "B K"], batch: PairBatch, **attack: Any
) -> Measured:
  """Returns what logits say, counted on the first row of each picture."""
  counts = batch["mask"] * batch["first"]
  columns = by_example(logits, batch)
  if not attack:
    columns[CONFIDENCE] = _confidence(logits, batch)
    if "labels" not in batch:
      columns[PREDICTED] = logits.argmax(-1).astype(jnp.float32)
  totals = sums(logits, dict(batch) | {"mask": counts})
  return Measured(
    {
      Key(k, **attack): counted(
        counts * (batch["target_mask"] if k == CONFIDENCE else 1.0), v
      )
      for k, v in columns.items()
    },
    {Key(k, **attack): total for k, total in totals.items()},
    {},
  )


def sums(logits: Float[Array, "B K"], batch: Batch | PairBatch) -> Metrics:
  """Returns the sums over one batch, without its padding."""
  mask = batch["mask"]
  if "labels" in batch:
    loss = losses.binary_cross_entropy(logits, batch["labels"])
    return {"loss": _total(loss, mask)} | {
      name: ((cases * mask[:, None]).sum(0), mask.sum())
      for name, cases in _cases(logits, batch["labels"]).items()
    }
  label = batch["label"]
  rank = _rank(logits, label)
  return {
    "loss": _total(losses.cross_entropy(logits, label), mask),
    "top1": _total(rank < 1, mask),
    "top5": _total(rank < 5, mask),
  }


def by_example(
  logits: Float[Array, "B K"], batch: Batch | PairBatch
) -> dict[str, Float[Array, "B"]]:
  """Returns each picture's `top1`, or with several labels its `CASES`."""
  if "labels" not in batch:
    right = _rank(logits, batch["label"]) < 1
    return {"top1": right.astype(jnp.float32)}
  return {
    name: cases.sum(-1).astype(jnp.float32)
    for name, cases in _cases(logits, batch["labels"]).items()
  }


def _confidence(
  logits: Float[Array, "B K"], batch: PairBatch
) -> Float[Array, "B"]:
  """Returns the probability of the class of each row."""
  to_probability = nnx.sigmoid if "labels" in batch else nnx.softmax
  return jnp.take_along_axis(
    to_probability(logits.astype(jnp.float32)), batch["target"][:, None], 1
  )[:, 0]


def _cases(logits, labels) -> dict[str, Bool[Array, "B K"]]:
  present, predicted = labels > 0, logits > 0  # probability above 1/2
  cases = present & predicted, ~present & predicted, present & ~predicted
  return dict(zip(CASES, cases, strict=True))


def _rank(
  logits: Float[Array, "B K"], label: Int[Array, "B"]
) -> Float[Array, "B"]:
  """Returns how many classes are better than the label.

  Of classes with equal logits the first is better, as for argmax: constant
  logits are right once. With a NaN among them, none is right.
  """
  own = jnp.take_along_axis(logits, label[:, None], axis=1)
  classes = jnp.arange(logits.shape[-1])[None]
  better = (logits > own) | ((logits == own) & (classes < label[:, None]))
  sound = jnp.isfinite(own[:, 0]) & ~jnp.isnan(logits).any(1)
  return jnp.where(sound, better.sum(1), jnp.inf)


def summarize(totals: Metrics) -> dict[str, float]:
  """Returns percent (and `loss` in nats) from sums over the whole split.

  `f1_per_class` is the mean over classes of each one's F1, 0 for a class
  without a true positive; `f1_overall` is the F1 of the pooled counts (the
  release's C-F1 and O-F1, with a logit above 0 as a detection).
  """
  totals = dict(totals)
  loss, weight = totals.pop("loss")
  results = {"loss": float(loss / weight)}
  if CASES[0] not in totals:
    for name, (value, weight) in totals.items():
      results[name] = float(100 * value / weight)
    return results
  counts = [np.asarray(totals[name][0], np.float64) for name in CASES]
  pooled = [count.sum() for count in counts]
  results["f1_per_class"] = float(100 * _f1(*counts).mean())
  results["f1_overall"] = float(100 * _f1(*pooled))
  return results


def _f1(hits, alarms, misses):
  return 2 * hits / np.maximum(2 * hits + alarms + misses, 1)


def _total(values, mask):
  return (values * mask).sum(), mask.sum()
