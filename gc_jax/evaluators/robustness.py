"""Is the class still right when the picture is attacked? Top-1 or F1.

A row for each attack and epsilon. Epsilon 0, the clean picture, is what
`classification` says.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gc_jax.attacks import ATTACKS, EPSILONS
from gc_jax.evaluators import classification
from gc_jax.types import Batch, Metrics, PairBatch

_KEPT = ("top1", "f1_overall", "f1_per_class")


def sums(
  model: nnx.Module,
  batch: Batch | PairBatch,
  epsilons: Sequence[float | int] = EPSILONS,
  attacks: Sequence[str] = tuple(ATTACKS),
) -> Metrics:
  """Returns the sums of one batch; add them up over batches.

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    batch: with `label` or `labels`; padding counts nowhere.
    epsilons: in 1/255 of the pixel range. One follows the other in a loop:
      each attack is compiled once.
    attacks: keys of `ATTACKS`.

  Returns:
    The sums of `classification`, named "fgsm_8/top1" and so on.
  """
  totals: Metrics = {}
  for name in attacks:

    def attacked(epsilon, attack=ATTACKS[name]):
      images = attack(model, batch, epsilon)
      logits = model.classify(model.features(model.normalize(images)))
      return classification.sums(logits.astype(jnp.float32), batch)

    rows = jax.lax.map(attacked, jnp.array(epsilons, jnp.float32))
    for i, epsilon in enumerate(epsilons):
      for metric, (value, weight) in rows.items():
        totals[f"{name}_{epsilon:g}/{metric}"] = value[i], weight[i]
  return totals


def summarize(totals: Metrics) -> dict[str, float]:
  """Returns percent from sums over the whole split, "fgsm_8/top1" and so on.

  Of multi-label sets `f1_overall` and `f1_per_class`; all as `classification`
  defines them.
  """
  rows: dict[str, Metrics] = {}
  for name, value in totals.items():
    attack, metric = name.split("/")
    rows.setdefault(attack, {})[metric] = value
  return {
    f"{attack}/{metric}": value
    for attack, row in rows.items()
    for metric, value in classification.summarize(row).items()
    if metric in _KEPT
  }
