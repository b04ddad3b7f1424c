"""Which axes of an activation are rows, columns and channels.

A program may move its axes as it likes: channels come first in one part and
last in another, cells become tokens and a grid again. Here each axis is
followed from the pictures on, through what moves it; a convolution says anew
what its axes are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from gc_jax.attribution.programs import DoesNotHold, Operation


class _Part(NamedTuple):
  """A part of an axis: "B", "H", "W" or "D", and how many there are."""

  role: str
  size: int


# For each axis its parts, from the outermost; of an axis of size 1, none.
Axes = list[list[_Part]]
# Or the name of the operation behind which they are not known.
Layout = Axes | str


def of(roles: str, shape: Sequence[int]) -> Axes:
  """Returns the layout of an array whose axes are `roles`, as "BHWD"."""
  return [[_Part(*each)] for each in zip(roles, shape, strict=True)]


def after(
  operation: Operation, layouts: Sequence[Layout], output: Array
) -> Layout:
  """Returns the layout of an output.

  Args:
    operation: that was done.
    layouts: of its operands that are followed.
    output: its result.
  """
  found = _moved(operation, layouts, output.shape)
  if isinstance(found, str):
    return found
  sized = zip(found, output.shape, strict=True)
  return [_resized(parts, size) for parts, size in sized]


def _resized(parts: list[_Part], size: int) -> list[_Part]:
  """Returns the parts of an axis that a window or a slice made smaller.

  Several stay as they are: without its class token a row of cells is one again.
  """
  if len(parts) > 1 or size == 1:
    return parts
  return [_Part(parts[0].role if parts else "D", size)]


def _moved(
  operation: Operation, layouts: Sequence[Layout], shape: Sequence[int]
) -> Layout:
  """Returns an axis of before for each of an output, whatever its size."""
  name, params = operation.name, operation.params
  if name == "conv_general_dilated":
    return _convolved(params["dimension_numbers"], layouts[0], shape)
  known = [each for each in layouts if not isinstance(each, str)]
  if not known:
    return layouts[0]
  axes = known[0]
  match name:
    case "transpose":
      return [axes[axis] for axis in params["permutation"]]
    case "broadcast_in_dim":
      placed = params["broadcast_dimensions"]
      return [
        axes[placed.index(axis)] if axis in placed else []
        for axis in range(len(shape))
      ]
    case "squeeze" | "reduce_sum" | "reduce_max":
      gone = params["dimensions" if name == "squeeze" else "axes"]
      return [each for axis, each in enumerate(axes) if axis not in gone]
    case "reshape":
      return _reshaped(axes, shape)
    case "dot_general":
      return _multiplied(operation, axes, shape)
    case "gather":
      return _gathered(axes, params["dimension_numbers"], len(shape))
  return axes if len(axes) == len(shape) else name


def _convolved(numbers, before: Layout, shape: Sequence[int]) -> Layout:
  """Returns the axes of a convolution's output, known by it alone.

  Rows and columns may have changed places before.
  """
  if len(shape) != 4:
    return "conv_general_dilated"
  batch, channels, *places = numbers.out_spec
  sides = "HW"
  if not isinstance(before, str):
    found = "".join(_role(before[axis]) for axis in numbers.lhs_spec[2:])
    sides = "WH" if found == "WH" else "HW"
  roles = dict(zip((batch, channels, *places), "BD" + sides, strict=True))
  return of("".join(roles[axis] for axis in range(4)), shape)


def _gathered(axes: Axes, numbers, ndim: int) -> Layout:
  """Returns the axes of what was picked along one of them."""
  picked = numbers.collapsed_slice_dims
  if len(picked) != 1 or ndim != len(axes):
    return "gather"
  left = iter([each for i, each in enumerate(axes) if i not in picked])
  new = axes[picked[0]]
  return [next(left) if i in numbers.offset_dims else new for i in range(ndim)]


def _reshaped(axes: Axes, shape: Sequence[int]) -> Layout:
  """Returns axes whose parts are those before, in the same order."""
  parts = [part for axis in axes for part in axis if part.size != 1]
  found = []
  for size in shape:
    axis = []
    while size != 1 and parts:
      part = parts.pop(0)
      if size % part.size == 0:
        axis.append(part)
        size = size // part.size
      elif part.size % size == 0:
        # Within patches of cells, places are channels.
        inner = "B" if part.role == "B" else "D"
        parts.insert(0, _Part(inner, part.size // size))
        axis.append(_Part(part.role, size))
        size = 1
      else:
        return "reshape"
    found.append(axis)
  return found


def _multiplied(operation: Operation, axes: Axes, shape) -> Axes:
  """Returns the axes of a product: batched, then those left of both sides.

  Weights make channels; of what sums over rows or columns alone, these.
  """
  (place,) = operation.followed
  contracted, batched = operation.params["dimension_numbers"]
  summed = [part.role for axis in contracted[place] for part in axes[axis]]
  role = summed[0] if len(summed) == 1 else "D"
  gone = {*contracted[place], *batched[place]}
  left = [axis for i, axis in enumerate(axes) if i not in gone]
  number = len(shape) - len(batched[place]) - len(left)
  start = len(batched[place]) + (len(left) if place == 0 else 0)
  new = [[_Part(role, size)] for size in shape[start : start + number]]
  both = (left, new) if place == 0 else (new, left)
  return [*(axes[axis] for axis in batched[place]), *both[0], *both[1]]


def as_map(term: Array, layout: Layout) -> Array:
  """Returns a term with channels last if it is a map, `[B h w D]`.

  Terms of other than four axes come back as they are, and those without rows
  and columns as `[B n]`.

  Raises:
    DoesNotHold: it is not known what its axes are.
  """
  if term.ndim != 4:
    return term
  if isinstance(layout, str):
    raise DoesNotHold(
      "FullGrad must know which axes of each bias are rows and columns; behind "
      f"{layout!r} in this model it does not, where an activation has shape "
      f"{term.shape}. Use a method of gradients or a Grad-CAM."
    )
  roles = [_role(axis) for axis in layout]
  missing = [role for role in "BHWD" if role not in roles]
  # What has one row or column, or one channel, may have lost its name.
  for i in range(4):
    if missing and term.shape[i] == 1 and not roles[i]:
      roles[i] = missing.pop(0)
  if sorted(roles) != sorted("BHWD"):
    first = roles.index("B") if "B" in roles else 0
    return jnp.moveaxis(term, first, 0).reshape(term.shape[first], -1)
  return jnp.transpose(term, [roles.index(role) for role in "BHWD"])


def _role(parts: Sequence[_Part]) -> str:
  """Returns what an axis is; of several things at once, nothing."""
  roles = {part.role for part in parts}
  return parts[0].role if parts and len(roles - {"D"}) < 2 else ""
