"""Processes that make batches: whether there is room for them, and their end.

Grain starts them, and they hand over arrays in shared memory. They end with
this process, however it ends, and never before it: they ignore signals that are
sent to all processes of a command.
"""

import contextlib
import functools
import gc
import glob
import itertools
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

# Of each worker: one waiting for its place in the queue, one in the queue, one
# read ahead in this process and one waiting for that. Measured, by how full the
# memory gets while nobody asks for a batch.
_BATCHES_OF_A_WORKER = 4
_BATCHES_HERE = 2  # one that is being copied, one that is being removed
# Each array of a batch, and each semaphore, takes whole pages.
_BATCH_PAGES_BYTES = 32_768
_WORKER_BYTES = 200_000
_RANDOM_LETTERS = 16  # of the name of a block
_numbers = itertools.count()  # of the iterators of this process
# Why the system may end a process by a signal.
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

  `processes_here` is how many such processes share the memory.
  """
  try:
    # Only trying shows what a system allows.
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
  """Returns how much shared memory is free; None if it is no file system."""
  try:
    found = os.statvfs(_SHARED_MEMORY)
  except OSError:
    return None
  return found.f_bavail * found.f_frsize


def batches_of(
  batches: grain.IterDataset, num_workers: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields copies of the batches, which worker processes make, in their order.

  Close it if it is not read to the end.

  Raises:
    WorkerLostError: a process was ended from outside.
  """
  # Grain hands absl flags to its workers. A notebook never parses them.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  prefix = f"/gc_jax_{os.getpid()}_{next(_numbers)}_"
  iterator = iter(
    batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=num_workers),
      functools.partial(_start_worker, prefix),
    )
  )
  with _memory_given_back(prefix), contextlib.closing(iterator), _losses_told():
    # The workers start here, or in threads that start here.
    with signals.kept_from_children():
      batch = _copied(next(iterator))
    while True:
      yield batch
      batch = _copied(next(iterator))


def _start_worker(prefix: str, index: int, count: int) -> None:
  """Sets up a worker, whose blocks of shared memory get names of this kind."""
  del index, count
  signals.end_with_parent()
  # There is no public way to name blocks that others make.
  shared_memory._SHM_NAME_PREFIX = prefix
  shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + _RANDOM_LETTERS


def _copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  # In shared memory a batch would stay until a device has computed on it, and
  # those of many steps are under way at once.
  return {name: np.array(array) for name, array in batch.items()}


@contextlib.contextmanager
def _memory_given_back(prefix: str) -> Iterator[None]:
  """Frees the blocks of shared memory that nobody has freed at the end.

  Grain frees a batch in a thread, once nothing refers to it: after an error
  some are left, and of a worker that was killed all. Python would free them
  when the process ends, and warn that they leaked.
  """
  try:
    yield
  finally:
    gc.collect()
    for path in glob.glob(f"{_SHARED_MEMORY}{prefix}*"):
      with contextlib.suppress(FileNotFoundError):  # Grain was faster
        block = shared_memory.SharedMemory(os.path.basename(path))
        block.close()
        block.unlink()


@contextlib.contextmanager
def _losses_told() -> Iterator[None]:
  try:
    yield
  except RuntimeError as error:
    # Grain has no exception class for it.
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
