"""metrics.jsonl and TensorBoard events: every number of a training run."""

import json
import logging
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from gc_jax.runtime import files

FILENAME = "metrics.jsonl"

_UPLOAD_EVERY_SECS = 60.0

_logger = logging.getLogger(__name__)


class MetricsWriter:
  """Appends metrics to `workdir`/metrics.jsonl and to TensorBoard.

  A run that resumes from `start_step` repeats the steps after it, so their
  old lines are removed first; `start_step=0` begins anew.

  Nothing can be appended to what is in a bucket. There the files are kept on a
  disk meanwhile, and written whole: by `save`, every minute, and by `close`.

  Args:
    workdir: the run's folder, made where missing.
    start_step: completed updates in the restored state.
    enabled: False on every process but the first: nothing is written.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    start_step: int = 0,
    enabled: bool = True,
  ):
    self._file = None
    self._board = None
    self._mirror = None
    if not enabled:
      return
    self._workdir = files.as_path(workdir)
    path = self._workdir / FILENAME
    path.parent.mkdir(parents=True, exist_ok=True)
    old_events = any(path.parent.glob("events.out.tfevents.*"))
    if path.exists():
      _drop_after(path, start_step)
    if files.is_in_bucket(path):
      self._mirror = tempfile.TemporaryDirectory(prefix="metrics")
      here = pathlib.Path(self._mirror.name) / FILENAME
      if path.exists():
        here.write_bytes(path.read_bytes())
      path = here
    self._saved_secs = time.monotonic()
    self._file = path.open("a", encoding="utf-8")
    # Only here: it imports PyTorch, where that is installed, for seconds.
    import tensorboardX

    # TensorBoard hides the events of earlier files from purge_step on.
    purge_step = start_step + 1 if start_step else 0
    try:
      self._board = tensorboardX.SummaryWriter(
        str(path.parent), purge_step=purge_step if old_events else None
      )
    except OSError as error:
      # Its queue lies in shared memory, which a container may lack.
      _logger.warning(
        "Nothing is written for TensorBoard, which could not be opened (%s); "
        "%s has every number.",
        error,
        FILENAME,
      )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line.

    Args:
      step: completed updates.
      metrics: name to scalar: a number, or an array holding one. A number
        that is not finite becomes null in the line: JSON has no NaN.
    """
    if self._file is None:
      return
    scalars = {name: _scalar(value) for name, value in metrics.items()}
    line = {"step": int(step), **scalars}
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      if value is not None and self._board is not None:
        self._board.add_scalar(name, value, int(step))
    if time.monotonic() - self._saved_secs > _UPLOAD_EVERY_SECS:
      self.save()

  def save(self) -> None:
    """Brings what a bucket holds up to the last line; a disk has it already.

    Call it before a checkpoint is saved: a run that goes on from there writes
    no line of the steps before.
    """
    if self._mirror is None:
      return
    if self._board is not None:
      self._board.flush()
    files.copy_folder(pathlib.Path(self._mirror.name), self._workdir)
    self._saved_secs = time.monotonic()

  def close(self) -> None:
    """Closes both files; call once, after the last line."""
    if self._file is not None:
      self._file.close()
      if self._board is not None:
        self._board.close()
      self._file = None
    if self._mirror is not None:
      files.copy_folder(pathlib.Path(self._mirror.name), self._workdir)
      self._mirror.cleanup()
      self._mirror = None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a metrics.jsonl, oldest first.

  A last line cut off by a killed run is left out. A number that was not
  finite reads as None.

  Raises:
    ValueError: a line before the last is not a JSON object.
  """
  path = files.as_path(path)
  texts = path.read_bytes().decode(errors="replace").splitlines()
  lines = []
  for number, text in enumerate(texts, start=1):
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      line = None
    if isinstance(line, dict) and "step" in line:
      lines.append(line)
    elif number < len(texts):
      raise ValueError(
        f"{path} must hold one JSON object with 'step' a line. Line {number} "
        f"is {text[:60]!r}. Remove that line."
      )
  return lines


def _drop_after(path: files.AnyPath, start_step: int) -> None:
  """Keeps the whole lines up to `start_step`; none of them where it is 0."""
  lines = [
    line
    for line in read_metrics(path)
    if start_step and line["step"] <= start_step
  ]
  text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
  files.write_text(path, text)


def _scalar(value: Any) -> int | float | None:
  """Returns a Python number; None where it is not finite."""
  if hasattr(value, "item"):  # a NumPy or JAX array of one element
    value = value.item()
  if isinstance(value, int):  # also bool
    return int(value)
  value = float(value)
  return value if math.isfinite(value) else None
