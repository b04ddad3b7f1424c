"""Processes that make batches: whether there is room for them, and their end.

Grain starts them, and they hand over arrays in shared memory. They end with
this process however it ends, and signals to all of a command do not end them
before it.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from multiprocessing import shared_memory

import grain
import numpy as np
from absl import flags

from gc_jax.runtime import signals

_SHARED_MEMORY = "/dev/shm"  # what Linux calls it

# Of each worker: one that waits for its place in the queue, one in the queue;
# in this process, one read ahead and one that waits to be. Counted, by how
# full the memory gets while nobody asks for a batch.
_BATCHES_OF_A_WORKER = 4
# Copied here, and what is on its way to be removed.
_BATCHES_HERE = 2
# Each array of a batch, and each semaphore, fills whole pages.
_BATCH_PAGES_BYTES = 32_768
_WORKER_BYTES = 200_000
# Why a process may get a signal that nobody seems to have sent.
_REASONS = {
  "SIGBUS": f"{_SHARED_MEMORY} is full, as others write there too. Give it "
  "more room (docker run --shm-size=1g)",
  "SIGKILL": "the system's memory may be full. Use fewer of them",
}


class WorkerLostError(ValueError):
  """A process that makes batches ended by itself; says what to do."""


def lack_of_room(
  num_workers: int, batch_bytes: int, processes_here: int
) -> str:
  """Returns why there is no room for workers, a sentence; "" if there is.

  Args:
    num_workers: of this process.
    batch_bytes: of the batches of this process.
    processes_here: how many such processes share the memory.
  """
  try:
    # Nothing tells what a system allows, but to try.
    block = shared_memory.SharedMemory(create=True, size=1)
    block.close()
    block.unlink()
  except OSError as error:
    return f"there is no shared memory here ({error})"
  batches = num_workers * _BATCHES_OF_A_WORKER + _BATCHES_HERE
  needed = processes_here * (
    batches * (batch_bytes + _BATCH_PAGES_BYTES) + num_workers * _WORKER_BYTES
  )
  free = _free_bytes()
  if free is None or needed <= free:
    return ""
  others = f" of each of {processes_here}" if processes_here > 1 else ""
  return (
    f"{_SHARED_MEMORY} has {free / 2**20:,.1f} MiB left, and {num_workers} "
    f"processes{others} need {needed / 2**20:,.1f} MiB there for their batches"
  )


def _free_bytes() -> int | None:
  """Returns how much shared memory is left; None where it is no file system."""
  try:
    found = os.statvfs(_SHARED_MEMORY)
  except OSError:
    return None
  return found.f_bavail * found.f_frsize


def batches_of(
  batches: grain.IterDataset, num_workers: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches that processes make, in their order, as copies of ours.

  Close it when it is not read to the end.

  Args:
    batches: what each process makes a share of.
    num_workers: how many processes.

  Raises:
    WorkerLostError: a process was ended from outside.
  """
  # Grain hands absl flags to its workers. A notebook never parses them.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  iterator = iter(
    batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=num_workers), _start_worker
    )
  )
  with contextlib.closing(iterator), _losses_told():
    # They are started here, and by threads that are.
    with signals.kept_from_children():
      batch = _copied(next(iterator))
    while True:
      yield batch
      batch = _copied(next(iterator))


def _start_worker(index: int, count: int) -> None:
  del index, count
  signals.end_with_parent()


def _copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns a batch out of shared memory.

  There it would stay as long as a device that computes on it, and those of many
  steps are under way at once.
  """
  return {name: np.array(array) for name, array in batch.items()}


@contextlib.contextmanager
def _losses_told() -> Iterator[None]:
  try:
    yield
  except RuntimeError as error:
    # Grain has no class for it.
    found = re.search(r"ed unexpectedly with exit code -(\d+)", str(error))
    if not found:
      raise
    name = signal.Signals(int(found[1])).name
    raise WorkerLostError(
      f"A process that decodes pictures was ended by {name}: "
      f"{_REASONS.get(name, 'what happened before stands above')}. The last "
      "checkpoint stays, and the same command goes on from it; with "
      "--config.data.num_workers=0 there is no such process."
    ) from error
