"""Processes, the mesh, and what lies where on it.

The one file that asks jax which process runs, and where processes wait for each
other: everything else computes the same on all of them, and lets `is_main`
decide who writes.
"""

import contextlib
import dataclasses
import faulthandler
import hashlib
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gc_jax.runtime import signals, speaking

AXIS = "data"
_T = TypeVar("_T")

# A process that is silent for so long is lost, and the others end. Less than
# jax's 100 s: a lost host costs the others all of this time.
_HEARTBEAT_TIMEOUT_SECS = 60
# For the others to say themselves what is wrong, before process 0 ends them.
_LAST_WORDS_SECS = 3.0
_MESSAGE_BYTES = 16_384
_PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(multihost: bool) -> None:
  """Joins the processes that train together; before anything else of jax.

  Their places come from JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID if these are set, and otherwise from what
  jax knows about TPU pods, SLURM and MPI. From here on SIGTERM, Ctrl-C and the
  end of the terminal (SIGHUP, unless `nohup` is used) ask to end, see
  `stop_requested`. Without `multihost` a process trains alone.

  Raises:
    ValueError: the place of this process is unknown.
  """
  if not multihost:
    signal.signal(signal.SIGTERM, _signalled)
    _handle_terminal_signals(_signalled)
    return
  place = _place()
  try:
    # jax itself then listens to SIGTERM, on behalf of all processes.
    jax.distributed.initialize(
      **place, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECS
    )
  except ValueError as error:
    if place:
      raise
    raise ValueError(
      "--multihost must know the place of this process among the others; "
      f"{', '.join(_PLACE)} are not set, and jax finds none ({error}) Start "
      "it with a script of launch/, set all three, or leave out --multihost."
    ) from error
  if not is_main():
    speaking.mute()
  _handle_terminal_signals(_passed_on)
  # When another is lost, jax aborts this process and says so. The stacks of all
  # its threads would bury that message.
  faulthandler.enable(all_threads=False)


def _handle_terminal_signals(handler: Callable[..., None]) -> None:
  """Handles SIGINT and SIGHUP, which terminals send, unless ignored."""
  for number in (signal.SIGINT, signal.SIGHUP):
    if not signals.is_ignored(number):
      signal.signal(number, handler)


def _place() -> dict[str, Any]:
  given = {name: os.environ[name] for name in _PLACE if os.environ.get(name)}
  if not given:
    return {}
  if missing := [name for name in _PLACE if name not in given]:
    raise ValueError(
      f"{', '.join(_PLACE)} must be set all three, or none if jax finds the "
      f"processes itself; {', '.join(missing)} is missing, and there "
      f"is {', '.join(f'{k}={v!r}' for k, v in given.items())}. Set the rest."
    )
  address, count, index = (given[name] for name in _PLACE)
  if not re.fullmatch(r".+:\d+", address):
    raise ValueError(
      f"JAX_COORDINATOR_ADDRESS={address!r} must be HOST:PORT, where process 0 "
      "runs and a port that is free there, like 10.0.0.2:8476."
    )
  are_numbers = count.isdecimal() and index.isdecimal()
  if not are_numbers or int(index) >= int(count):
    raise ValueError(
      f"JAX_NUM_PROCESSES={count!r} must be a number of processes, and "
      f"JAX_PROCESS_ID={index!r} one of 0 .. JAX_NUM_PROCESSES - 1. Correct "
      "them."
    )
  return {
    "coordinator_address": address,
    "num_processes": int(count),
    "process_id": int(index),
  }


@dataclasses.dataclass
class _Stop:
  """Whether this process, or one that it trains with, is asked to end."""

  came: signal.Signals | None = None  # what asked
  passed_on: signal.Signals | None = None  # what `_passed_on` made SIGTERM
  awaited: bool = False  # whether somebody will ask `stop_requested`
  asked: int = 0  # the last step that was asked about


_stop = _Stop()


def _signalled(number: int, *_) -> None:
  # A second one must not break into what the first one began.
  if _stop.came is None:
    _stop.came = signal.Signals(number)
    _leave_terminal_at_hangup(number)
    if not _stop.awaited:
      raise signals.Stopped(_stop.came)


def _passed_on(number: int, *_) -> None:
  """Handles what came to one of several processes: jax knows SIGTERM alone."""
  _stop.passed_on = _stop.passed_on or signal.Signals(number)
  _leave_terminal_at_hangup(number)
  os.kill(os.getpid(), signal.SIGTERM)


def _leave_terminal_at_hangup(number: int) -> None:
  if number == signal.SIGHUP:
    signals.leave_terminal()


@contextlib.contextmanager
def stop_awaited() -> Iterator[None]:
  """Within, signals wait for `stop_requested`; without, one ends at once.

  One of several processes never ends without asking.
  """
  _stop.awaited = True
  try:
    yield
  finally:
    _stop.awaited = False


def stop_requested(step: int | None = None) -> signals.Stopped | None:
  """Returns what to raise once all is saved; None if nobody asked to end.

  All processes hear it at the same call.

  Args:
    step: completed updates, which may only grow. None: one more than the last,
      for what comes after training.
  """
  if jax.distributed.is_initialized():
    # The processes agree on one number, just ahead of all of theirs, and maybe
    # before the first step. So that nobody misses it, every number is asked.
    last = _stop.asked + 1 if step is None else step
    for number in range(_stop.asked + 1, last + 1):
      if multihost_utils.reached_preemption_sync_point(number):
        _stop.came = _stop.passed_on or signal.SIGTERM
    _stop.asked = max(_stop.asked, last)
  return None if _stop.came is None else signals.Stopped(_stop.came)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Ends the process at an error, where there are others.

  With the status of a `SystemExit`, else with 1. Python's own way out would
  wait for the others, who wait for this one.
  """
  try:
    yield
  except BaseException as error:
    status = error.code or 0 if isinstance(error, SystemExit) else 1
    done = status == 0 or isinstance(error, signals.Stopped)
    if done or not jax.distributed.is_initialized():
      raise
    if not isinstance(status, int):
      print(status, file=sys.stderr)
      status = 1
    elif not isinstance(error, SystemExit):
      traceback.print_exc()
    index, count = process()
    print(
      f"Process {index + 1} of {count} ends with this error, and the others "
      "with it. If it says that a connection was lost, the host at the other "
      "end was. The same command goes on from the last checkpoint.",
      file=sys.stderr,
    )
    if is_main():
      # Without process 0 the others end, perhaps before they said the same.
      time.sleep(_LAST_WORDS_SECS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for_all(what: str) -> None:
  """Returns when every process has called it with the same, unique `what`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def any_process(here: bool) -> bool:
  """Returns whether it is so on any process; the same on all of them."""
  if jax.process_count() > 1:
    return bool(multihost_utils.process_allgather(np.array(here)).any())
  return here


def main_does(action: Callable[[], None]) -> None:
  """Runs an action on the main process, and waits for it on all.

  A ValueError is raised on every process.
  """
  message = b""
  if is_main():
    try:
      action()
    except ValueError as error:
      message = str(error).encode()[:_MESSAGE_BYTES]
  if jax.process_count() > 1:
    text = np.zeros(_MESSAGE_BYTES, np.uint8)
    text[: len(message)] = list(message)
    text = multihost_utils.broadcast_one_to_all(text)
    message = bytes(text).rstrip(b"\0")
  if message:
    raise ValueError(message.decode(errors="replace"))


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns all devices, by default those here, on one axis.

  A batch is divided along it. The axis is `Auto` (the compiler propagates
  shardings): optax's losses do not accept explicit ones.
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


def divisible(size: int, mesh: Mesh) -> int:
  """Returns the smallest batch of at least `size` that devices share."""
  return -(-size // mesh.size) * mesh.size


def to_devices(batch: Any, mesh: Mesh) -> Any:
  """Returns the global batch made of each process's share, numpy arrays."""
  sharding = divided(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def to_devices_ahead(batches: Iterator[Any], mesh: Mesh) -> Iterator[Any]:
  """Returns the global batches, the next one on its way while one is used."""
  return one_ahead(to_devices(batch, mesh) for batch in batches)


def one_ahead(items: Iterator[_T]) -> Iterator[_T]:
  """Yields the items; a thread makes the next one while one is used.

  No item may start a program on devices: programs start in the same order on
  all devices, and in every process. Close it when it is not read to the end:
  the thread waits for the next item.
  """
  end = object()
  with ThreadPoolExecutor(1, "one_ahead") as thread:
    ahead = thread.submit(next, items, end)
    while (item := ahead.result()) is not end:
      ahead = thread.submit(next, items, end)
      yield item


def on_all_devices(model: nnx.Module, mesh: Mesh) -> nnx.Module:
  """Returns the model with a copy of its variables on every device."""
  graphdef, state = nnx.split(model)
  return nnx.merge(graphdef, jax.device_put(state, replicated(mesh)))


def fetch(tree: Any) -> Any:
  """Returns global arrays as numpy, whole, on every process."""

  def whole(x):
    # A copy is here already; gathering would wait for what still runs.
    if jax.process_count() == 1 or x.is_fully_replicated:
      return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(whole, tree)


def added(tree: Any) -> Any:
  """Returns the sum over processes of numbers that each has of its own."""
  if jax.process_count() == 1:
    return tree
  gathered = multihost_utils.process_allgather(tree)
  return jax.tree.map(lambda x: x.sum(0), gathered)


def process() -> tuple[int, int]:
  """Returns (index of this process, number of processes)."""
  return jax.process_index(), jax.process_count()


def is_main() -> bool:
  """Returns True on the one process that writes."""
  return jax.process_index() == 0


def processes_here() -> int:
  """Returns how many of the processes run on this machine, or container."""
  if jax.process_count() == 1:
    return 1
  digest = hashlib.sha256(socket.gethostname().encode()).digest()
  here = np.frombuffer(digest[:8], np.uint8)
  hosts = multihost_utils.process_allgather(here)
  return int((hosts == here).all(axis=1).sum())


def describe() -> str:
  """Returns a line on the devices, for the start of a log."""
  device = jax.devices()[0]
  index, count = process()
  return (
    f"jax {jax.__version__} on {jax.device_count()} {device.device_kind} "
    f"device(s), process {index + 1} of {count}"
  )
