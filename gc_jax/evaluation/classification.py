"""Is the class right? Top-1 and top-5, or F1 per class and overall."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gc_jax.method import losses
from gc_jax.method.types import Batch, Metrics, PairBatch


def sums(logits: Float[Array, "B K"], batch: Batch | PairBatch) -> Metrics:
  """Returns the sums of one batch; add them up over batches.

  Args:
    logits: predictions.
    batch: with `label` or `labels`; padding counts nowhere.
  """
  mask = batch["mask"]
  if "labels" in batch:
    present = batch["labels"] > 0
    predicted = logits > 0  # probability above 1/2
    count = lambda cases: ((cases * mask[:, None]).sum(0), mask.sum())
    return {
      "loss": _total(
        losses.binary_cross_entropy(logits, batch["labels"]), mask
      ),
      "true_positives": count(present & predicted),
      "false_positives": count(~present & predicted),
      "false_negatives": count(present & ~predicted),
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
  """Returns what each picture adds to the headline number.

  Args:
    logits: predictions.
    batch: with `label`: whether each picture is right, as `top1`. With
      `labels`: its `true_positives`, `false_positives` and `false_negatives`.
  """
  if "labels" not in batch:
    right = _rank(logits, batch["label"]) < 1
    return {"top1": right.astype(jnp.float32)}
  present, predicted = batch["labels"] > 0, logits > 0
  cases = {
    "true_positives": present & predicted,
    "false_positives": ~present & predicted,
    "false_negatives": present & ~predicted,
  }
  return {k: v.sum(-1).astype(jnp.float32) for k, v in cases.items()}


def _rank(
  logits: Float[Array, "B K"], label: Int[Array, "B"]
) -> Float[Array, "B"]:
  """Returns how many classes are better than the label.

  Of classes with equal logits the first is better, as for argmax: constant
  logits are right once. Where there is a NaN, none is right.
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
  if "true_positives" not in totals:
    for name, (value, weight) in totals.items():
      results[name] = float(100 * value / weight)
    return results
  hits, alarms, misses = (
    np.asarray(totals[name][0], np.float64)
    for name in ("true_positives", "false_positives", "false_negatives")
  )
  results["f1_per_class"] = float(100 * _f1(hits, alarms, misses).mean())
  results["f1_overall"] = float(
    100 * _f1(hits.sum(), alarms.sum(), misses.sum())
  )
  return results


def _f1(hits, alarms, misses):
  return 2 * hits / np.maximum(2 * hits + alarms + misses, 1)


def _total(values, mask):
  return (values * mask).sum(), mask.sum()
