"""Guidance losses for a training loop of your own, of a wrapped model.

Pure functions for a jitted, sharded step. Each runs the model once on the
images, and gives their logits for the classification loss.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.attribution import as_ids, check_classes
from gc_jax.attribution.wrapping import Tapped, net_of
from gc_jax.method import cam as cams
from gc_jax.method import compose, losses
from gc_jax.method.sharding import dividing_freely
from gc_jax.method.types import check_at_least_one, check_key, is_present
from gc_jax.models.network import average_to_grid
from gc_jax.runtime.messages import unknown_name_message

# The modes whose expected map is made of each image's own.
MODES = ("packed", "independent")


class Guided(NamedTuple):
  """What a guidance loss saw and says.

  Attributes:
    logits: of the images.
    loss: the mean over all that counts; multiply it by a weight and add it to
      the classification loss.
    metrics: "masked_frac", the share of losses that do not count.
    state: what the calls changed of the model, running statistics and counts of
      random numbers: of NNX for `nnx.update(model, state)`, of Linen the
      variables, of Equinox the new state, of Keras the values of
      `non_trainable_variables`.
  """

  logits: Float[Array, "B K"]
  loss: Float[Array, ""]
  metrics: dict[str, Float[Array, ""]]
  state: Any


def consistency(
  net: nnx.Module | Tapped,
  images: ArrayLike,
  labels: ArrayLike,
  key: PRNGKeyArray,
  *,
  mode: str = "packed",
  mask: ArrayLike | None = None,
  groups: int = 1,
  reduction: str = "mean",
  stop_gradient: bool = False,
) -> Guided:
  """Returns how far maps of composites are from those of their pictures.

  Where the model draws random numbers, as for dropout, it draws others for the
  composites than for the images.

  Args:
    net: from `wrap`, or a model of gc_jax.
    images: as the model takes them; it must take pictures twice as high and
      wide too.
    labels: the class of each image, `[B]`; or `[B K]`, how often each class is
      in it, above 0 for present. Of several one is drawn for the explanation.
    key: of the composites' draw.
    mode: "packed" makes B/4 composites of four images that are all explained,
      "independent" one for each image, as the paper does.
    mask: 0 for padding.
    groups: composites mix images of one of so many equal, contiguous shares of
      the batch. With the number of devices, no image leaves its device.
    reduction: of the loss over cells, "mean" (the release) or "sum" (eq. 5).
    stop_gradient: whether the picture's own map is a fixed target.

  Raises:
    ValueError: an argument is something else, or images do not divide.

  Source: Pillai & Pirsiavash 2021, eq. 3-5.
  Differs: "packed" is ours, see `compose.packed`.
  """
  net = net_of(net)
  images = net.batch(images)
  check_at_least_one("groups", groups)
  check_key(key)
  if mode not in MODES:
    raise ValueError(unknown_name_message("mode", mode, MODES))
  in_one = compose.MODES[mode].images_in_one
  if len(images) % (groups * in_one):
    raise ValueError(
      f"The {len(images)} images of a batch must be divisible by {groups} "
      f"groups of whole composites, {in_one} images each, under {mode=}."
    )
  key_target, key_layout = jax.random.split(key)
  target, contains, mask = _explained(net, images, labels, mask, key_target)
  last = net.channels_last(images)
  layout, composites, explained = _composed(
    key_layout, contains, target, mask, last, mode, groups
  )
  logits, cam, after = _seen(net, images, target[:, None])
  own = cams.normalize_cam(cam[:, 0])
  if stop_gradient:
    own = jax.lax.stop_gradient(own)
  again = after.call.drawn_anew(after.variables)
  after = dataclasses.replace(after, variables=again)
  _, cam, after = _seen(after, net.as_images(composites), explained)
  own, cam = compose.at_one_scale(
    own, cams.normalize_cam(cam), *last.shape[1:3]
  )
  values = losses.consistency_loss(_expected(layout, own), cam, reduction)
  counts = layout.mask.reshape(values.shape)
  return _guided(logits, values, counts, after)


@dividing_freely
def _composed(key, contains, target, mask, images, mode, groups):
  """Returns a layout for each group; all composites, and what they explain."""
  grouped = lambda x: x.reshape(groups, -1, *x.shape[1:])
  layout = jax.vmap(compose.MODES[mode].draw)(
    jax.random.split(key, groups), *map(grouped, (contains, target, mask))
  )
  composites = jax.vmap(compose.assemble)(layout, grouped(images))
  explained = jax.vmap(jnp.take)(grouped(target), layout.explained)
  return layout, _flat(composites), _flat(explained)


@dividing_freely
def _expected(layout, own):
  grouped = own.reshape(len(layout.tiles), -1, *own.shape[1:])
  return _flat(jax.vmap(compose.expected_cam)(layout, grouped))


def _flat(x: Array) -> Array:
  """Returns an array without its leading axis of groups."""
  return x.reshape(-1, *x.shape[2:])


def energy(
  net: nnx.Module | Tapped,
  images: ArrayLike,
  labels: ArrayLike,
  object_mask: ArrayLike,
  key: PRNGKeyArray | None = None,
  *,
  mask: ArrayLike | None = None,
) -> Guided:
  """Returns the share of each map's mass that lies outside the object.

  Args:
    net: from `wrap`, or a model of gc_jax.
    images: as the model takes them.
    labels: as `consistency` takes them.
    object_mask: `[B H W]`, above 0 on the object; an image without one does not
      count.
    key: of the draw of a class, if `labels` are `[B K]`.
    mask: 0 for padding.

  Source: Rao et al. 2023, arXiv:2303.11932.
  """
  net = net_of(net)
  images, object_mask = net.batch(images), jnp.asarray(object_mask)
  wanted = net.channels_last(images).shape[:3]
  if object_mask.shape != wanted:
    raise ValueError(
      f"object_mask must be [B H W] as the images are, {wanted}; it has shape "
      f"{object_mask.shape}."
    )
  target, _, mask = _explained(net, images, labels, mask, key)
  logits, cam, after = _seen(net, images, target[:, None])
  covered = is_present(object_mask).astype(jnp.float32)
  share = average_to_grid(covered[..., None], cam.shape[2:])[..., 0]
  values = losses.energy_loss(cam[:, 0], share)
  return _guided(logits, values, mask * covered.max((1, 2)), after)


def _explained(net, images, labels, mask, key):
  """Returns the explained class, the classes held, and what counts."""
  labels = as_ids("labels", labels, "a loss knows no names of classes")
  labels = jnp.asarray(labels)
  if labels.shape[:1] != images.shape[:1] or labels.ndim not in (1, 2):
    raise ValueError(
      f"labels must be [B] or [B K] for the {len(images)} images; they have "
      f"shape {labels.shape}."
    )
  num_classes = net.num_classes(images)
  mask = jnp.ones(len(images)) if mask is None else jnp.asarray(mask)
  if mask.shape != labels.shape[:1]:
    raise ValueError(
      f"mask must be [B], one for each of the {len(images)} images; it has "
      f"shape {mask.shape}."
    )
  mask = mask.astype(jnp.float32)
  if labels.ndim == 2:
    if labels.shape[1] != num_classes:
      raise ValueError(
        f"labels [B K] must have a column for each of the {num_classes} "
        f"classes; they have shape {labels.shape}."
      )
    contains = is_present(labels)
    if key is None:
      raise ValueError(
        "key must be given to draw a class where labels are [B K]."
      )
    check_key(key)
    target = jax.random.categorical(key, jnp.where(contains, 0.0, -jnp.inf))
    return target, contains, jnp.where(contains.any(-1), mask, 0)
  check_classes("labels", labels, len(images), num_classes)
  return labels, jax.nn.one_hot(labels, num_classes, dtype=bool), mask


def _seen(net: Tapped, images, targets):
  """Returns logits, element-wise Grad-CAMs, and the net after the call."""
  logits, activations, gradients, after = net.looked(
    net.prepared(images), targets
  )
  cam = cams.elementwise_grad_cam(activations[:, None], gradients)
  return logits, cam, dataclasses.replace(net, variables=after)


def _guided(logits, values, counts, net: Tapped) -> Guided:
  total = counts.sum()
  loss = losses.masked_mean(values, counts)
  masked = {"masked_frac": 1 - total / counts.size}
  return Guided(logits, loss, masked, net.state)
