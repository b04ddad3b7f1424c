"""Walks through the operations of a traced program, whatever wrote it.

Excitation backprop and FullGrad have a rule for each kind of layer. Here a
layer is what JAX traced of it: a convolution or a product with weights, a sum,
a pooling, the multiplication and addition of a normalisation. So the rules hold
for any network made of these, in any library.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.typing import ArrayLike
from jaxtyping import Array

# Products with weights: linear in the operand that is followed.
PRODUCTS = {"dot_general", "conv_general_dilated"}
SUMS = {"reduce_sum", "reduce_window_sum"}
# They put numbers elsewhere, and change none.
_PLACES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "slice"}
_PLACES |= {"dynamic_slice", "gather", "concatenate", "pad", "rev", "split"}
_PLACES |= {"convert_element_type", "reduce_precision", "copy", "copy_p"}
_PLACES |= {
  "expand_dims",
  "sharding_constraint",
  "reshard",
  "optimization_barrier",
}
MOVES = frozenset(_PLACES)
# They choose among numbers: ReLUs and maxima.
CHOICES = frozenset(
  {"max", "min", "clamp", "select_n", "reduce_max", "reduce_window_max"}
)
_INNER = ("jaxpr", "call_jaxpr")  # where calls keep what they call
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"}
_CALLS |= {"remat2", "custom_vjp_call", "custom_jvp_call"}


class Value(NamedTuple):
  """An array on the way through a program.

  Attributes:
    array: what it holds.
    follows: whether it is real and depends on what is followed.
    note: whatever the rule keeps beside it.
  """

  array: ArrayLike
  follows: bool = False
  note: Any = None


class Operation(NamedTuple):
  """An operation at least one of whose operands is followed.

  Attributes:
    name: of JAX's primitive.
    operands: what it gets.
    compute: arrays of the operands -> its outputs.
    params: of the primitive.
  """

  name: str
  operands: Sequence[Value]
  compute: Callable[[Sequence[ArrayLike]], list[Array]]
  params: Mapping[str, Any] = MappingProxyType({})

  @property
  def arrays(self) -> list[ArrayLike]:
    """Returns the arrays of the operands."""
    return [operand.array for operand in self.operands]

  @property
  def followed(self) -> list[int]:
    """Returns the positions of the operands that are followed."""
    return [i for i, operand in enumerate(self.operands) if operand.follows]

  def of_one(self, place: int) -> Callable[[Array], Array]:
    """Returns the operation as a function of one operand, the others given."""
    arrays = self.arrays
    return lambda x: self.compute([*arrays[:place], x, *arrays[place + 1 :]])[0]


def walk(
  function: Callable[..., Any],
  arguments: Sequence[Array],
  rule: Callable[[Operation], list[Value]],
  notes: Any = None,
) -> Any:
  """Returns what a function gives when each operation is done by a rule.

  Args:
    function: of arrays, traced once; its output is a tree of arrays.
    arguments: they are followed.
    rule: does an operation of which an operand is followed. The others are
      computed as they are; calls are entered.
    notes: of the arguments.

  Returns:
    The tree, with a `Value` for each array.
  """
  traced, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
  inputs = [Value(x, True, notes) for x in arguments]
  values = _evaluated(traced.jaxpr, traced.consts, inputs, rule)
  return jax.tree.unflatten(jax.tree.structure(out), values)


def _evaluated(jaxpr, consts, inputs, rule) -> list[Value]:
  known = dict(zip(jaxpr.constvars, map(Value, consts), strict=True))
  known |= dict(zip(jaxpr.invars, inputs, strict=True))
  look = lambda atom: (
    Value(atom.val) if isinstance(atom, core.Literal) else known[atom]
  )
  for equation in jaxpr.eqns:
    operands = [look(atom) for atom in equation.invars]
    compute = _alone(jaxpr, equation)
    if not any(operand.follows for operand in operands):
      found = map(Value, compute([operand.array for operand in operands]))
    elif (inner := _called(equation)) is not None:
      found = _evaluated(*inner, operands, rule)
    else:
      operation = Operation(
        equation.primitive.name, operands, compute, equation.params
      )
      if any(_is_real(v.aval) for v in equation.outvars):
        found = rule(operation)
      else:  # a comparison or a position: nothing is handed down through it
        found = map(Value, compute(operation.arrays))
    known |= dict(zip(equation.outvars, found, strict=True))
  return [look(atom) for atom in jaxpr.outvars]


def _is_real(aval) -> bool:
  return jnp.issubdtype(getattr(aval, "dtype", bool), jnp.floating)


def _called(equation) -> tuple[Any, Sequence[ArrayLike]] | None:
  """Returns the program that an operation calls, and its constants.

  A function with a derivative of its own that only chooses, as `jax.nn.relu`,
  is not entered: its derivative says what happens at a tie. One that cuts off
  above, as `jax.nn.relu6`, is: there are rules for that.
  """
  name = equation.primitive.name
  if name not in _CALLS:
    return None
  inner = next(equation.params[k] for k in _INNER if k in equation.params)
  jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
  uncut = MOVES | CHOICES - {"min", "clamp"}
  if name == "custom_jvp_call" and _names(jaxpr) <= uncut:
    return None
  return jaxpr, consts


def _names(jaxpr) -> set[str]:
  """Returns the operations of a program, those of calls within it too."""
  names = set()
  for equation in jaxpr.eqns:
    inner = _called(equation)
    names |= {equation.primitive.name} if inner is None else _names(inner[0])
  return names


def operations_within(programs: Any) -> list[Any]:
  """Returns the operations of all programs in a tree, and within those."""
  found, waiting = [], jax.tree.leaves(programs)
  for each in waiting:  # it grows meanwhile
    for equation in getattr(getattr(each, "jaxpr", each), "eqns", ()):
      found.append(equation)
      waiting += jax.tree.leaves([*equation.params.values()])
  return found


def coarsest(function: Callable[..., Any], *arguments: Array) -> jnp.dtype:
  """Returns the coarsest float type that a function computes in."""
  traced = jax.make_jaxpr(function)(*arguments)
  types = {
    output.aval.dtype
    for operation in operations_within(traced)
    for output in operation.outvars
    if _is_real(output.aval)
  }
  of_arguments = {x.dtype for x in arguments}
  return max(types or of_arguments, key=lambda dtype: jnp.finfo(dtype).eps)


def only_chooses(operation: Operation) -> bool:
  """Returns whether the derivative of an operation moves or chooses."""
  # What is left of custom derivatives only chooses, see `_called`.
  return operation.name in MOVES | CHOICES | {"custom_jvp_call"}


def is_linear(operation: Operation) -> bool:
  """Returns whether the outputs are linear in what is followed, or affine."""
  name, followed = operation.name, operation.followed
  if name in MOVES | SUMS | {"add", "add_any", "sub", "neg"}:
    return True
  if name == "div":
    return followed == [0]
  return name in PRODUCTS | {"mul"} and len(followed) == 1


class DoesNotHold(ValueError):
  """A method does not hold for a network; the message says why."""


def does_not_hold(operation: Operation, what: str) -> DoesNotHold:
  """Returns the error that a method has no rule for an operation."""
  of = "of two activations" if len(operation.followed) > 1 else "of activations"
  return DoesNotHold(
    f"{what} must find only operations it has a rule for: convolutions, "
    "products with weights, normalisations in evaluation mode, poolings, sums "
    f"and ReLUs. This model has {operation.name!r} {of}. Use a method of "
    "gradients or a Grad-CAM, which hold for every model."
  )


def _alone(jaxpr, equation) -> Callable[[Sequence[ArrayLike]], list[Array]]:
  """Returns what one operation of a trace computes from its operands."""
  is_input = [not isinstance(atom, core.Literal) for atom in equation.invars]
  single = jaxpr.replace(
    constvars=[],
    invars=list(itertools.compress(equation.invars, is_input)),
    outvars=equation.outvars,
    eqns=[equation],
    debug_info=jaxpr.debug_info.with_unknown_names(),
  )
  function = core.jaxpr_as_fun(core.ClosedJaxpr(single, []))
  return lambda values: function(*itertools.compress(values, is_input))
