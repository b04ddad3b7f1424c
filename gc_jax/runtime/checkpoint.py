"""Checkpoints: saved in the background; the last ones and the best are kept.

A checkpoint holds the whole `TrainState` and a little JSON. The position in
the data is the step itself: batches are a function of (seed, step). Training
owns them through `Checkpoints`; everyone else only reads, by `read_variables`.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from gc_jax.runtime import files, parallel
from gc_jax.runtime.messages import UserError

FOLDER = "checkpoints"

_BEST = "best"  # the metric by which the best is known
_ELSEWHERE = OSError("another process could not")

_logger = logging.getLogger(__name__)


class CheckpointError(UserError):
  """A checkpoint could not be written or read; says which and what to do."""


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves it to training to ask whether to stop."""

  # It would ask late and from a thread, about steps that are past, and the
  # processes would then agree to stop at one of those.
  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpoints:
  """The checkpoints of one run: the `keep` last ones, and the best."""

  def __init__(self, workdir: files.AnyPath, keep: int):
    self._folder = _folder(workdir)
    self._keep = keep

  @functools.cached_property
  def _manager(self) -> _Manager:
    """Orbax's manager, opened late: `restore` looks around before."""
    # It reads the metrics of all checkpoints, and stops at the first bad one.
    for step in sorted(_steps_in(self._folder)):
      bad = None
      try:
        json.loads((self._folder / f"{step}/metrics/metrics").read_text())
      except (OSError, ValueError) as error:
        bad = error
      if parallel.any_process(bad is not None):
        self._set_aside(step, bad or _ELSEWHERE)
    best = lambda metrics: metrics[_BEST]
    policies = [
      checkpoint_managers.LatestN(self._keep),
      checkpoint_managers.BestN(get_metric_fn=best, n=1),
    ]
    return _Manager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=best,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
      ),
    )

  def save(self, state: PyTree, meta: dict[str, Any], best: float) -> None:
    """Starts to save a `TrainState`, without waiting for the disk.

    Nothing is done if its step is saved already. `restore` returns `meta`,
    plain values; the checkpoint with the highest `best` is kept.

    Raises:
      CheckpointError: this or the previous save failed, by a full disk say.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    with self._saving():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(named_leaves(state)),
          meta=ocp.args.JsonSave(meta),
        ),
        metrics={_BEST: float(best)},
      )

  def wait(self) -> None:
    """Waits for the disk; raises CheckpointError if a save failed."""
    with self._saving():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      steps = sorted(self._manager.all_steps())
      last = f"step {steps[-1]}" if steps else "none"
      raise CheckpointError(
        f"Could not save a checkpoint to {self._folder}: {error}. The last "
        f"good one: {last}. Make room or mend the cause, then run the same "
        "command again to go on from there."
      ) from error

  def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Returns the last readable checkpoint and its `meta`, or `like` and {}.

    It has the shapes and devices of `like`. Unreadable ones are moved aside,
    with an error in the log, once an older one is read.

    Raises:
      CheckpointError: there are checkpoints, and none can be read.
    """
    restored, failed = _last_readable(self._folder, like)
    if restored is None and failed:
      raise _none_readable(
        self._folder, failed, "use another --workdir to start from scratch"
      )
    for step, why in failed.items():
      self._set_aside(step, why)
    return restored or (like, {})

  def _set_aside(self, step: int, error: Exception) -> None:
    folder, number = self._folder.parent, 1
    aside = folder / f"unreadable_checkpoint_{step}"
    while aside.exists():
      number += 1
      aside = folder / f"unreadable_checkpoint_{step}_{number}"
    _logger.error(
      "The checkpoint of step %d cannot be read (%s). It is moved to %s, "
      "and an older one is used.",
      step,
      _first_line(error),
      aside,
    )
    # All have looked at it, and none looks again before it is gone.
    parallel.wait_for_all(f"before {aside.name}")
    if parallel.is_main():
      (self._folder / str(step)).rename(aside)
    parallel.wait_for_all(f"after {aside.name}")

  def close(self) -> None:
    """Waits for the disk, as `wait` does, and lets go of it."""
    if "_manager" in vars(self):
      self.wait()
      self._manager.close()


class Variables(NamedTuple):
  """What a run has learned, as one of its checkpoints holds it."""

  step: int  # completed updates
  # Parameters and batch statistics, by the names of `named_leaves`.
  arrays: dict[str, np.ndarray]
  meta: dict[str, Any]  # what was saved beside them


def has_checkpoint(workdir: files.AnyPath) -> bool:
  """Returns whether a run has saved anything to go on from."""
  return bool(_steps_in(workdir / FOLDER))


def last_step(workdir: files.AnyPath) -> int:
  """Returns the completed updates of a run's last checkpoint; 0 without one."""
  return max(_steps_in(workdir / FOLDER), default=0)


def read_meta(workdir: files.AnyPath) -> dict[str, Any]:
  """Returns the `meta` of the last checkpoint that has any, or {}."""
  folder = _folder(workdir)
  for step in sorted(_steps_in(folder), reverse=True):
    try:
      meta = json.loads((folder / f"{step}/meta/metadata").read_text())
    except (OSError, ValueError):
      continue
    if isinstance(meta, dict):
      return meta
  return {}


def read_variables(workdir: files.AnyPath) -> Variables:
  """Reads the last readable checkpoint of a run, and changes nothing there.

  Safe while the run trains: only finished checkpoints are read, and newer ones
  replace one that training deletes meanwhile. An unreadable one stays in place,
  with a warning, and the one before it is read.

  Raises:
    CheckpointError: there is no checkpoint, or none can be read.
  """
  folder = _folder(workdir)
  failed: dict[int, Exception] = {}
  while untried := set(_steps_in(folder)) - failed.keys():
    step = max(untried)
    try:
      return _read_variables(folder, step)
    except Exception as error:
      failed[step] = error
      if (folder / str(step)).exists():
        _logger.warning(
          "The checkpoint of step %d in %s cannot be read (%s). The one before "
          "it is tried.",
          step,
          folder,
          _first_line(error),
        )
  if failed:
    raise _none_readable(folder, failed, "train again with another --workdir")
  raise _no_checkpoint(workdir)


def _no_checkpoint(workdir: files.AnyPath) -> CheckpointError:
  return CheckpointError(
    f"{workdir} must hold a checkpoint; it has none yet. Wait for the first "
    "(--config.checkpoint.every_epochs), or give the training command again."
  )


def read_state(
  workdir: files.AnyPath, like: PyTree
) -> tuple[PyTree, dict[str, Any]]:
  """Returns the last readable state of another run, and its `meta`.

  It has the shapes and devices of `like`. Nothing is changed there.

  Raises:
    CheckpointError: there is no checkpoint, or none can be read.
  """
  folder = _folder(workdir)
  restored, failed = _last_readable(folder, like)
  if restored is not None:
    return restored
  if failed:
    raise _none_readable(folder, failed, "go on from another run")
  raise _no_checkpoint(workdir)


def _last_readable(
  folder: files.AnyPath, like: PyTree
) -> tuple[tuple[PyTree, dict[str, Any]] | None, dict[int, Exception]]:
  """Returns the last state and `meta` that every process can read, or None.

  Then the later steps, which cannot be read, with the error of each.
  """
  failed: dict[int, Exception] = {}
  for step in sorted(_steps_in(folder), reverse=True):
    error = None
    try:
      restored = _restore(folder, step, like)
    except Exception as caught:
      error = caught
    if not parallel.any_process(error is not None):
      return restored, failed
    failed[step] = error or _ELSEWHERE
  return None, failed


def _read_variables(folder: files.AnyPath, step: int) -> Variables:
  path = folder / str(step)
  with _checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    saved = checkpointer.metadata(path).item_metadata["state"].tree
    wanted = {
      name: leaf
      for name, leaf in saved.items()
      if name.startswith(("params.", "batch_stats."))
    }
    # As numpy: this machine has other devices than the one that saved them.
    to_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    restored = checkpointer.restore(
      path,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=wanted,
          restore_args=dict.fromkeys(wanted, to_numpy),
          partial_restore=True,
        ),
        meta=ocp.args.JsonRestore(),
      ),
    )
  return Variables(step, restored["state"], restored["meta"])


def _restore(
  folder: files.AnyPath, step: int, like: PyTree
) -> tuple[PyTree, dict[str, Any]]:
  # Every process reads for itself and waits for no other: when one fails, the
  # others still end, and they can agree.
  index, _ = parallel.process()
  alone = {
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
      primary_host=index,
      active_processes={index},
      barrier_sync_key_prefix=str(index),
    )
  }
  leaves = named_leaves(like)
  handler = ocp.StandardCheckpointHandler(**alone)
  with _checkpointer(handler, **alone) as checkpointer:
    restored = checkpointer.restore(
      folder / str(step),
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, leaves)
        ),
        meta=ocp.args.JsonRestore(),
        # Or Orbax would find them broken only when it opens the folder.
        metrics=ocp.args.JsonRestore(),
      ),
    )
  ordered = [restored["state"][name] for name in leaves]
  state = jax.tree.unflatten(jax.tree.structure(like), ordered)
  return state, restored["meta"]


def _checkpointer(state: ocp.CheckpointHandler, **options: Any):
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(**options),
    state=state,
    meta=ocp.JsonCheckpointHandler(**options),
    # Orbax warns where nothing is said about them.
    metrics=ocp.JsonCheckpointHandler(filename="metrics", **options),
  )
  return ocp.Checkpointer(handler, **options)


def _folder(workdir: files.AnyPath) -> files.AnyPath:
  folder = workdir / FOLDER
  return folder if files.is_in_bucket(folder) else folder.absolute()


def _steps_in(folder: files.AnyPath) -> list[int]:
  """Returns the steps of the finished checkpoints of a folder."""
  if not folder.is_dir():
    return []
  return [
    int(path.name)
    for path in folder.iterdir()
    # In a bucket nothing can be renamed: a mark says that it is finished.
    if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path)
  ]


def _none_readable(
  folder: files.AnyPath, failed: Mapping[int, Exception], otherwise: str
) -> CheckpointError:
  return CheckpointError(
    f"None of the checkpoints {sorted(failed)} of {folder} could be read (the "
    f"last: {_first_line(failed[max(failed)])}). Nothing was touched. Restore "
    f"the folder from a copy, or {otherwise}."
  )


def _first_line(error: Exception) -> str:
  lines = str(error).splitlines() or ["no message"]
  return f"{type(error).__name__}: {lines[0]}"


def digest(state: PyTree) -> str:
  """Returns a fingerprint of every number of a state, 16 characters."""
  found = hashlib.sha256()
  for name, leaf in sorted(named_leaves(state).items()):
    array = np.ascontiguousarray(np.asarray(leaf))
    found.update(f"{name} {array.dtype} {array.shape}".encode())
    found.update(array.tobytes())
  return found.hexdigest()[:16]


def named_leaves(state: PyTree) -> dict[str, Any]:
  """Returns every array of the state under a readable, unique name."""
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {name(path): leaf for path, leaf in leaves}
