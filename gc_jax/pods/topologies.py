"""Devices to compile for that are not here: TPU slices, by libtpu alone."""

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from gc_jax.pods.compiled import read_out_of_memory
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

# libtpu asks the machine's metadata server for these, and waits for an answer,
# where they are not set. Their values do not matter to what is compiled.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  # Nothing is run: two processes may compile at once.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def check_topology(name: str) -> None:
  """Checks that there is a topology of this name.

  Raises:
    ValueError: there is none; names those that there are.
  """
  if name not in (LOCAL, *TOPOLOGIES):
    raise ValueError(
      unknown_name_message("--topology", name, [LOCAL, *TOPOLOGIES], most=50)
    )


def devices(name: str) -> Sequence[jax.Device]:
  """Returns the devices of a topology; nothing can be put on those of a pod.

  Call it before anything asks jax for a device: for a pod, this process's own
  become the CPU's alone.

  Args:
    name: of `TOPOLOGIES`, or `LOCAL` for the devices that are here.

  Raises:
    ValueError: there is no such topology.
    ModuleNotFoundError: libtpu is not installed; says how to.
  """
  check_topology(name)
  if name == LOCAL:
    return jax.devices()
  check_libtpu()
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  jax.config.update("jax_platforms", "cpu")
  # Both cores of a v4 chip are one device, as jax has them there.
  options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  return topologies.get_topology_desc(
    platform="tpu", topology_name=name, **options
  ).devices


def check_libtpu() -> None:
  """Checks that the TPU's compiler is installed.

  Raises:
    ModuleNotFoundError: it is not; says how to install the version that jax
      names.
  """
  spec = importlib.util.find_spec("libtpu")
  if spec is None or spec.origin is None:  # a folder that is called so
    raise ModuleNotFoundError(
      "Compiling for a TPU needs its compiler, libtpu, and it is not installed "
      f"(no TPU is needed): pip install '{_required_libtpu()}'"
    )


def compiler(name: str) -> str:
  """Returns what compiles for a topology, with versions.

  Args:
    name: of `TOPOLOGIES`, or `LOCAL`.
  """
  versions = f"jax {jax.__version__}"
  if name != LOCAL:
    versions += f", libtpu {importlib.metadata.version('libtpu')}"
  return versions


def _required_libtpu() -> str:
  """Returns the requirement of jax's extra "tpu": "libtpu==0.0.42.*"."""
  for requirement in importlib.metadata.requires("jax") or ():
    if re.match(r"libtpu\b", requirement):
      return requirement.split(";")[0].strip()
  return "libtpu"


def memory_limit(name: str, devices: Sequence[jax.Device]) -> int | None:
  """Returns the bytes that programs may use on each of the devices.

  A pod's compiler is asked: of a program that fits nowhere its error says so.

  Args:
    name: of `TOPOLOGIES`, or `LOCAL`.
    devices: of that name.

  Returns:
    None where nothing says so: on a CPU.
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
