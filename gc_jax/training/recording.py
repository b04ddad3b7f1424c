"""What a run leaves beside its state: metrics, progress, a profile."""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gc_jax.method.types import Metrics
from gc_jax.report import cautions
from gc_jax.report.logs import MetricsWriter, Progress
from gc_jax.runtime import files, parallel, speaking
from gc_jax.runtime.messages import UserError
from gc_jax.training import build
from gc_jax.training.step import TrainState

_logger = logging.getLogger(__name__)


class TrainingDivergedError(UserError):
  """A loss or gradient is no longer finite; says at which step."""


class Run:
  """Everything beside the steps: metrics, progress, time, the watch on NaN.

  Metrics are fetched one step late, so that the device never waits for the
  host: while step n is computed, the numbers up to n - 1 are read. A run that
  goes on has completed `start_step` steps before.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: files.AnyPath,
    steps_per_epoch: int,
    total_steps: int,
    start_step: int,
  ):
    self.config = config
    self.workdir = workdir
    self.steps_per_epoch = steps_per_epoch
    self.total_steps = total_steps
    self._is_first_flush = True
    self.skipped = 0.0  # broken pictures passed over, up to the last flush
    self._pending: list[tuple[int, Metrics]] = []
    self._lr = build.learning_rate(config, steps_per_epoch)
    self._writer = MetricsWriter(
      workdir, start_step, enabled=parallel.is_main()
    )
    self._progress = Progress(
      total_steps, start_step, enabled=parallel.is_main()
    )
    self._clock = time.perf_counter()
    self._is_first_pause = True
    self._first_step = start_step + 1
    if start_step:
      self._progress.message(
        f"Continuing from the checkpoint of step {start_step} of {total_steps}"
      )

  def is_due(self, step: int, every_epochs: float) -> bool:
    """Returns whether a multiple of so many epochs ends with this step."""
    every_steps = max(1, round(every_epochs * self.steps_per_epoch))
    return step % every_steps == 0

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step, which need not be computed yet."""
    self._pending.append((step, metrics))
    if step % self.config.log.every_steps == 0:
      self.flush(step - 1)
    elif self._pending[-2:-1] and self._progress.is_due():
      self._show(*self._pending[-2])

  def _show(self, step: int, metrics: Metrics) -> None:
    """Shows a step, once it is computed, without writing its line.

    On the main process alone: it must not ask the others for numbers.
    """
    values = jax.block_until_ready(metrics)
    known = {k: v for k, v in values.items() if v[0].is_fully_replicated}
    sums = {k: (float(v), float(n)) for k, (v, n) in known.items()}
    self._progress.update(step, {k: v / n for k, (v, n) in sums.items() if n})

  def flush(self, last_step: int) -> None:
    """Writes the mean metrics of all steps up to `last_step`.

    Raises:
      TrainingDivergedError: a number is not finite.
    """
    ready = [m for m in self._pending if m[0] <= last_step]
    self._pending = self._pending[len(ready) :]
    if not ready:
      return
    values = parallel.fetch([metrics for _, metrics in ready])
    for (step, _), metrics in zip(ready, values, strict=True):
      for name, (total, _) in metrics.items():
        if not np.isfinite(total):
          raise TrainingDivergedError(
            f"{name} is {float(total)} at step {step}: training stopped, and "
            "the last checkpoint before it stays as it is. Lower "
            "--config.optim.lr_per_256, raise --config.optim.warmup_epochs or "
            "--config.loss.ramp_epochs, or set --config.optim.clip_norm, with "
            "another --workdir."
          )
    totals = jax.tree.map(lambda *x: np.sum(x, axis=0), *values)
    self.skipped += float(totals.get("train/skipped_frac", (0,))[0])
    # A mean over nothing (every pair of every step masked) is no number.
    means = {k: float(v / n) for k, (v, n) in totals.items() if n > 0}
    now = time.perf_counter()
    num_images = len(ready) * self.config.batch_size
    means["train/images_per_sec"] = num_images / (now - self._clock)
    self._clock = now
    # Of the update that led to `last_step`, which is the one before it.
    means["train/lr"] = float(self._lr(last_step - 1))
    self.write(last_step, means)
    if self._is_first_flush:
      self._is_first_flush = False
      mode = self.config.compose.mode
      if warning := cautions.masked_pairs([means], mode):
        self._progress.message(f"warning: {warning}")

  def write(self, step: int, metrics: dict[str, float]) -> float:
    """Writes a line; returns the score by which the best state is known."""
    line = {"epoch": step / self.steps_per_epoch} | metrics
    self._writer.write(step, line)
    self._progress.update(step, metrics)
    return metrics.get("val/top1", metrics.get("val/f1_overall", -math.inf))

  def save(self) -> None:
    """Has every line on the disk, or in the bucket."""
    self._writer.save()

  def compiling(self, step: int) -> contextlib.AbstractContextManager:
    """Says so while the first step is compiled; others are only computed."""
    if step == self._first_step:
      return speaking.doing("compiling the train step")
    return contextlib.nullcontext()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops the clock of the training speed: an evaluation is no part of it.

    The first one compiles, and does not count for the time left either.
    """
    started = time.perf_counter()
    yield
    self._clock += time.perf_counter() - started
    if self._is_first_pause:
      self._progress.rest()
    self._is_first_pause = False

  def close(self) -> None:
    """Closes files and the progress bar."""
    self._writer.close()
    self._progress.close()


class Profile:
  """A trace of some steps, on the devices of the main process and its host.

  From the first to the last of `steps`; (0, 0) for none. It goes into the
  workdir's folder `profile`, where TensorBoard and Perfetto find it.
  """

  def __init__(self, steps: tuple[int, ...], workdir: files.AnyPath):
    self._first, self._last = steps
    self._folder = workdir / "profile"
    self._written: tempfile.TemporaryDirectory | None = None

  def before(self, step: int) -> None:
    """Starts the trace at its first step."""
    within = max(1, self._first) <= step <= self._last
    if within and self._written is None and parallel.is_main():
      # The profiler writes to local disks only.
      self._written = tempfile.TemporaryDirectory(prefix="profile")
      jax.profiler.start_trace(self._written.name)

  def after(self, step: int, state: TrainState) -> None:
    """Ends the trace at its last step, once the devices are done."""
    if self._written is not None and step == self._last:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes what was traced so far."""
    if self._written is None:
      return
    jax.profiler.stop_trace()
    files.copy_folder(Path(self._written.name), self._folder)
    self._written.cleanup()
    self._written = None
    _logger.info("Wrote a profile to %s", self._folder)
