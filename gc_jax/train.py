"""The story of a run: set up, restore, train, evaluate, report.

The one place that orders side effects. What is computed lives in `step.py`
and below; what people see, in `report/`.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from typing import Any, NoReturn

import jax
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import (
  checkpoint,
  data,
  models,
  optim,
  parallel,
  recipe,
  saved_config,
  trained,
)
from gc_jax import config as configs
from gc_jax import state as states
from gc_jax import step as steps
from gc_jax.checkpoint import Checkpoints
from gc_jax.data import pipeline
from gc_jax.evaluation.run import Evaluation
from gc_jax.recording import Profile, Run
from gc_jax.report import artefact, files
from gc_jax.report.page import write_report
from gc_jax.state import TrainState

_logger = logging.getLogger(__name__)


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
  saved_config.check_same_run(config, workdir)
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
      recipe.model_maker(
        config, len(train_set.class_names), jax.default_backend()
      ),
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
    evaluation = Evaluation(config, mesh)
    run = Run(config, workdir, steps_per_epoch, total_steps, int(state.step))
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
    model = steps.eval_model(graphdef, state)
    done = evaluation.full(model, workdir, lambda: _end_if_asked(run))
    results |= done.results
    results["time/eval_secs"] = time.perf_counter() - started

  if parallel.is_main():
    artefact.save(dataclasses.replace(done, results=results))
    page = _write_report(workdir, config.report.baseline)
    _logger.info("Wrote %s and %s", workdir / "results.json", page)
  # Not on the way out, where jax lets nobody wait for long.
  parallel.wait_for_all("report")
  return results


def _train(
  run: Run,
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
  goal = recipe.objective(config, len(train_set.class_names), mesh.size)
  train_step = recipe.jitted_train_step(
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
  profile = Profile(tuple(config.profile_steps), run.workdir)
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
        found = evaluation.quick(steps.eval_model(graphdef, state))
        score = run.write(step, found)
        run.resume()
      if saving:
        meta["train_secs"] = time.perf_counter() - started
        meta["skipped"] = run.skipped
        run.save()
        checkpoints.save(state, meta, best=score)
      if stopping:
        _end(run, step, checkpoints)
  return state, meta


def _end(run: Run, step: int, checkpoints: Checkpoints) -> NoReturn:
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


def _end_if_asked(run: Run) -> None:
  """Ends the process where training is done, and what follows can wait."""
  if parallel.stop_requested():
    _logger.warning(
      "Asked to end by SIGTERM: training is done, and saved in %s. The same "
      "command evaluates it.",
      run.workdir,
    )
    raise parallel.Stopped


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
    text = json.dumps(saved_config.to_dict(config), indent=2)
    files.write_text(workdir / saved_config.FILENAME, text + "\n")
  except OSError as error:
    raise ValueError(
      f"--workdir={workdir} must be a folder that can be written to: "
      f"{error}. Choose another, or change its permissions."
    ) from error
