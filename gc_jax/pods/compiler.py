"""The compiler of devices that are not here, and what it says of a program.

TPU slices are compiled for by libtpu alone. Of a program it tells the memory,
the collectives, or why it refused.
"""

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from gc_jax.runtime.messages import unknown_name_message

LOCAL = "local"
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")

# Generation -> slices. libtpu ends the process at one it does not have.
SLICES = {
  "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16"),
  "v4": _CUBES,
  "v5e": _FLAT,
  "v5p": (*_CUBES, "8x8x8"),
  "v6e": _FLAT,
  "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
}
TOPOLOGIES = tuple(
  f"{generation}:{size}" for generation in SLICES for size in SLICES[generation]
)

# Unless these are set, libtpu asks the machine's metadata server for them and
# waits for an answer. Their values do not matter to what is compiled.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  # Nothing is run: two processes may compile at once.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str) -> Sequence[jax.Device]:
  """Returns the devices of a topology, or those that are here for `LOCAL`.

  Nothing can be put on those of a pod. Call it before anything asks jax for a
  device: for a pod, this process itself keeps only its CPU.

  Raises:
    ValueError: there is no such topology.
    ModuleNotFoundError: libtpu is not installed.
  """
  if name == LOCAL:
    return jax.devices()
  if name not in TOPOLOGIES:
    raise ValueError(
      unknown_name_message("--topology", name, [LOCAL, *TOPOLOGIES], most=50)
    )
  spec = importlib.util.find_spec("libtpu")
  if spec is None or spec.origin is None:  # a folder of that name has no origin
    # As jax's extra "tpu" asks for it: "libtpu==0.0.42.*; extra == ...".
    required = importlib.metadata.requires("jax") or ()
    named = [each for each in required if re.match(r"libtpu\b", each)]
    raise ModuleNotFoundError(
      "Compiling for a TPU needs its compiler, libtpu, and it is not installed "
      "(no TPU is needed). Use launch/preflight.sh, which installs it into an "
      "environment of its own; or make one, as libtpu disturbs training on "
      f"other devices: pip install '{named[0].split(';')[0].strip()}'"
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  jax.config.update("jax_platforms", "cpu")
  # Both cores of a v4 chip are one device, as jax has them there.
  options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  return topologies.get_topology_desc(
    platform="tpu", topology_name=name, **options
  ).devices


def versions(name: str) -> str:
  """Returns the compiler for a topology, with its versions."""
  if name == LOCAL:
    return f"jax {jax.__version__}"
  libtpu = importlib.metadata.version("libtpu")
  return f"jax {jax.__version__}, libtpu {libtpu}"


def memory_limit(name: str, devices: Sequence[jax.Device]) -> int | None:
  """Returns the bytes that programs may use on each of the devices.

  For a pod, the compiler says so in its error on a program that fits nowhere.
  None: the limit is not known, as on a CPU.
  """
  if name == LOCAL:
    return (devices[0].memory_stats() or {}).get("bytes_limit")
  huge = jax.ShapeDtypeStruct(
    (2**44,), jnp.int8, sharding=SingleDeviceSharding(devices[0])
  )
  try:
    jax.jit(lambda x: x + 1).lower(huge).compile()
  except jax.errors.JaxRuntimeError as error:
    if found := read_out_of_memory(str(error)):
      return found.limit
  return None


# What it says, as text and numbers.

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
