"""How a model is called so that one output is seen, and moved by an offset."""

import abc
import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from gc_jax.method.types import is_known


class Call(abc.ABC):
  """How a model whose arrays are given is called. Two equal ones run alike."""

  # Whether it may hold arrays beside its variables.
  holds_arrays: ClassVar[bool] = False
  # What brings a model into evaluation mode.
  to_evaluate: ClassVar[str] = "Call model.eval()"

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

  def drawn_anew(self, variables: PyTree) -> PyTree:
    """Returns variables for one more call, which draws other random numbers.

    They are the same where a call itself counts on.
    """
    return variables

  def as_module(self, variables: PyTree) -> nnx.Module | None:
    """Returns the model as an NNX module; None if it is of another library."""
    del variables
    return None

  def all_settings(self, variables: PyTree) -> dict[str, Any]:
    """Returns the keyword arguments of a call of `as_module`."""
    del variables
    return {}

  def makes_floats(self) -> bool:
    """Returns whether the model itself first makes floats of integers.

    Then it takes these as the same picture.
    """
    return False

  def in_training(self, variables: PyTree) -> bool:
    """Returns whether a call would use the batch's statistics or drop out.

    False where only a setting of the call says so, by a name that the user
    chose.
    """
    del variables
    return False


def check_batch(images: Array | jax.ShapeDtypeStruct) -> None:
  """Checks the shape of images.

  Raises:
    ValueError: they are no batch of pictures.
  """
  if len(images.shape) != 4 or 0 in images.shape:
    raise ValueError(
      "images must be a batch of at least one, with four axes; they have shape "
      f"{images.shape}. For one picture, give images[None]."
    )


def check_rgb(images: Array | np.ndarray) -> None:
  """Checks images for a model of ours; of those in a trace, no values.

  Raises:
    ValueError: they are not RGB, uint8 or float in [0, 1], `[B H W 3]`.
  """
  if images.ndim != 4 or images.shape[-1] != 3:
    hint = "Stack RGB pictures of one size."
    if images.ndim == 3 and images.shape[-1] == 3:
      hint = "For one picture, give images[None]."
    elif images.ndim == 4 and images.shape[1] == 3:
      hint = "The channels come last: transpose(0, 2, 3, 1)."
    elif images.ndim == 4 and images.shape[-1] in (1, 4):
      hint = "Convert grey or RGBA pictures to RGB."
    raise ValueError(
      f"images must be RGB [B H W 3]; they have shape {images.shape}. {hint}"
    )
  if 0 in images.shape:
    raise ValueError(
      f"images must hold at least one pixel; they have shape {images.shape}. "
      "Leave empty batches out."
    )
  if images.dtype == np.uint8:
    return
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"images must be uint8 or float; they are {images.dtype}. Convert them: "
      "astype('uint8') if they are in 0..255."
    )
  if not is_known(images):
    return
  low, high = float(images.min()), float(images.max())
  if not (low >= 0 and high <= 1):  # NaN is neither
    raise ValueError(
      f"Float images must be in [0, 1]; they are in [{low:g}, {high:g}]. "
      "Divide 0..255 by 255, and do not normalise: the model does."
    )


class Static:
  """What a model has beside arrays: two equal ones are compiled once.

  They are told apart by what they hold at first, of every type: lists, dicts,
  arrays of numpy, dataclasses, and the attributes of what is otherwise known
  by identity alone. Of functions, what they close over is not looked at.

  Args:
    value: what is held.
    about: what tells it apart from others; itself, unless given.
  """

  def __init__(self, value: Any, about: Any = None):
    self.value = value
    try:
      self._key = _key(value if about is None else about)
    except (TypeError, RecursionError):
      self._key = _Same(value)
    self._hash = hash(self._key)

  @classmethod
  def of(cls, settings: Mapping[str, Any]) -> "Static":
    """Returns settings as pairs, which can be hashed if they can."""
    return cls(tuple(sorted(settings.items())))

  def __hash__(self) -> int:
    return self._hash

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Static):
      return NotImplemented
    return bool(self._key == other._key)


class _Same:
  """Equals what holds the very same object, which it keeps alive."""

  def __init__(self, value: Any):
    self.value = value

  def __hash__(self) -> int:
    return id(self.value)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Same) and self.value is other.value


def _key(value: Any, above: tuple = ()) -> Any:
  """Returns what tells a value apart from others, and can be hashed.

  Raises:
    TypeError: nothing does.
  """
  kind = type(value)
  if kind in (str, int, bool, types.NoneType):
    return kind, value
  if any(value is each for each in above):  # a circle
    return _Same(value)
  inner = lambda x: _key(x, (*above, value))
  if isinstance(value, float | complex):
    held = repr(value)  # -0.0 equals 0.0, and NaN nothing
  elif isinstance(value, type | types.ModuleType):
    held = value
  elif isinstance(value, jax.Array):
    held = _Same(value)
  elif isinstance(value, np.ndarray):
    held = value.shape, value.dtype.str, value.tobytes()
  elif isinstance(value, jax.tree_util.PyTreeDef):
    held = inner(value.node_data()), tuple(map(inner, value.children()))
  elif isinstance(value, functools.partial):
    held = inner((value.func, value.args, value.keywords))
  elif isinstance(value, Mapping):
    held = tuple((inner(k), inner(v)) for k, v in value.items())
  elif isinstance(value, list | tuple):
    held = tuple(map(inner, value))
  elif isinstance(value, set | frozenset):
    held = frozenset(map(inner, value))
  elif kind.__hash__ is object.__hash__ and hasattr(value, "__dict__"):
    held = _Same(value), inner(vars(value))
  elif kind.__hash__ is None and hasattr(value, "__dict__"):
    held = inner(vars(value))
  elif dataclasses.is_dataclass(value):
    fields = [each for each in dataclasses.fields(value) if each.compare]
    held = tuple(inner(getattr(value, field.name)) for field in fields)
  else:
    hash(value)
    held = value
  return kind, held


@dataclasses.dataclass(frozen=True)
class Cells:
  """Where batch, channels and cells are in the activations at a place.

  Attributes:
    axes: "BhwD" or "BDhw" of a map, "BnD" of tokens.
    grid: (h, w) of tokens; of a composite, twice as high and wide, there may
      be four times as many.
    prefix: tokens before those of the grid, as a class token.
  """

  axes: str = "BhwD"
  grid: tuple[int, int] | None = None
  prefix: int = 0

  def of(self, x: Array, place: str) -> Float[Array, "B h w D"]:
    """Returns activations as maps.

    Raises:
      ValueError: they are none.
    """
    if x.ndim != len(self.axes):
      raise ValueError(self._wrong(x, place))
    if self.grid is None:
      return jnp.transpose(x, [self.axes.index(axis) for axis in "BhwD"])
    for grid in (self.grid, tuple(2 * side for side in self.grid)):
      if x.shape[1] == self.prefix + math.prod(grid):
        cells = x[:, self.prefix :]
        return cells.reshape(x.shape[0], *grid, x.shape[-1])
    raise ValueError(self._wrong(x, place))

  def back(self, maps: Float[Array, "B h w D"]) -> Array:
    """Returns maps as the activations have them; zeros in the prefix."""
    if self.grid is None:
      return jnp.transpose(maps, ["BhwD".index(axis) for axis in self.axes])
    tokens = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return jnp.pad(tokens, ((0, 0), (self.prefix, 0), (0, 0)))

  def _wrong(self, x: Array, place: str) -> str:
    if self.grid is not None:
      wanted = f"[B {self.prefix}+{self.grid[0]}*{self.grid[1]} D] tokens"
    else:
      wanted = f"a grid of cells, [{' '.join(self.axes)}]"
    return (
      f"The output at {place!r} must be {wanted}; it has shape {x.shape}. Tap "
      "another place (gc_jax.places lists them), give axes='BDhw' if channels "
      "come first, or grid=(h, w) and prefix=n if it is n tokens and then h * "
      "w of a grid."
    )


class Recorder:
  """Sees the outputs of modules, and adds the offset at one of them."""

  def __init__(self, at: str | None, offset: Array | None):
    self.at, self.offset = at, offset
    self.seen: dict[str, Array] = {}
    self._passed: set[str] = set()
    self._trace = _current_trace()

  def __call__(self, path: str, output: Any) -> Any:
    """Returns the output, with the offset if it is the one at the place."""
    if self.at not in (None, path):
      return output
    is_inside = _current_trace() != self._trace
    is_array = isinstance(output, jax.Array)
    is_real = is_array and jnp.issubdtype(output.dtype, jnp.floating)
    if self.at is None:
      if path in self._passed:
        self.seen.pop(path, None)  # `wrap` refuses what is passed twice
      elif is_real and not is_inside:
        self.seen[path] = output
      self._passed.add(path)
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
    if not is_real:
      came = f"of {output.dtype}" if is_array else f"a {type(output).__name__}"
      raise ValueError(
        f"The output at {path!r} must be one array of floats; it is {came}. "
        "Tap another place; gc_jax.places lists them."
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


def with_other_keys(arrays: PyTree, *, raw: bool = False) -> PyTree:
  """Returns a tree of arrays in which every random key is another.

  Args:
    arrays: those that are no keys stay.
    raw: whether vectors of uint32 are keys too.
  """

  def other(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      flat = jax.vmap(lambda key: jax.random.fold_in(key, 1))(x.reshape(-1))
      return flat.reshape(x.shape)
    if raw and x.dtype == jnp.uint32 and x.ndim == 1:
      return jax.random.fold_in(x, 1)
    return x

  is_array = lambda x: isinstance(x, jax.Array)
  return jax.tree.map(lambda x: other(x) if is_array(x) else x, arrays)
