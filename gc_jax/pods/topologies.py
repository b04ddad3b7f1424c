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

from gc_jax.pods.program import read_out_of_memory
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
  """Returns the devices of a topology; nothing can be put on those of a pod.

  Call it before anything asks jax for a device: for a pod, this process itself
  keeps only its CPU.

  Args:
    name: of `TOPOLOGIES`, or `LOCAL` for the devices that are here.

  Raises:
    ValueError: there is no such topology; names the known ones.
    ModuleNotFoundError: libtpu is not installed; says how to.
  """
  if name == LOCAL:
    return jax.devices()
  if name not in TOPOLOGIES:
    raise ValueError(
      unknown_name_message("--topology", name, [LOCAL, *TOPOLOGIES], most=50)
    )
  spec = importlib.util.find_spec("libtpu")
  if spec is None or spec.origin is None:  # a folder of that name has no origin
    raise ModuleNotFoundError(
      "Compiling for a TPU needs its compiler, libtpu, and it is not installed "
      f"(no TPU is needed): pip install '{_required_libtpu()}'"
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  jax.config.update("jax_platforms", "cpu")
  # Both cores of a v4 chip are one device, as jax has them there.
  options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  return topologies.get_topology_desc(
    platform="tpu", topology_name=name, **options
  ).devices


def _required_libtpu() -> str:
  """Returns the requirement of jax's extra "tpu": "libtpu==0.0.42.*"."""
  for requirement in importlib.metadata.requires("jax") or ():
    if re.match(r"libtpu\b", requirement):
      return requirement.split(";")[0].strip()
  return "libtpu"


def compiler(name: str) -> str:
  """Returns the compiler for a topology, with versions."""
  versions = f"jax {jax.__version__}"
  if name != LOCAL:
    versions += f", libtpu {importlib.metadata.version('libtpu')}"
  return versions


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
