"""Functions of arrays on meshes whose axes are explicit.

There JAX tells at each operation how its result is divided over the devices,
and refuses where it cannot: gathers along a divided axis, merged axes. What
rearranges a batch runs with the axes in automatic mode instead, in which the
compiler decides; its results are then divided as the batch is.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

_F = TypeVar("_F", bound=Callable)


def dividing_freely(function: _F) -> _F:
  """Returns a function that also takes arrays divided over explicit axes.

  Leading axes of its results are divided as that of the first argument which
  is, where the devices divide them; all else is on every device.
  """

  @functools.wraps(function)
  def run(*args, **kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    shardings = [x for x in map(_explicit, leaves) if x and any(x.spec)]
    if not shardings:
      return function(*args, **kwargs)
    is_array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
    pairs = [*zip(leaves, is_array, strict=True)]
    arrays = [x for x, is_one in pairs if is_one]
    others = tuple(None if is_one else x for x, is_one in pairs)
    call = _Call(function, tree, others)
    structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    found, out = jax.tree.flatten(jax.eval_shape(call, *structs))
    first = next((x for x in shardings if x.spec[0]), shardings[0])
    # Compiled, as no operation alone knows the devices of a mesh.
    return _automatic(call, out, tuple(_as(first, x) for x in found), *arrays)

  return run


def divided_as(
  like: jax.Array, function: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
  """Returns an array that a function gives, divided as another of its shape.

  Args:
    like: one of the arrays.
    function: of the arrays; may be anything on explicit axes.
    *arrays: on a mesh with explicit axes, or not.
  """
  known = [x for x in map(_explicit, (like, *arrays)) if x]
  if not known:
    return function(*arrays)
  everywhere = NamedSharding(known[0].mesh, PartitionSpec())
  sharding = _explicit(like) or everywhere
  return jax.sharding.auto_axes(function, out_sharding=sharding)(*arrays)


@dataclasses.dataclass(frozen=True)
class _Call:
  """A function and all of its arguments that are no arrays."""

  function: Callable
  tree: Any
  others: Sequence[Any]  # None in the place of an array

  def __call__(self, *arrays):
    left = iter(arrays)
    leaves = [next(left) if x is None else x for x in self.others]
    args, kwargs = jax.tree.unflatten(self.tree, leaves)
    return self.function(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _automatic(call, tree, shardings, *arrays):
  shardings = jax.tree.unflatten(tree, shardings)
  return jax.sharding.auto_axes(call, out_sharding=shardings)(*arrays)


def _explicit(x: Any) -> NamedSharding | None:
  """Returns how an array is divided, if it is on a mesh with explicit axes."""
  if not isinstance(x, jax.Array):
    return None
  sharding = jax.typeof(x).sharding
  has_explicit = AxisType.Explicit in sharding.mesh.axis_types
  return sharding if has_explicit else None


def _as(first: NamedSharding, x: jax.ShapeDtypeStruct) -> NamedSharding:
  """Returns a sharding whose leading axis is another's, if that divides it."""
  names = first.spec[0] or ()
  names = names if isinstance(names, tuple) else (names,)
  size = math.prod(first.mesh.shape[name] for name in names)
  is_divided = x.ndim and x.shape[0] % size == 0
  return NamedSharding(first.mesh, PartitionSpec(*([names] * bool(is_divided))))
