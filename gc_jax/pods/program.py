"""What the compiler says of a program: memory, collectives, why it refused.

Text and numbers in; nothing is compiled or run here.
"""

import math
import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)B?"

# A line of HLO is "%name = TYPE op(operands), attributes". A type is an
# array's, "f32[8,16]{1,0:T(8,128)}", or a tuple of such in brackets.
_INSTRUCTION = re.compile(
  rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(", re.M
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z\d]*)\[([\d,]*)\]")


class Exchange(NamedTuple):
  """One collective of a program's text."""

  kind: str  # of `KINDS`
  shapes: tuple[tuple[int, ...], ...]  # of the arrays it makes on one device
  num_bytes: int  # of them together


class OutOfMemory(NamedTuple):
  """Why the compiler refused, in bytes of one device."""

  needed: int | None  # after all that it tried to save; None: it does not say
  limit: int


def memory(stats: Any) -> dict[str, int]:
  """Returns the bytes of a program on one device, as the compiler planned them.

  Of the `outputs`, those `aliased` take the place of arguments; `temporaries`
  lie beside both while it runs; `code` is the program itself. `stats` is the
  `memory_analysis()` of a compiled program.
  """
  found = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "aliased": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  return found | {"total": sum(found.values()) - 2 * found["aliased"]}


def exchanges(text: str) -> list[Exchange]:
  """Returns every collective of a program, in the order of its text.

  A collective inside a loop is listed once, however often the loop goes round;
  an asynchronous one by its start alone. The text is the HLO of `as_text()`.
  """
  found = []
  for produced, kind, start in _INSTRUCTION.findall(text):
    arrays = _ARRAY.findall(produced)
    if start and kind != "all-reduce":
      # (operands, results), what is sent and what arrives; a permutation's
      # have scalars behind them, its contexts.
      if kind == "collective-permute":
        arrays = [array for array in arrays if array[2]]
      arrays = arrays[len(arrays) // 2 :]
    shapes = tuple(
      tuple(int(dim) for dim in dims.split(",") if dim) for _, _, dims in arrays
    )
    num_bytes = sum(
      math.ceil(math.prod(shape) * (int(bits) if bits else 8) / 8)
      for shape, (_, bits, _) in zip(shapes, arrays, strict=True)
    )
    found.append(Exchange(kind, shapes, num_bytes))
  return found


def by_kind(exchanges: Iterable[Exchange]) -> dict[str, dict[str, int]]:
  """Returns kind -> how many collectives there are, and their bytes."""
  found = {}
  for each in exchanges:
    total = found.setdefault(each.kind, {"count": 0, "bytes": 0})
    total["count"] += 1
    total["bytes"] += each.num_bytes
  return found


def picture_sized(
  exchanges: Iterable[Exchange],
  picture: int,
  variables: Collection[int] = (),
) -> list[Exchange]:
  """Returns the collectives of arrays that may hold pictures or their features.

  Those are the arrays with at least as many elements as a picture, except
  gradients: arrays with as many elements as some variable of the model. Both
  `picture` and `variables` are numbers of elements.
  """
  return [
    each
    for each in exchanges
    if any(
      math.prod(shape) >= picture and math.prod(shape) not in variables
      for shape in each.shapes
    )
  ]


def read_out_of_memory(message: str) -> OutOfMemory | None:
  """Returns what a compiler's error says of memory; None: another error."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  if used := re.search(rf"Used {_SIZE} of {_SIZE} hbm", message):
    return OutOfMemory(_bytes(*used.groups()[:2]), _bytes(*used.groups()[2:]))
  if limit := re.search(rf"exceeds available HBM \({_SIZE}\)", message):
    needed = re.search(rf"\({_SIZE}\) exceeds available HBM", message)
    return OutOfMemory(
      _bytes(*needed.groups()) if needed else None, _bytes(*limit.groups())
    )
  return None


def _bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])
