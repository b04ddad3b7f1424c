"""Is the class still right when the picture is attacked? FGSM and PGD.

Both are untargeted: they raise the loss of the ground-truth label. No pixel
moves further than epsilon / 255 (the L-infinity ball) or leaves [0, 1]; the
model's own normalisation comes after. A pixel without a gradient stays, and
under global max pooling those are many: a flat accuracy under FGSM alone may be
hidden gradients, hence PGD beside it.

FGSM takes one step of the whole epsilon, which may lead past every picture that
misleads: accuracy then rises with epsilon. `WITHIN` cannot rise: the attacker
may choose the clean picture, or the step of any measured epsilon up to this.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gc_jax.evaluation import classification
from gc_jax.evaluation.ledger import Measured
from gc_jax.inference.arrays import logits_of, program
from gc_jax.method import losses
from gc_jax.method.types import Batch, PairBatch
from gc_jax.models.pixels import in_unit_range

# FGSM by any step up to epsilon; FGSM on the pictures that PGD is measured on.
WITHIN, ON_FEW = "fgsm-within", "fgsm-few"


@program(1, 2)
def attacked(
  model: nnx.Module,
  batch: PairBatch,
  epsilons: tuple[int | float, ...],
  on_few: bool,
) -> Measured:
  """Returns the predictions for attacked pictures, see `attacked_logits`."""
  found = attacked_logits(model, batch, epsilons, on_few)
  columns, totals = {}, {}
  for (attack, epsilon), logits in found.items():
    one = classification.measured(logits, batch, attack=attack, epsilon=epsilon)
    columns |= one.columns
    totals |= one.totals
  return Measured(columns, totals, {})


def attacked_logits(
  model: nnx.Module,
  batch: Batch | PairBatch,
  epsilons: tuple[float | int, ...],
  on_few: bool = False,
) -> dict[tuple[str, float | int], Float[Array, "B K"]]:
  """Returns (attack, epsilon) -> logits of attacked pictures.

  Of "fgsm" and `WITHIN`; on the few pictures that PGD is measured on, of
  `ON_FEW` and "pgd".

  Args:
    model: as for `loss_gradient`.
    batch: as for `loss_gradient`.
    epsilons: in any order; in a loop, so that each attack is compiled once.
    on_few: whether these are the few pictures.
  """
  ascending = sorted(epsilons)

  def predicted(images):
    return logits_of(model, images).astype(jnp.float32)

  def at_every_epsilon(attack):
    return jax.lax.map(
      lambda epsilon: predicted(attack(epsilon)),
      jnp.array(ascending, jnp.float32),
    )

  gradient = loss_gradient(model, batch)
  rows = at_every_epsilon(functools.partial(fgsm, batch["image"], gradient))
  if on_few:
    by_pgd = at_every_epsilon(functools.partial(pgd, model, batch))
    found = {ON_FEW: rows, "pgd": by_pgd}
  else:
    clean = predicted(batch["image"])
    worst = _worst_so_far(jnp.concatenate([clean[None], rows]), batch)
    found = {"fgsm": rows, WITHIN: worst[1:]}
  return {
    (name, epsilon): row
    for name, logits in found.items()
    for epsilon, row in zip(ascending, logits, strict=True)
  }


def fgsm(
  images: Array, gradient: Float[Array, "B H W 3"], epsilon: ArrayLike
) -> Float[Array, "B H W 3"]:
  """Returns the pictures one step of the whole epsilon uphill.

  adversarial = clip(image + epsilon/255 * sign(d loss / d image), 0, 1)

  Args:
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    gradient: `loss_gradient` of them, the same for every epsilon.
    epsilon: >= 0, in 1/255 of the pixel range; may be traced.

  Returns:
    Pixels in [0, 1], float32. They are NaN where the gradient is: an example
    without a gradient must not pass for one that withstood.

  Source: Goodfellow et al. 2015, arXiv:1412.6572; Pillai & Pirsiavash 2021,
    Table 6.
  Differs: the paper says neither unit nor clipping nor label.
  """
  images = in_unit_range(images)
  radius = jnp.asarray(epsilon, jnp.float32) / 255
  return _stepped(images, gradient, radius, images, radius)


def loss_gradient(
  model: nnx.Module, batch: Batch | PairBatch
) -> Float[Array, "B H W 3"]:
  """Returns the gradient of each picture's loss by its pixels in [0, 1].

  Args:
    model: in evaluation mode.
    batch: `image` (RGB, uint8 or float in [0, 1]) and `label`, whose loss is
      the cross-entropy, or `labels`, whose loss is the binary one.
  """
  return _losses_and_gradient(model, in_unit_range(batch["image"]), batch)[1]


def pgd(
  model: nnx.Module,
  batch: Batch | PairBatch,
  epsilon: ArrayLike,
  *,
  steps: int = 10,
) -> Float[Array, "B H W 3"]:
  """Returns the worst pictures met on `steps` steps uphill.

  x_0 = image;  x_n+1 = project(x_n + size_n * sign(d loss / d x_n))

  The first size is epsilon, which is FGSM, and all others are 2.5 * epsilon /
  steps. Each example keeps the one of x_0 ... x_steps with the highest loss:
  never a lower one than under FGSM, nor than that of the clean picture.

  A loss of NaN counts as the highest.

  Args:
    model: as for `loss_gradient`.
    batch: as for `loss_gradient`.
    epsilon: as for `fgsm`.
    steps: gradients taken, in a loop: memory is that of one.

  Source: Madry et al. 2018, arXiv:1706.06083.
  Differs: the first step, in place of a random start; the best iterate is
    kept, not the last.
  """
  images = in_unit_range(batch["image"])
  radius = jnp.asarray(epsilon, jnp.float32) / 255

  def climb(step, climbed):
    x, worst, highest = climbed
    losses_at_x, gradient = _losses_and_gradient(model, x, batch)
    worst, highest = _higher(losses_at_x, x, highest, worst)
    size = jnp.where(step == 0, radius, 2.5 * radius / steps)
    return _stepped(x, gradient, size, images, radius), worst, highest

  start = images, images, jnp.full(len(images), -jnp.inf)
  x, worst, highest = jax.lax.fori_loop(0, steps, climb, start)
  worst, _ = _higher(_losses(model, x, batch), x, highest, worst)
  return worst


def _worst_so_far(
  logits: Float[Array, "E B K"], batch: Batch | PairBatch
) -> Float[Array, "E B K"]:
  """Returns logits that are wrong if any smaller or equal epsilon fooled it."""
  # Each label is as far on its wrong side, each class as far above the label's,
  # as it ever was.
  if "labels" in batch:
    sign = jnp.where(batch["labels"] > 0, 1, -1)[None]
    return sign * jax.lax.cummin(sign * logits)
  own = jnp.take_along_axis(logits, batch["label"][None, :, None], axis=2)
  return jax.lax.cummax(logits - own)


def _losses(model, images, batch) -> Float[Array, "B"]:
  logits = logits_of(model, images).astype(jnp.float32)
  if "labels" in batch:
    return losses.binary_cross_entropy(logits, batch["labels"])
  return losses.cross_entropy(logits, batch["label"])


def _losses_and_gradient(model, images, batch):
  """Returns the loss of each example, and its gradient by its own pixels."""

  def total(images):
    values = _losses(model, images, batch)
    # In evaluation mode no example sees another: the sum keeps them apart.
    return values.sum(), values

  (_, values), gradient = jax.value_and_grad(total, has_aux=True)(images)
  return values, gradient


def _stepped(x, gradient, size, images, radius):
  """Returns x moved along the gradient's sign, inside ball and pixel range."""
  low = jnp.maximum(images - radius, 0)
  high = jnp.minimum(images + radius, 1)
  return jnp.clip(x + size * jnp.sign(gradient), low, high)


def _higher(values, x, highest, worst):
  """Returns each example's picture with the higher loss, and that loss."""
  higher = ~(values <= highest)  # a NaN too
  worst = jnp.where(higher[:, None, None, None], x, worst)
  return worst, jnp.where(higher, values, highest)
