"""What a run tells while it trains: metrics.jsonl, TensorBoard, progress."""

import contextlib
import io
import json
import logging
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import tqdm

from gc_jax.runtime import files, speaking

FILENAME = "metrics.jsonl"
LINE_EVERY_SECS = 10.0  # less than `speaking.QUIET_SECS`
_BAR_EVERY_SECS = 1.0
# Without the time left by tqdm, in which the compilation counts.
_BAR = (
  "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
)
_WARM = 3  # steps without a compilation, before a time left is shown
_UPLOAD_EVERY_SECS = 60.0

_logger = logging.getLogger(__name__)


class MetricsWriter:
  """Appends metrics to `workdir`/metrics.jsonl and to TensorBoard.

  A run that resumes from `start_step` repeats the steps after it, so their
  old lines are removed first; `start_step=0` begins anew.

  Buckets cannot append. For one, the files are kept on a disk and written
  whole: by `save`, every minute, and by `close`.

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
    self._file = self._board = self._mirror = None
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
    """Brings a bucket's files up to the last line; a disk's are already.

    Call it before a checkpoint is saved: a run that resumes there writes no
    line of the steps before.
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
        self._board = None
      self._file = None
    if self._mirror is not None:
      self.save()
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


def terms(names: Mapping[str, Any]) -> list[str]:
  """Returns the guidance terms in logged metrics: each logs its weight."""
  return [
    name.removeprefix("train/").removesuffix("_weight")
    for name in names
    if name.startswith("train/") and name.endswith("_weight")
  ]


def _drop_after(path: files.AnyPath, start_step: int) -> None:
  """Keeps the whole lines up to `start_step`; none if it is 0."""
  lines = [line for line in read_metrics(path) if line["step"] <= start_step]
  text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
  files.write_text(path, text if start_step else "")


def _scalar(value: Any) -> int | float | None:
  """Returns a Python number; None where it is not finite."""
  if hasattr(value, "item"):  # a NumPy or JAX array of one element
    value = value.item()
  if isinstance(value, int):  # also bool
    return int(value)
  value = float(value)
  return value if math.isfinite(value) else None


class Progress:
  """Shows what is done of what is to do, how fast, and the time left.

  A bar on a terminal, plain lines elsewhere. Speed and time left are those of
  steps without a compilation: neither the first update counts, nor one after
  `rest`.

  Args:
    total_steps: all there is to do.
    start_step: what of it was done before.
    enabled: False on every process but the first: nothing is shown.
    stream: standard error unless given.
    unit: what is counted.
    name: what is done: "training", "FGSM".
    at_once: whether it begins to show at once, or only once it takes long.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    enabled: bool = True,
    stream: io.TextIOBase | None = None,
    unit: str = "step",
    name: str = "training",
    at_once: bool = True,
  ):
    self._total_steps = total_steps
    self._stream = sys.stderr if stream is None else stream
    self._enabled = enabled
    self._unit = unit
    self._name = name
    self._at_once = at_once
    self._shown: dict[str, str] = {}
    self._latest: tuple[int, float] | None = None  # step, when; None: a rest
    self._warm_steps, self._warm_secs = 0, 0.0
    self._shown_at = -math.inf if at_once else time.monotonic()
    self._opened = contextlib.ExitStack()
    self._task = self._opened.enter_context(speaking.doing(""))
    self._done = start_step
    self._name_task()
    self._bar = None
    if enabled and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start_step,
        unit=unit,
        file=self._stream,
        desc=None if name == "training" else name,
        bar_format=_BAR,
        dynamic_ncols=True,
        leave=at_once,
        delay=0 if at_once else LINE_EVERY_SECS,
      )

  def is_due(self) -> bool:
    """Returns whether something should be shown, if there is anything new."""
    every = LINE_EVERY_SECS if self._bar is None else _BAR_EVERY_SECS
    return self._enabled and time.monotonic() - self._shown_at >= every

  def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Shows that `step` updates are done, with the newest of `metrics`.

    Numbers of a validation are shown with their own step alone.
    """
    now = time.monotonic()
    self._count(step, now)
    self._done = step
    self._name_task()
    if not self._enabled:
      return
    metrics = metrics or {}
    once = {}
    for name, (word, form) in _words(metrics).items():
      if metrics.get(name) is not None:
        shown = once if name.startswith("val/") else self._shown
        shown[word] = form.format(float(metrics[name]))
    line = self._line(step, once)
    due = bool(once) or self.is_due() or (self._at_once and self._ends(step))
    if due:
      self._shown_at = now
    if self._bar is not None:
      self._bar.set_postfix_str(
        "  ".join(self._speed(step) + _pairs(self._shown)), refresh=False
      )
      self._bar.update(step - self._bar.n)
      if once:
        self.message(line)
    elif due:
      self.message(line)

  def advance(self, count: int) -> None:
    """Shows that so many more are done."""
    self.update(self._done + count)

  def rest(self) -> None:
    """Leaves the time until the next update out of the speed."""
    self._latest = None

  def message(self, text: str) -> None:
    """Prints a line of its own without breaking the bar."""
    if not self._enabled:
      return
    speaking.heard()
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the bar on the screen; later text starts on its own line."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    self._enabled = False
    self._opened.close()

  def _ends(self, step: int) -> bool:
    return step >= self._total_steps

  def _name_task(self) -> None:
    self._task.text = (
      f"{self._name}, {self._unit} {self._done:,} of {self._total_steps:,} done"
    )

  def _count(self, step: int, now: float) -> None:
    if self._latest is not None and step > self._latest[0]:
      self._warm_steps += step - self._latest[0]
      self._warm_secs += now - self._latest[1]
    if self._latest is None or step > self._latest[0]:
      self._latest = step, now

  def _line(self, step: int, once: Mapping[str, str]) -> str:
    percent = 100 * step / max(self._total_steps, 1)
    parts = [f"{percent:3.0f}%", f"{self._unit} {step:,}/{self._total_steps:,}"]
    if self._name != "training":
      parts.insert(0, self._name)
    shown = {**self._shown, **once}
    return "  ".join(parts + self._speed(step) + _pairs(shown))

  def _speed(self, step: int) -> list[str]:
    """Returns how fast it goes and the time left, once that is known."""
    if self._warm_steps < _WARM or self._warm_secs <= 0:
      return []
    rate = self._warm_steps / self._warm_secs
    speed = [f"{rate:.3g} {self._unit}s/s"]
    if not self._ends(step):
      left_secs = (self._total_steps - step) / rate
      speed.append(f"{format_secs(left_secs)} left")
    return speed


def _pairs(shown: Mapping[str, str]) -> list[str]:
  return [f"{word} {value}" for word, value in shown.items()]


def _words(metrics: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
  """Returns metric -> its word in the bar and its form, in this order."""
  number = "{:.4g}"
  return {
    "train/loss": ("loss", number),
    **{f"train/{term}_loss": (term, number) for term in terms(metrics)},
    # One for each term that masks: "masked_pairs", "energy_masked".
    **{
      name: (
        name.removeprefix("train/").removesuffix("_frac").replace("_", " "),
        "{:.0%}",
      )
      for name in metrics
      if name.startswith("train/") and "masked" in name
    },
    "val/loss": ("val loss", number),
    "val/top1": ("val top-1", number),
    "val/f1_overall": ("val F1", number),
  }


def format_secs(secs: int | float) -> str:
  """Returns a duration a person reads at a glance: 48s, 12m 05s, 3h 20m."""
  secs = round(secs)
  if secs < 60:
    return f"{secs}s"
  if secs < 3600:
    return f"{secs // 60}m {secs % 60:02d}s"
  return f"{secs // 3600}h {secs % 3600 // 60:02d}m"
