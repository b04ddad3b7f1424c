"""The libraries whose models can be wrapped: `LIBRARIES`."""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import PyTree

from gc_jax.attribution import flax_models, other_models, taps
from gc_jax.attribution.calls import Call
from gc_jax.models.network import Network


class Library(NamedTuple):
  """What is known of the models of a library.

  Attributes:
    makes: whether a model is one of its own.
    parts: (model, settings of its call) -> how it is called, and its arrays.
    places: names of what can be tapped; none if they are known in a call only.
    axes: of activations and images, if not said.
    place: the name of the place, if not said.
    named: (model, function that gives a module) -> the module's name.
  """

  makes: Callable[[Any], bool]
  parts: Callable[[Any, Mapping[str, Any]], tuple[Call, PyTree]]
  places: Callable[[Any], Collection[str]]
  axes: str = "BhwD"
  place: Callable[[Any], str] = lambda model: ""
  named: Callable[[Any, Callable], str] | None = None


def _is(model: Any, module: str, kind: str) -> bool:
  """Returns whether a model is of a class of a module, if that is imported."""
  library = sys.modules.get(module)
  return library is not None and isinstance(model, getattr(library, kind))


def _first(model: Any) -> Any:
  """Returns the module of a pair of a module and its variables."""
  return model[0] if isinstance(model, tuple) and len(model) == 2 else model


# The first that makes a model runs it.
LIBRARIES = {
  "own": Library(
    lambda model: isinstance(model, Network),
    flax_models.own_parts,
    taps.layers,
    place=taps.last_layer,
  ),
  "nnx": Library(
    lambda model: isinstance(model, nnx.Module),
    flax_models.nnx_parts,
    lambda model: [*flax_models.nnx_modules(model)],
  ),
  "linen": Library(
    lambda model: (
      isinstance(model, tuple) and _is(_first(model), "flax.linen", "Module")
    ),
    flax_models.linen_parts,
    lambda model: (),
  ),
  "equinox": Library(
    # Of two functions that are modules, neither is the other's state.
    lambda model: (
      _is(_first(model), "equinox", "Module")
      and not (isinstance(model, tuple) and callable(model[1]))
    ),
    other_models.equinox_parts,
    lambda model: [*other_models.equinox_modules(_first(model))],
    "BDhw",
    named=lambda model, where: other_models.equinox_name(_first(model), where),
  ),
  "keras": Library(
    lambda model: _is(model, "keras", "Model"),
    other_models.keras_parts,
    lambda model: [*other_models.keras_layers(model)],
  ),
  "function": Library(
    lambda model: all(
      map(callable, model if isinstance(model, tuple) else (model,))
    ),
    other_models.function_parts,
    lambda model: (other_models.FUNCTION,),
    place=lambda model: other_models.FUNCTION,
  ),
}


def library_of(model: Any) -> Library:
  """Returns the library that a model is of.

  Raises:
    TypeError: it is of none.
  """
  # What makes a model can be called too, as a function can.
  first = _first(model)
  came = f"the class {first.__name__}" if isinstance(first, type) else ""
  if not came and _is(model, "flax.linen", "Module"):
    came = f"a {type(model).__name__} without its variables"
    if model.scope is not None:
      came = f"a bound {type(model).__name__}: give model.unbind(), the pair"
  for library in () if came else LIBRARIES.values():
    if library.makes(model):
      return library
  raise TypeError(
    "model must be an nnx.Module, a Linen (module, variables), an Equinox "
    "module, a Keras model, a function f(images, tap) or a pair (features, "
    f"classify); it is {came or f'a {type(model).__name__}'}."
  )
