"""The mesh, what lies where on it, and which process this is.

The one file that asks which process runs: everything else computes the same
on all of them, and lets `is_main` decide who writes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns all devices on one axis; a batch is divided along it.

  The axis is `Auto` (the compiler propagates shardings): optax's losses do
  not accept explicit ones.

  Args:
    devices: those of a machine that is not here, to compile for; None: those
      that are.
  """
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), (AXIS,), (AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of state: a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: equal shares of the first axis."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def to_devices(batch: Any, mesh: Mesh) -> Any:
  """Returns the global batch made of each process's share.

  Args:
    batch: numpy arrays, this process's share.
    mesh: from `make_mesh`.
  """
  sharding = divided(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def to_devices_ahead(batches: Iterator[Any], mesh: Mesh) -> Iterator[Any]:
  """Yields the global batches, the next one on its way while one is used.

  Close it when it is not read to the end: a thread waits for the data.

  Args:
    batches: numpy arrays, this process's shares.
    mesh: from `make_mesh`.
  """
  end = object()

  def load():
    batch = next(batches, end)
    return end if batch is end else to_devices(batch, mesh)

  with ThreadPoolExecutor(1, "to_devices") as thread:
    ahead = thread.submit(load)
    while (batch := ahead.result()) is not end:
      ahead = thread.submit(load)
      yield batch


def on_all_devices(model: nnx.Module, mesh: Mesh) -> nnx.Module:
  """Returns the model with a copy of its variables on every device.

  Args:
    model: on any device.
    mesh: from `make_mesh`.
  """
  graphdef, state = nnx.split(model)
  return nnx.merge(graphdef, jax.device_put(state, replicated(mesh)))


def fetch(tree: Any) -> Any:
  """Returns global arrays as numpy, whole, on every process."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(tree, tiled=True)
  return jax.tree.map(np.asarray, tree)


def process() -> tuple[int, int]:
  """Returns (index of this process, number of processes)."""
  return jax.process_index(), jax.process_count()


def is_main() -> bool:
  """Returns True on the one process that writes."""
  return jax.process_index() == 0


def describe() -> str:
  """Returns a line on the devices, for the start of a log."""
  device = jax.devices()[0]
  index, count = process()
  return (
    f"jax {jax.__version__} on {jax.device_count()} {device.device_kind} "
    f"device(s), process {index + 1} of {count}"
  )
