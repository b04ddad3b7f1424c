"""How a model is called so that one output is seen, and moved by an offset."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.extend import core
from jaxtyping import Array, PyTree


class Call(abc.ABC):
  """How a model whose arrays are given is called. Two equal ones run alike."""

  # Whether it may hold arrays beside its variables.
  holds_arrays: ClassVar[bool] = False

  @abc.abstractmethod
  def __call__(
    self,
    variables: PyTree,
    images: Array,
    at: str | None,
    offset: Array | None,
  ) -> tuple[Array, dict[str, Array], PyTree]:
    """Returns logits, path -> output of a module, and the variables after.

    The offset is added to the output at a path. For None every path is seen.
    """

  def state(self, variables: PyTree) -> PyTree:
    """Returns what a call may change, as the library has it."""
    return variables

  def as_module(self, variables: PyTree) -> nnx.Module | None:
    """Returns the model as an NNX module; None if it is of another library."""
    del variables
    return None

  def in_training(self, variables: PyTree) -> bool:
    """Returns whether a call would use the batch's statistics or drop out.

    False where only a setting of the call says so, by a name that the user
    chose.
    """
    del variables
    return False


class Static:
  """What a model has beside arrays: two equal ones are compiled once.

  Lists, dicts, arrays of numpy and dataclasses inside are told apart by what
  they hold at first; what else cannot be hashed, by identity.
  """

  def __init__(self, value: Any):
    self.value = value
    try:
      self._key = _hashable(value)
    except TypeError:
      self._key = "id", id(value)

  @classmethod
  def of(cls, settings: Mapping[str, Any]) -> "Static":
    """Returns settings as pairs, which can be hashed if they can."""
    return cls(tuple(sorted(settings.items())))

  def __hash__(self) -> int:
    return hash(self._key)

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Static):
      return NotImplemented
    return bool(self._key == other._key)


def _hashable(value: Any) -> Any:
  """Returns a value, or what tells it apart from others and can be hashed.

  Raises:
    TypeError: nothing does.
  """
  try:
    hash(value)
  except TypeError:
    pass
  else:
    return value
  if isinstance(value, np.ndarray):
    held = value.shape, value.dtype.str, value.tobytes()
  elif isinstance(value, Mapping):
    held = tuple((k, _hashable(v)) for k, v in value.items())
  elif isinstance(value, list | tuple):
    held = tuple(map(_hashable, value))
  elif isinstance(value, set):
    held = frozenset(value)
  elif dataclasses.is_dataclass(value):
    fields = dataclasses.fields(value)
    held = tuple(_hashable(getattr(value, field.name)) for field in fields)
  else:
    raise TypeError(f"{type(value).__name__} cannot be hashed.")
  return type(value), held


class Recorder:
  """Sees the outputs of modules, and adds the offset at one of them."""

  def __init__(self, at: str | None, offset: Array | None):
    self.at, self.offset = at, offset
    self.seen: dict[str, Array] = {}
    self._trace = _current_trace()

  def __call__(self, path: str, output: Any) -> Any:
    """Returns the output, with the offset if it is the one at the place."""
    if self.at not in (None, path):
      return output
    is_inside = _current_trace() != self._trace
    if self.at is None:
      if isinstance(output, jax.Array) and not is_inside:
        self.seen[path] = output
      return output
    if is_inside:
      # What it puts out is one of many there, and is gone behind it.
      raise ValueError(
        f"A place must not be inside a vmap, jit, remat or loop of the model; "
        f"{path!r} is. Tap the module around that; gc_jax.places lists all "
        "that can be tapped."
      )
    if path in self.seen:
      raise ValueError(
        f"A place must be passed once in a call; the model passes {path!r} "
        "more often. Tap the module around it, or wrap a function f(images, "
        "tap) that taps one of the times."
      )
    if not isinstance(output, jax.Array):
      raise ValueError(
        f"The output at {path!r} must be one array; it is a "
        f"{type(output).__name__}. Tap another place; gc_jax.places lists them."
      )
    self.seen[path] = output
    if self.offset is None:
      return output
    return output + self.offset.astype(output.dtype)


def _current_trace():
  return core.get_opaque_trace_state(convention="flax")


def observed_class(
  module: Any, name: str, recorder: Callable[[str, Any], Any]
) -> type:
  """Returns the class of a module, derived so that its output is seen.

  All else that a model does with the module stays as it was.
  """
  kind = type(module)

  def __call__(self, *args, **kwargs):
    return recorder(name, kind.__call__(self, *args, **kwargs))

  return type(kind.__name__, (kind,), {"__call__": __call__})


def without_arrays(settings: Mapping[str, Any]) -> tuple[dict, dict]:
  """Returns the settings of a call that hold arrays, and the others."""
  has_arrays = lambda value: any(
    isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)
  )
  arrays = {name: x for name, x in settings.items() if has_arrays(x)}
  return arrays, {k: v for k, v in settings.items() if k not in arrays}
