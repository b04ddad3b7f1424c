"""Is the class still right when the picture is attacked? FGSM and PGD.

Both are untargeted: they raise the loss of the ground-truth label. No pixel
moves further than epsilon / 255 (the L-infinity ball), and every pixel stays in
[0, 1]; the model's own normalisation comes after. Gradients reach a pixel only
where the model looks: its own sign is 0 where the gradient is, and such a pixel
stays. Under global max pooling those are many, so a flat accuracy under FGSM
alone may be hidden gradients; hence PGD beside it.

FGSM takes one step of the whole epsilon, and one too long can lead past every
picture that misleads: accuracy then rises with epsilon. `WITHIN` says what
withstands any step up to epsilon, of those measured, and none: accuracy where
whoever attacks may choose among them. It cannot rise.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gc_jax.method import losses
from gc_jax.method.metrics import EPSILONS
from gc_jax.method.types import Batch, PairBatch

# Names beside those of the functions: FGSM by any step up to epsilon, and FGSM
# on the pictures on which PGD is measured.
WITHIN, ON_FEW = "fgsm-within", "fgsm-few"


def fgsm(
  model: nnx.Module,
  batch: Batch | PairBatch,
  epsilon: ArrayLike,
  *,
  gradient: Float[Array, "B H W 3"] | None = None,
) -> Float[Array, "B H W 3"]:
  """Returns the pictures one step of the whole epsilon uphill.

  adversarial = clip(image + epsilon/255 * sign(d loss / d image), 0, 1)

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    batch: `image` (RGB, uint8 or float in [0, 1]) and `label`, whose loss is
      the cross-entropy, or `labels`, whose loss is the binary one.
    epsilon: >= 0, in 1/255 of the pixel range; may be traced.
    gradient: `loss_gradient` of the batch, which is the same for every epsilon;
      None = computed here.

  Returns:
    Pixels in [0, 1], float32. They are NaN where the gradient is: an example
    without a gradient must not pass for one that withstood.

  Source: Goodfellow et al. 2015, arXiv:1412.6572; Pillai & Pirsiavash 2021,
    Table 6.
  Differs: the paper says neither unit nor clipping nor label.
  """
  images = _fractions(batch["image"])
  radius = jnp.asarray(epsilon, jnp.float32) / 255
  if gradient is None:
    gradient = loss_gradient(model, batch)
  return _stepped(images, gradient, radius, images, radius)


def loss_gradient(
  model: nnx.Module, batch: Batch | PairBatch
) -> Float[Array, "B H W 3"]:
  """Returns the gradient of each picture's loss by its pixels in [0, 1].

  Args:
    model: as for `fgsm`.
    batch: as for `fgsm`.
  """
  images = _fractions(batch["image"])
  return _losses_and_gradient(model, images, batch)[1]


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
  steps. Of x_0 ... x_steps each example keeps the one with the highest loss:
  never a lower one than under FGSM, nor than that of the clean picture.

  Args:
    model: as for `fgsm`.
    batch: as for `fgsm`.
    epsilon: as for `fgsm`.
    steps: gradients taken, one after the other in a loop: memory is that of
      one.

  Returns:
    Pixels in [0, 1], float32. A loss of NaN counts as the highest.

  Source: Madry et al. 2018, arXiv:1706.06083.
  Differs: the first step, in place of a random start; the best iterate is
    kept, not the last.
  """
  images = _fractions(batch["image"])
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


# name -> attack(model, batch, epsilon) -> adversarial images
FUNCTIONS = {"fgsm": fgsm, "pgd": pgd}


def attacked_logits(
  model: nnx.Module,
  batch: Batch | PairBatch,
  epsilons: Sequence[float | int] = EPSILONS,
  names: Sequence[str] = tuple(FUNCTIONS),
) -> dict[tuple[str, float | int], Float[Array, "B K"]]:
  """Returns what the model says of attacked pictures.

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    batch: with `label` or `labels`.
    epsilons: in 1/255 of the pixel range, in any order. One follows the other
      in a loop: each attack is compiled once.
    names: keys of `FUNCTIONS`.

  Returns:
    (attack, epsilon) -> logits. With FGSM also `WITHIN`, which is right where
    the clean picture is and those under each epsilon up to this one.
  """
  ascending = sorted(epsilons)
  found: dict[tuple[str, float | int], Array] = {}

  def predicted(images):
    logits = model.classify(model.features(model.normalize(images)))
    return logits.astype(jnp.float32)

  def add(name, rows):
    for epsilon, row in zip(ascending, rows, strict=True):
      found[name, epsilon] = row

  for name in names:
    attack = functools.partial(FUNCTIONS[name], model, batch)
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
      add(WITHIN, worst[1:])
  return found


def _worst_so_far(
  logits: Float[Array, "E B K"], batch: Batch | PairBatch
) -> Float[Array, "E B K"]:
  """Returns logits that are wrong if any smaller or equal epsilon fooled it.

  Of pictures with one label each class is as far above the label's as it ever
  was; with several, each label is as far on its wrong side.
  """
  if "labels" in batch:
    sign = jnp.where(batch["labels"] > 0, 1, -1)[None]
    return sign * jax.lax.cummin(sign * logits)
  own = jnp.take_along_axis(logits, batch["label"][None, :, None], axis=2)
  return jax.lax.cummax(logits - own)


def _fractions(images: Array) -> Float[Array, "B H W 3"]:
  scale = 255 if images.dtype == jnp.uint8 else 1
  return images.astype(jnp.float32) / scale


def _losses(
  model: nnx.Module, images: Float[Array, "B H W 3"], batch: Batch
) -> Float[Array, "B"]:
  logits = model.classify(model.features(model.normalize(images)))
  logits = logits.astype(jnp.float32)
  if "labels" in batch:
    return losses.binary_cross_entropy(logits, batch["labels"])
  return losses.cross_entropy(logits, batch["label"])


def _losses_and_gradient(model, images, batch):
  """Returns the loss of each example, and the gradient of each by its own."""

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
  """Returns, of each example, the picture of the higher loss, and the loss."""
  higher = ~(values <= highest)  # a NaN too
  worst = jnp.where(higher[:, None, None, None], x, worst)
  return worst, jnp.where(higher, values, highest)
