"""How far training is: a bar on a terminal, plain lines elsewhere."""

import io
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm

LINE_EVERY_SECS = 15.0
_SHOWN = {  # metric -> its word in the bar, in this order
  "train/loss": "loss",
  "train/consistency_loss": "consistency",
  "val/loss": "val loss",
  "val/top1": "val top-1",
  "val/f1_overall": "val F1",
}


class Progress:
  """Shows steps done, steps per second and the time left.

  Args:
    total_steps: updates of the whole training.
    start_step: updates already done when this run began.
    enabled: False on every process but the first: nothing is shown.
    stream: where to; standard error unless given.
    unit: what is counted, where it is not updates.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    enabled: bool = True,
    stream: io.TextIOBase | None = None,
    unit: str = "step",
  ):
    self._total_steps = total_steps
    self._stream = sys.stderr if stream is None else stream
    self._enabled = enabled
    self._unit = unit
    self._shown: dict[str, str] = {}
    self._origin = (start_step, time.monotonic())
    self._compiled = False
    self._last_line_secs = -float("inf")
    self._bar = None
    if enabled and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start_step,
        unit=unit,
        file=self._stream,
        dynamic_ncols=True,
      )

  def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Shows that `step` updates are done, with the newest of `metrics`."""
    if not self._enabled:
      return
    for name, word in _SHOWN.items():
      if metrics and metrics.get(name) is not None:
        self._shown[word] = f"{float(metrics[name]):.4g}"
    if self._bar is not None:
      self._bar.set_postfix(self._shown, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    due = now - self._last_line_secs >= LINE_EVERY_SECS
    if due or step >= self._total_steps:
      self._last_line_secs = now
      self._print(self._line(step, now))
    if not self._compiled:  # the first steps hold the compilation
      self._compiled = True
      self._origin = (step, now)

  def message(self, text: str) -> None:
    """Prints a line of its own without breaking the bar."""
    if not self._enabled:
      return
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      self._print(text)

  def close(self) -> None:
    """Leaves the bar as it stands; later text starts on its own line."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    self._enabled = False

  def _line(self, step: int, now: float) -> str:
    first_step, first_secs = self._origin
    percent = 100 * step / max(self._total_steps, 1)
    parts = [f"{percent:3.0f}%", f"{self._unit} {step:,}/{self._total_steps:,}"]
    if step > first_step and now > first_secs:
      rate = (step - first_step) / (now - first_secs)
      parts.append(f"{rate:.3g} {self._unit}s/s")
      if step < self._total_steps:
        left_secs = (self._total_steps - step) / rate
        parts.append(f"{format_secs(left_secs)} left")
    parts += [f"{word} {value}" for word, value in self._shown.items()]
    return "  ".join(parts)

  def _print(self, text: str) -> None:
    print(text, file=self._stream, flush=True)


def format_secs(secs: int | float) -> str:
  """Returns a duration a person reads at a glance: 48s, 12m 05s, 3h 20m."""
  secs = round(secs)
  if secs < 60:
    return f"{secs}s"
  if secs < 3600:
    return f"{secs // 60}m {secs % 60:02d}s"
  return f"{secs // 3600}h {secs % 3600 // 60:02d}m"
