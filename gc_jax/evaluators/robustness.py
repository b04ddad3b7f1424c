"""Is the class still right when the picture is attacked? Top-1 or F1.

A row for each attack and epsilon. Epsilon 0, the clean picture, is what
`classification` says.

FGSM takes one step of the whole epsilon, and one too long can lead past every
picture that misleads: accuracy then rises with epsilon. A row of its own says
what withstands any step up to epsilon, of those measured, and none: accuracy
where whoever attacks may choose among them. It cannot rise.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gc_jax.attacks import ATTACKS, EPSILONS, loss_gradient
from gc_jax.evaluators import classification
from gc_jax.types import Batch, Metrics, PairBatch

WITHIN = "-within"  # marks FGSM by any step up to epsilon
_KEPT = ("top1", "f1_overall", "f1_per_class")


def attacked_logits(
  model: nnx.Module,
  batch: Batch | PairBatch,
  epsilons: Sequence[float | int] = EPSILONS,
  attacks: Sequence[str] = tuple(ATTACKS),
) -> dict[str, Float[Array, "B K"]]:
  """Returns what the model says of attacked pictures.

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    batch: with `label` or `labels`.
    epsilons: in 1/255 of the pixel range, in any order. One follows the other
      in a loop: each attack is compiled once.
    attacks: keys of `ATTACKS`.

  Returns:
    Logits by attack and epsilon, "fgsm_8" and so on; with FGSM also
    "fgsm-within_8" and so on, which are right where the clean picture's are
    and those under each epsilon of `epsilons` up to 8.
  """
  ascending = sorted(epsilons)
  found: dict[str, Array] = {}

  def predicted(images):
    logits = model.classify(model.features(model.normalize(images)))
    return logits.astype(jnp.float32)

  def add(name, rows):
    for epsilon, row in zip(ascending, rows, strict=True):
      found[f"{name}_{epsilon:g}"] = row

  for name in attacks:
    attack = functools.partial(ATTACKS[name], model, batch)
    if name == "fgsm":
      # One gradient is that of every epsilon.
      gradient = loss_gradient(model, batch)
      attack = functools.partial(attack, gradient=gradient)
    rows = jax.lax.map(
      lambda epsilon, attack=attack: predicted(attack(epsilon)),
      jnp.array(ascending, jnp.float32),
    )
    add(name, rows)
    if name == "fgsm":
      clean = predicted(batch["image"])
      worst = _worst_so_far(jnp.concatenate([clean[None], rows]), batch)
      add(name + WITHIN, worst[1:])
  return found


def sums(
  logits: Mapping[str, Float[Array, "B K"]], batch: Batch | PairBatch
) -> Metrics:
  """Returns the sums of one batch; add them up over batches.

  Args:
    logits: from `attacked_logits`.
    batch: what was attacked; padding counts nowhere.

  Returns:
    The sums of `classification`, named "fgsm_8/top1" and so on.
  """
  return {
    f"{name}/{metric}": total
    for name, row in logits.items()
    for metric, total in classification.sums(row, batch).items()
  }


def by_example(
  logits: Mapping[str, Float[Array, "B K"]], batch: Batch | PairBatch
) -> dict[str, Float[Array, "B"]]:
  """Returns what each picture adds to the number of an attack and epsilon.

  Args:
    logits: from `attacked_logits`.
    batch: what was attacked.

  Returns:
    What `classification` says of each, named "fgsm_8/top1" and so on.
  """
  return {
    f"{name}/{metric}": values
    for name, row in logits.items()
    for metric, values in classification.by_example(row, batch).items()
  }


def _worst_so_far(
  logits: Float[Array, "E B K"], batch: Batch | PairBatch
) -> Float[Array, "E B K"]:
  """Returns logits that are wrong where any of the first to these ones is.

  Of pictures with one label each class is as far above the label's as it ever
  was; with several, each label is as far on its wrong side.
  """
  if "labels" in batch:
    sign = jnp.where(batch["labels"] > 0, 1, -1)[None]
    return sign * jax.lax.cummin(sign * logits)
  own = jnp.take_along_axis(logits, batch["label"][None, :, None], axis=2)
  return jax.lax.cummax(logits - own)


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
