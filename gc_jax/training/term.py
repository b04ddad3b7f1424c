"""The words in which a guidance term is written: see `guidance.TERMS`.

A term is a loss on explanations that joins the classification loss. For each
part of a batch its `draw` runs first, before the model is asked; then the model
sees the originals once; then its `losses` run on what was seen. Neither knows
of parts, devices, other terms, its own weight, or what is kept in memory.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax.method import cam as cams
from gc_jax.method.fields import Fields
from gc_jax.method.types import Batch
from gc_jax.models import Head
from gc_jax.models.network import context_of


class Explained(NamedTuple):
  """The class of each image that all terms of a step explain."""

  target: Int[Array, "B"]  # if several are present, one is drawn
  mask: Float[Array, "B"]  # 0 for padding, and if no class is present
  contains: Bool[Array, "B K"]  # the classes that the image holds


class Draw(NamedTuple):
  """What a term settles about a part of a batch before the model is asked."""

  # 1 for losses that count in the mean, 0 for the others; of their shape. It is
  # known this early so that a batch in parts weighs every example alike.
  mask: Array
  how: Any = ()  # whatever else `losses` needs; a tree of arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """What the model made of the originals of a part of a batch."""

  # In training mode. A term may send pictures of its own through its features;
  # the running statistics follow, in the order of `TERMS`.
  model: nnx.Module
  # The head as it was for the originals' logits, dropout included.
  classify: Head
  images: Float[Array, "B H W 3"]  # normalised
  features: Float[Array, "B h w D"]
  batch: Batch  # all that the pipeline brought
  explained: Explained

  def cam(self) -> Float[Array, "B h w"]:
    """Returns the element-wise Grad-CAM of each original's explained class.

    Not normalised. Differentiable through the activations and through the
    gradient that weighs them.
    """
    target = self.explained.target[:, None]
    num_context = context_of(self.model)
    cam = elementwise_cam(self.classify, self.features, target, num_context)
    return cam[:, 0]


def elementwise_cam(
  classify: Callable[[Array], Array],
  features: Float[Array, "B h w D"],
  target: Int[Array, "B P"],
  num_context: int = 0,
) -> Float[Array, "B P h w"]:
  """Returns the element-wise Grad-CAM of every target, not normalised.

  It is of all but the last `num_context` channels, see `Network`.
  """
  gradients = cams.class_gradients(classify, features, target)
  explained = features.shape[-1] - num_context
  return cams.elementwise_grad_cam(
    features[:, None, ..., :explained], gradients[..., :explained]
  )


def every_image(
  settings: Any, batch: Batch, explained: Explained, key: PRNGKeyArray
) -> Draw:
  """Draws nothing: every image that shows a class counts."""
  del settings, batch, key
  return Draw(explained.mask)


@dataclasses.dataclass(frozen=True)
class NoSettings:
  """The settings of a term that has no fields but its weight and ramp."""


@dataclasses.dataclass(frozen=True)
class Term:
  """All that is known of a guidance term."""

  fields: Fields  # its title, and what it has in `config.loss`
  # (settings, seen, draw, key) -> losses, one for each entry of `draw.mask`.
  # The key is for randomness within, dropout in a forward pass.
  losses: Callable[[Any, Seen, Draw, PRNGKeyArray], jax.Array]
  masked: str  # the metric with the share of masked losses
  # (config, devices) -> the first argument of `draw` and `losses`, a dataclass.
  settings: Callable[[ConfigDict, int], Any] = lambda config, n: NoSettings()
  # (settings, batch, explained, key) -> what is settled before that.
  draw: Callable[[Any, Batch, Explained, PRNGKeyArray], Draw] = every_image
  # What the pipeline must bring beside pictures and labels: names of
  # `data.pipeline.EXTRAS`.
  needs: Callable[[ConfigDict], Collection[str]] = lambda config: ()
  # Raises ValueError if the recipe is impossible on so many devices.
  check: Callable[[ConfigDict, int], None] = lambda config, n: None
  # (config, devices) -> the number that must divide the images of a part.
  images_unit: Callable[[ConfigDict, int], int] = lambda config, n: n
  # How many originals each picture of the term's own forward pass holds, if it
  # makes fewer pictures than there are originals.
  images_in_one: Callable[[ConfigDict], int] = lambda config: 1
