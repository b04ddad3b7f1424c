"""The story of a run: set up, restore, train, evaluate, report.

The one place that orders side effects. What is computed lives in `step.py`
and below; what people see, in `report/`.
"""

import contextlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax import checkpoint, data, models, optim, parallel, trained
from gc_jax import config as configs
from gc_jax import state as states
from gc_jax import step as steps
from gc_jax.checkpoint import Checkpoints
from gc_jax.data import pipeline
from gc_jax.evaluation import Evaluation
from gc_jax.report import files
from gc_jax.report.metrics_writer import MetricsWriter
from gc_jax.report.page import write_report
from gc_jax.report.progress import Progress
from gc_jax.state import TrainState
from gc_jax.types import Metrics

_logger = logging.getLogger(__name__)


class TrainingDivergedError(RuntimeError):
  """A loss or gradient is no longer finite; says at which step."""


def train_and_evaluate(
  config: ConfigDict, workdir: files.AnyPath
) -> dict[str, Any]:
  """Trains, evaluates and reports; continues where an earlier call stopped.

  Args:
    config: every field of configs/base.py.
    workdir: where everything is written. Made if need be.

  Returns:
    What `results.json` holds.

  Raises:
    ValueError: the config or the workdir does not allow the run; nothing was
      written or compiled.
    TrainingDivergedError: a loss is not finite; the last good checkpoint stays.
    CheckpointError: a checkpoint could not be written or read.
    parallel.Stopped: SIGTERM came, in a process that `parallel.initialize` set
      up for it; all is saved.
  """
  mesh = parallel.make_mesh()
  configs.validate(config, mesh.size)
  configs.check_same_run(config, workdir)
  train_set = data.load(config.data, config.data.train_split)
  configs.validate_data(config, train_set.class_names, len(train_set.source))
  initial = None
  if config.init_from and not checkpoint.has_checkpoint(workdir):
    initial = trained.initial_model(config.init_from, config.model.name)
  parallel.main_does(lambda: _open_workdir(config, workdir))
  _logger.info("%s. Writing to %s", parallel.describe(), workdir)

  steps_per_epoch = pipeline.steps_per_epoch(
    len(train_set.source), config.batch_size
  )
  total_steps = max(1, round(config.num_epochs * steps_per_epoch))
  tx = optim.optimizer(config, steps_per_epoch)

  with jax.set_mesh(mesh):
    graphdef, state = states.create(
      model_maker(config, len(train_set.class_names), jax.default_backend()),
      tx,
      parallel.replicated(mesh),
      models.init_key(config.seed),
    )
    if initial is not None:
      state, anew = states.started_from(state, initial)
      _logger.info(
        "Starting from %s%s",
        config.init_from,
        f"; of another size, so initialised anew: {', '.join(anew)}"
        if anew
        else "",
      )
      del initial  # a second copy of every weight
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    state, meta = checkpoints.restore(state)
    evaluation = Evaluation(config, graphdef, mesh)
    run = _Run(config, workdir, steps_per_epoch, total_steps, int(state.step))
    try:
      with parallel.stop_awaited():
        state, meta = _train(
          run,
          train_set,
          graphdef,
          tx,
          state,
          meta,
          checkpoints,
          evaluation,
          mesh,
        )
        checkpoints.close()
    finally:
      run.close()
    _end_if_asked(run)

    results = {
      "step": total_steps,
      "model/num_params": states.num_params(state),
      "time/train_secs": meta["train_secs"],
    }
    if config.data.on_error == "skip":
      results["data/skipped_train"] = round(meta["skipped"])
      results["data/dropped_train"] = train_set.num_dropped
    started = time.perf_counter()
    results |= evaluation.full(state, workdir, lambda: _end_if_asked(run))
    results["time/eval_secs"] = time.perf_counter() - started

  if parallel.is_main():
    files.write_text(
      workdir / "results.json", json.dumps(results, indent=2) + "\n"
    )
    page = _write_report(workdir, config.report.baseline)
    _logger.info("Wrote %s and %s", workdir / "results.json", page)
  # Not on the way out, where jax lets nobody wait for long.
  parallel.wait_for_all("report")
  return results


def _train(
  run: "_Run",
  train_set: data.Dataset,
  graphdef: nnx.GraphDef,
  tx,
  state: TrainState,
  meta: dict[str, Any],
  checkpoints: Checkpoints,
  evaluation: Evaluation,
  mesh: jax.sharding.Mesh,
) -> tuple[TrainState, dict[str, Any]]:
  """Returns the state after the last step, and what goes with it."""
  config = run.config
  meta = {"train_secs": 0.0, "skipped": 0.0} | meta
  # With them a checkpoint can be explained without its data.
  meta["class_names"] = list(train_set.class_names)
  meta["multi_label"] = train_set.multi_label
  start_step = int(state.step)
  if start_step == run.total_steps:
    return state, meta
  if parallel.stop_requested(start_step):
    _end(run, start_step, checkpoints)
  goal = objective(config, len(train_set.class_names), mesh.size)
  train_step = jitted_train_step(
    config, graphdef, tx, goal, run.steps_per_epoch
  )
  process_index, process_count = parallel.process()
  batches = pipeline.train_batches(
    train_set,
    seed=config.seed,
    start_step=start_step,
    batch_size=config.batch_size,
    image_size=config.data.image_size,
    crop_padding_px=config.data.crop_padding_px,
    crop=config.data.crop,
    flip=config.data.flip,
    on_error=config.data.on_error,
    # Without composites, none are decoded.
    distractors=config.compose.distractors if goal.consistency else "batch",
    target_draw=config.loss.target_draw,
    num_workers=config.data.num_workers,
    process_index=process_index,
    process_count=process_count,
  )
  profile = _Profile(tuple(config.profile_steps), run.workdir)
  run.skipped = meta["skipped"]
  started = time.perf_counter() - meta["train_secs"]

  with (
    contextlib.closing(parallel.to_devices_ahead(batches, mesh)) as ahead,
    contextlib.closing(profile),
  ):
    for step in range(start_step + 1, run.total_steps + 1):
      profile.before(step)
      state, metrics = train_step(state, next(ahead))
      profile.after(step, state)
      run.add(step, metrics)
      last = step == run.total_steps
      evaluating = last or run.is_due(step, config.eval.every_epochs)
      stopping = parallel.stop_requested(step)
      saving = (
        last or stopping or run.is_due(step, config.checkpoint.every_epochs)
      )
      if evaluating or saving:
        # A state is evaluated and saved only once its numbers are known to be
        # finite: the checkpoints then hold nothing to recover from.
        run.flush(step)
      score = -math.inf  # where it is not evaluated, it is not the best
      if evaluating:
        run.pause()
        score = run.write(step, evaluation.quick(state))
        run.resume()
      if saving:
        meta["train_secs"] = time.perf_counter() - started
        meta["skipped"] = run.skipped
        run.save()
        checkpoints.save(state, meta, best=score)
      if stopping:
        _end(run, step, checkpoints)
  return state, meta


def _end(run: "_Run", step: int, checkpoints: Checkpoints) -> NoReturn:
  """Ends the process between two steps, once all is on the disk."""
  checkpoints.close()
  _logger.warning(
    "Asked to end by SIGTERM: stopped after step %d of %d, %s. The same "
    "command goes on from there.",
    step,
    run.total_steps,
    f"which is saved in {run.workdir}" if step else "with nothing to save",
  )
  raise parallel.Stopped


def _end_if_asked(run: "_Run") -> None:
  """Ends the process where training is done, and what follows can wait."""
  if parallel.stop_requested():
    _logger.warning(
      "Asked to end by SIGTERM: training is done, and saved in %s. The same "
      "command evaluates it.",
      run.workdir,
    )
    raise parallel.Stopped


def objective(
  config: ConfigDict, num_classes: int, num_devices: int
) -> steps.Objective:
  """Returns what the config minimises."""
  return steps.Objective(
    num_classes=num_classes,
    consistency=config.loss.consistency_weight > 0,
    classification_weight=config.loss.classification_weight,
    reduction=config.loss.reduction,
    stop_gradient=config.loss.stop_gradient,
    target_draw=config.loss.target_draw,
    compose_mode=config.compose.mode,
    compose_groups=configs.compose_groups(config, num_devices),
    accumulate_steps=config.accumulate_steps,
    bn_group=config.model.bn_group,
    remat=config.model.remat,
  )


def model_maker(
  config: ConfigDict, num_classes: int, platform: str
) -> Callable[[PRNGKeyArray], nnx.Module]:
  """Returns what builds the config's model, initialised from a key.

  Args:
    config: resolved.
    num_classes: K.
    platform: "cpu", "gpu" or "tpu", what it will run on.
  """
  dtype = compute_dtype(config.compute_dtype, platform)
  return lambda key: models.create(
    config.model.name, num_classes, dtype=dtype, key=key
  )


def jitted_train_step(
  config: ConfigDict,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  goal: steps.Objective,
  steps_per_epoch: int,
) -> jax.stages.Wrapped:
  """Returns the update of `step.make_train_step`, to call or to compile.

  Args:
    config: resolved.
    graphdef: structure of the model.
    tx: the optimizer.
    goal: from `objective`.
    steps_per_epoch: of the schedules.
  """
  return jax.jit(
    steps.make_train_step(
      graphdef,
      tx,
      goal,
      optim.consistency_weight(config, steps_per_epoch),
      jax.random.key(config.seed),
    ),
    donate_argnums=0,
  )


def compute_dtype(name: str, platform: str) -> jnp.dtype:
  """Returns the dtype of activations; "auto" is bfloat16 except on CPU."""
  if name == "auto":
    name = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(name)


def _write_report(workdir: files.AnyPath, baseline: str) -> files.AnyPath:
  """Writes the page, beside a baseline where one is named and comparable."""
  if baseline:
    try:
      return write_report(workdir, baseline)
    except ValueError as error:
      # The run is finished: what is wrong with another one must not spoil it.
      _logger.warning("No baseline in the report: %s", error)
  return write_report(workdir)


def _open_workdir(config: ConfigDict, workdir: files.AnyPath) -> None:
  """Makes the workdir and writes the resolved config into it.

  Raises:
    ValueError: it cannot be written to.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(configs.to_dict(config), indent=2)
    files.write_text(workdir / configs.FILENAME, text + "\n")
  except OSError as error:
    raise ValueError(
      f"--workdir={workdir} must be a folder that can be written to: "
      f"{error}. Choose another, or change its permissions."
    ) from error


class _Run:
  """What happens beside the steps: metrics, progress, time, the watch on NaN.

  Metrics are fetched one step late, so that the device never waits for the
  host: while step n is computed, the numbers up to n - 1 are read.
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
    self.skipped = 0.0  # broken pictures passed over, up to the last flush
    self._pending: list[tuple[int, Metrics]] = []
    self._lr = optim.learning_rate(config, steps_per_epoch)
    self._writer = MetricsWriter(
      workdir, start_step, enabled=parallel.is_main()
    )
    self._progress = Progress(
      total_steps, start_step, enabled=parallel.is_main()
    )
    self._clock = time.perf_counter()
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
      _check_finite(step, metrics)
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

  def write(self, step: int, metrics: dict[str, float]) -> float:
    """Writes a line; returns the number by which the best run is known."""
    line = {"epoch": step / self.steps_per_epoch} | metrics
    self._writer.write(step, line)
    self._progress.update(step, metrics)
    return metrics.get("val/top1", metrics.get("val/f1_overall", -math.inf))

  def save(self) -> None:
    """Has every line on the disk, or in the bucket."""
    self._writer.save()

  def pause(self) -> None:
    """Stops the clock of the training speed."""
    self._paused = time.perf_counter()

  def resume(self) -> None:
    """Lets the clock go on."""
    self._clock += time.perf_counter() - self._paused

  def close(self) -> None:
    """Closes files and the progress bar."""
    self._writer.close()
    self._progress.close()


class _Profile:
  """A trace of some steps, on the devices of the main process and its host.

  Args:
    steps: the first and the last; (0, 0) for none.
    workdir: the trace goes into its folder `profile`, where TensorBoard and
      Perfetto find it.
  """

  def __init__(self, steps: tuple[int, ...], workdir: files.AnyPath):
    self._first, self._last = steps
    self._folder = workdir / "profile"
    self._written: tempfile.TemporaryDirectory | None = None

  def before(self, step: int) -> None:
    """Starts the trace where it is due."""
    within = max(1, self._first) <= step <= self._last
    if within and self._written is None and parallel.is_main():
      # The profiler writes to disks alone.
      self._written = tempfile.TemporaryDirectory(prefix="profile")
      jax.profiler.start_trace(self._written.name)

  def after(self, step: int, state: TrainState) -> None:
    """Ends the trace where it is due, once the devices are done."""
    if self._written is not None and step == self._last:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes what there is."""
    if self._written is None:
      return
    jax.profiler.stop_trace()
    files.copy_folder(Path(self._written.name), self._folder)
    self._written.cleanup()
    self._written = None
    _logger.info("Wrote a profile to %s", self._folder)


def _check_finite(step: int, metrics: dict[str, Any]) -> None:
  for name, (total, _) in metrics.items():
    if not np.isfinite(total):
      raise TrainingDivergedError(
        f"{name} is {float(total)} at step {step}: training stopped, and the "
        "last checkpoint before it stays as it is. Lower "
        "--config.optim.lr_per_256, raise --config.optim.warmup_epochs or "
        "--config.loss.ramp_epochs, or set --config.optim.clip_norm, with "
        "another --workdir."
      )
