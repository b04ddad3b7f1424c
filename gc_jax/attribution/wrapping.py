"""A model that somebody else wrote, as a function with a place to look at.

`wrap` makes a `Tapped` of it: a forward pass that also gives the activations at
one place, and adds an offset there. The derivative with respect to the offset
is the gradient of a logit at that place: only what follows it is
differentiated. A second derivative is plain `jax.grad`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from gc_jax.attribution import taps
from gc_jax.attribution.adapted import Adapted
from gc_jax.attribution.calls import Call, Cells, Static, check_batch, check_rgb
from gc_jax.attribution.libraries import LIBRARIES, library_of
from gc_jax.method.cam import at_least_float32, wider
from gc_jax.models import network
from gc_jax.models.pixels import in_unit_range, mean_colour, normalize_pixels
from gc_jax.runtime.messages import unknown_name_message


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["variables"],
  meta_fields=["call", "at", "cells", "channels_first", "own", "multi_label"],
)
@dataclasses.dataclass(frozen=True)
class Tapped:
  """A model with a place to look at: a tree of arrays, made by `wrap`.

  Attributes:
    variables: every array of the model.
    call: runs it, see `libraries.Call`.
    at: the place.
    cells: how the activations at the place lie.
    channels_first: whether images are `[B 3 H W]`.
    own: whether it is a `Network` of ours, which takes RGB pixels and knows
      their normalisation. All others take images as they take them.
    multi_label: whether a model of ours says of each class whether it is there.
  """

  variables: PyTree
  call: Call
  at: str
  cells: Cells
  channels_first: bool = False
  own: bool = False
  multi_label: bool = False

  @property
  def dtype(self) -> jnp.dtype:
    """Returns float32, or float64 if variables are."""
    dtypes = (x.dtype for x in jax.tree.leaves(self.variables))
    return wider(
      jnp.float32, *(d for d in dtypes if jnp.issubdtype(d, jnp.floating))
    )

  def prepared(self, images: Array) -> Array:
    """Returns images as a call takes them: of ours, normalised."""
    if self.own:
      return normalize_pixels(images).astype(self.dtype)
    return images

  def prepared_floats(self, images: Array) -> Array:
    """Returns what `prepared` does, to mix pixels or to differentiate by them.

    Raises:
      ValueError: images are integers, which the model may take as other
        pictures than the same numbers as floats.
    """
    images = self.prepared(images)
    if jnp.issubdtype(images.dtype, jnp.floating):
      return images
    if self.call.makes_floats():
      return images.astype(self.dtype)
    raise ValueError(
      "images must be floats here, where pixels change by fractions; they are "
      f"{images.dtype}, and the model may scale that. Give the floats that it "
      "takes as the same pictures: images / 255, if it divides integers so."
    )

  def batch(self, images: ArrayLike) -> Array:
    """Returns images as an array.

    Raises:
      ValueError: they are not what the model takes, as far as is known.
    """
    images = jnp.asarray(images)
    check_batch(images)
    if self.own:
      check_rgb(images)
    return images

  def pixels(self, images: Array) -> Array:
    """Returns images as floats that `prepared` takes: of ours RGB in [0, 1].

    Raises:
      ValueError: as `prepared_floats`.
    """
    convert = in_unit_range if self.own else self.prepared_floats
    pixels = convert(images)
    return pixels.astype(wider(pixels.dtype, self.dtype))

  def start(self, pixels: Array) -> Array:
    """Returns pixels that show nothing: of ours the mean colour, else 0."""
    return (mean_colour if self.own else jnp.zeros_like)(pixels)

  def as_images(self, x: Array) -> Array:
    """Returns `[B H W 3]` as the model takes images."""
    return jnp.moveaxis(x, -1, -3) if self.channels_first else x

  def check_evaluates(self) -> None:
    """Checks that the model is in evaluation mode, where that can be seen.

    Raises:
      ValueError: it is in training mode.
    """
    if self.call.in_training(self.variables):
      raise ValueError(
        "The model must be in evaluation mode, so that nothing is dropped and "
        f"statistics are not the batch's. {self.call.to_evaluate} and wrap it "
        "again."
      )

  def num_classes(self, images: Array) -> int:
    """Returns K of images as the model takes them. Nothing is computed.

    Raises:
      ValueError: they are no batch of pictures, or the model takes them with
        their axes in another order.
    """
    check_batch(images)
    try:
      return jax.eval_shape(Tapped.logits, self, images).shape[-1]
    except Exception as error:
      to_last = images.shape[1] < images.shape[-1]
      order = (0, 2, 3, 1) if to_last else (0, 3, 1, 2)
      shape = tuple(images.shape[i] for i in order)
      other = jax.ShapeDtypeStruct(shape, images.dtype)
      try:
        jax.eval_shape(Tapped.logits, self, other)
      except Exception:
        raise error from None
      where = "last" if to_last else "first"
      raise ValueError(
        f"images must be {list(shape)} for this model; they have shape "
        f"{images.shape}. Its channels come {where}: transpose{order}."
      ) from error

  def as_network(self) -> network.Network:
    """Returns the model as one that can be trained by command.

    Raises:
      ValueError: it is not of NNX, or cannot be cut at the place.
    """
    model = self.call.as_module(self.variables)
    if model is None:
      raise ValueError(
        "Only an nnx.Module can be trained by command. Train models of other "
        "libraries in a loop of your own, with gc_jax.consistency."
      )
    if self.own:
      if self.at != taps.last_layer(model):
        raise ValueError(
          f"A model of gc_jax is trained at {taps.last_layer(model)!r}, and is "
          f"wrapped at {self.at!r}. Wrap it without at=."
        )
      return model
    settings = Static.of(self.call.all_settings(self.variables))
    return Adapted(model, self.at, self.cells, self.channels_first, settings)

  @property
  def state(self) -> PyTree:
    """Returns what a call may change, as the model's library has it."""
    return self.call.state(self.variables)

  def channels_last(self, x: Array) -> Array:
    """Returns what lies as an image does, `[... H W 3]`."""
    return jnp.moveaxis(x, -3, -1) if self.channels_first else x

  def __call__(
    self, images: Array, offset: Float[Array, "B h w D"] | None = None
  ) -> tuple[Float[Array, "B K"], Float[Array, "B h w D"], PyTree]:
    """Runs the model once.

    Args:
      images: as the model takes them; of ours, normalised.
      offset: added to the activations at the place; None adds nothing.

    Returns:
      Logits; the activations at the place, without the offset; the variables
      after the call, with new running statistics where the model is in
      training mode.
    """
    native = None if offset is None else self.cells.back(offset)
    logits, seen, variables = self.call(self.variables, images, self.at, native)
    if self.at not in seen:
      raise ValueError(
        f"A call of the model must pass the place {self.at!r}, and did not. "
        "Tap another; gc_jax.places lists those that are passed."
      )
    if not isinstance(logits, jax.Array) or logits.ndim != 2:
      came = getattr(logits, "shape", f"a {type(logits).__name__}")
      raise ValueError(
        f"The model must return logits [B K]; it returned {came}. Wrap a "
        "function f(images, tap) that returns them."
      )
    return logits, self.cells.of(seen[self.at], self.at), variables

  def logits(self, images: Array) -> Float[Array, "B K"]:
    """Returns the scores of every class, of images or of their `pixels`."""
    return self(self.prepared(images))[0]

  def no_offset(self, images: Array) -> Float[Array, "B h w D"]:
    """Returns zeros to add at the place; images are as a call takes them."""
    shape = jax.eval_shape(lambda: self(images)[1])
    dtype = wider(shape.dtype, jnp.float32)
    return jnp.zeros_like(shape, dtype=dtype)

  def looked(
    self, images: Array, targets: Int[Array, "B P"]
  ) -> tuple[Array, Float[Array, "B h w D"], Float[Array, "B P h w D"], PyTree]:
    """Returns logits, activations, gradients of targets, and variables.

    The gradients are d logit / d activation. All is differentiable by
    the variables, the gradients too.
    """

    def forward(offset):
      logits, activations, variables = self(images, offset)
      return logits, (activations, variables)

    logits, pull, (activations, variables) = jax.vjp(
      forward, self.no_offset(images), has_aux=True
    )
    start = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    gradients = jax.vmap(lambda s: pull(s)[0], in_axes=1, out_axes=1)(start)
    return logits, at_least_float32(activations), gradients, variables


def wrap(
  model: Any,
  at: str | Callable[[Any], Any] = "",
  *,
  axes: str = "",
  grid: tuple[int, int] | None = None,
  prefix: int = 0,
  channels_first: bool | None = None,
  **call: Any,
) -> Tapped:
  """Returns a model with a place to look at, for all that takes a model here.

  The model is left as it was, and runs as it is: in the mode that it is in, on
  images as it takes them.

  Args:
    model: an `nnx.Module`; a Linen `(module, variables)`; an `equinox.Module`
      of one image, or `(module, state)`; a `keras.Model` on JAX; a function
      `f(images, tap)` of logits, which calls `tap(x)` once and goes on with
      what that returns; or a pair of functions `(features, classify)`.
    at: path of the module whose output is looked at: "layer4", "blocks.11", a
      Keras layer's name, a layer of a model of ours under torchvision's name
      (the last, unless given). Of Equinox also a function, `lambda m:
      m.layer4`. Functions need none.
    axes: of the output there: "BhwD" (the default), or "BDhw" (Equinox's).
    grid: (h, w) of an output `[B n D]` of tokens.
    prefix: tokens that come before those of the grid, as a class token.
    channels_first: whether images are `[B 3 H W]`; by default as `axes`.
    **call: keyword arguments of the model's call, as `train=False`. Of Linen
      also `mutable`, the collections that a call may change, all by default.

  Raises:
    ValueError: there is no such place.
    TypeError: the model is of no kind above, or wrapped already.
  """
  if isinstance(model, Tapped):
    raise TypeError("model is wrapped already: give the model that it taps.")
  if grid is not None and axes:
    raise ValueError("axes= goes with maps and grid= with tokens: give one.")
  if grid is None and prefix:
    raise ValueError("prefix= goes with grid=(h, w) of tokens: give both.")
  if axes and sorted(axes) != sorted("BhwD"):
    raise ValueError(f"axes must be 'BhwD' or 'BDhw'; it is {axes!r}.")
  library = library_of(model)
  known = library.places(model)
  if callable(at):
    if library.named is None:
      raise TypeError("at must be the name of a place; it is a function.")
    at = library.named(model, at)
  at = at or library.place(model)
  if not at:
    raise ValueError(
      "at must name a place in the model, as at='layer4'; gc_jax.places lists "
      "them with their shapes."
    )
  if known and at not in known:
    raise ValueError(
      f"{unknown_name_message('at', at, known)} gc_jax.places lists them with "
      "their shapes."
    )
  function, variables = library.parts(model, call)
  axes = axes or library.axes
  if channels_first is None:
    channels_first = axes.index("D") < axes.index("h")
  cells = Cells("BnD", grid, prefix) if grid else Cells(axes)
  own = library is LIBRARIES["own"]
  return Tapped(
    variables,
    function,
    at,
    cells,
    channels_first,
    own,
    multi_label=own and model.multi_label,
  )


def places(
  model: Any, images: Any, **call: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the places that `wrap` can tap, with the shapes of their outputs.

  Nothing is computed.

  Args:
    model: as `wrap` takes it.
    images: as the model takes them; a `jax.ShapeDtypeStruct` will do.
    **call: keyword arguments of the model's call.
  """
  library = library_of(model)
  function, variables = library.parts(model, call)
  if not isinstance(images, jax.ShapeDtypeStruct):
    images = jnp.asarray(images)
  check_batch(images)
  is_own = library is LIBRARIES["own"]
  net = Tapped(variables, function, "", Cells(), own=is_own)
  in_order = []

  def outputs(net, images):
    seen = function(net.variables, net.prepared(images), None, None)[1]
    in_order.extend(seen)
    return seen

  shapes = jax.eval_shape(outputs, net, images)
  return {name: shapes[name] for name in in_order}


def net_of(model: Any) -> Tapped:
  """Returns a `Tapped` as it is, and a model of ours wrapped.

  Raises:
    TypeError: it is another model.
  """
  if isinstance(model, Tapped):
    return model
  if LIBRARIES["own"].makes(model):
    return wrap(model)
  raise TypeError(
    "The model must come from gc_jax.wrap or be one of gc_jax's own; it is a "
    f"{type(model).__name__}. Give gc_jax.wrap(model, at=...), with a place "
    "that gc_jax.places lists."
  )


def is_multi_label(model: Any, given: bool | None) -> bool:
  """Returns what was given, or what a model of ours knows; else False."""
  return getattr(model, "multi_label", False) if given is None else given


def tapped(model: Any, layer: str | None = None) -> Tapped:
  """Returns what methods look at: a model of ours at a layer, in float32.

  A `Tapped` comes back as it is.

  Raises:
    ValueError: there is no such layer, or one of a `Tapped` is asked for.
  """
  if isinstance(model, Tapped):
    if layer not in (None, model.at):
      raise ValueError(
        f"layer={layer!r} must be left out for a wrapped model, which is "
        f"looked at where it was wrapped, {model.at!r}. Wrap it elsewhere."
      )
    return model
  layer = layer or taps.last_layer(model)
  taps.input_path(model, layer)
  function, variables = LIBRARIES["own"].parts(taps.in_float32(model), {})
  return Tapped(variables, function, layer, Cells(), own=True)
