"""The story of a run: set up, restore, train, evaluate, report.

The one place that orders side effects. The computation is in `step.py` and
below; what people see, in `report/`.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import data, models
from gc_jax.data import pipeline
from gc_jax.evaluation.checks import remarks
from gc_jax.evaluation.run import Evaluation
from gc_jax.inference import trained
from gc_jax.inference.trained import Initial
from gc_jax.report import artefact
from gc_jax.report.page import write_report
from gc_jax.runtime import checkpoint, files, parallel, speaking
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.checkpoint import CheckpointError, Checkpoints
from gc_jax.runtime.messages import class_differences
from gc_jax.runtime.signals import Stopped, told_if_stopped
from gc_jax.training import announcement, build, checks, guidance
from gc_jax.training.recording import Profile, Run
from gc_jax.training.step import TrainState, eval_model, make_train_step

_logger = logging.getLogger(__name__)


def train_and_evaluate(
  config: ConfigDict, workdir: files.AnyPath
) -> dict[str, Any]:
  """Trains, evaluates and reports; returns the content of `results.json`.

  Continues where an earlier call with the same workdir stopped.

  Raises:
    ValueError: the config, the data or the workdir does not allow the run;
      nothing was written or compiled.
    TrainingDivergedError: a loss is not finite; the last good checkpoint stays.
    CheckpointError: a checkpoint could not be written or read.
    Stopped: a signal asked to end, in a process that `parallel.initialize` set
      up for it; all is saved.
  """
  mesh = parallel.make_mesh()
  checks.validate(config, mesh.size)
  saved_config.check_same_run(config, workdir)
  train_set = data.load(config.data, config.data.train_split)
  checks.validate_data(config, train_set)
  initial = None
  if config.init_from and not checkpoint.has_checkpoint(workdir):
    initial = trained.initial_model(config.init_from, config.model.name)
    _check_initial_classes(initial, config, train_set.class_names)
  classes = data.Classes(len(train_set.class_names), train_set.multi_label)
  num_train, said = _num_train(workdir, train_set)
  steps_per_epoch = num_train // config.batch_size
  total_steps = max(1, round(config.num_epochs * steps_per_epoch))
  tx = build.optimizer(config, steps_per_epoch)
  goes_on = config.go_on_from and not checkpoint.has_checkpoint(workdir)
  if goes_on:
    class_names = train_set.class_names
    said += build.check_goes_on(config, workdir, class_names, total_steps)
  evaluation = Evaluation(config, mesh)
  make_model = build.model_maker(config, classes, jax.default_backend())
  model = nnx.eval_shape(make_model, models.init_key(config.seed))
  model.eval()
  _, left_out = evaluation.fitting(model)
  for line in announcement.announced(
    config, (train_set, *evaluation.splits), total_steps, mesh.size
  ):
    speaking.say(line)
  for line in (*remarks(left_out), *said):
    speaking.say(line)

  opened = _opened(workdir, config, train_set, evaluation.splits[1])
  with opened, jax.set_mesh(mesh):
    _logger.info("%s. Writing to %s", parallel.describe(), workdir)
    with speaking.doing("compiling the first state"):
      graphdef, state = build.create_state(
        make_model,
        tx,
        parallel.replicated(mesh),
        models.init_key(config.seed),
      )
    if initial is not None:
      state = build.started_from(initial, state, config, train_set.class_names)
      del initial  # a second copy of every weight
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    with speaking.doing("reading the checkpoint"):
      state, meta = checkpoints.restore(state)
      if goes_on:
        source = files.as_path(config.go_on_from)
        state, meta = checkpoint.read_state(source, state)
    meta = {**meta, "num_train": num_train}
    run = Run(config, workdir, steps_per_epoch, total_steps, int(state.step))
    with (
      parallel.stop_awaited(),
      contextlib.closing(run),
      _saved_whatever_happens(checkpoints),
    ):
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

    with told_if_stopped(
      f"training is done, and saved in {workdir}. The same command evaluates it"
    ):
      _end_if_asked()
      results = {
        "step": int(state.step),
        "model/num_params": build.num_params(state),
        "time/train_secs": meta["train_secs"],
      }
      if config.data.on_error == "skip":
        results["data/skipped_train"] = round(meta["skipped"])
        results["data/dropped_train"] = train_set.num_dropped
      started = time.perf_counter()
      model = eval_model(graphdef, state)
      done = evaluation.full(model, workdir, _end_if_asked)
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
  # With them a checkpoint can be explained and exported without its data.
  meta["class_names"] = list(train_set.class_names)
  meta["multi_label"] = train_set.multi_label
  start_step = int(state.step)
  if start_step >= run.total_steps:
    return state, meta
  if stopped := parallel.stop_requested(start_step):
    _end(stopped, run, start_step)
  train_step = make_train_step(
    config,
    graphdef,
    tx,
    num_classes=len(train_set.class_names),
    num_devices=mesh.size,
    steps_per_epoch=run.steps_per_epoch,
  )
  train_step = jax.jit(train_step, donate_argnums=0)
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
    bring=guidance.needs(config),
    target_draw=config.loss.target_draw,
    distractor_draw=config.compose.distractor_draw,
    num_workers=config.data.num_workers,
    process_index=process_index,
    process_count=process_count,
    processes_here=parallel.processes_here(),
  )
  profile = Profile(tuple(config.profile_steps), run.workdir)
  run.skipped = meta["skipped"]
  started = time.perf_counter() - meta["train_secs"]

  with (
    contextlib.closing(batches),
    contextlib.closing(parallel.to_devices_ahead(batches, mesh)) as ahead,
    contextlib.closing(profile),
  ):
    for step in range(start_step + 1, run.total_steps + 1):
      profile.before(step)
      batch = next(ahead)
      with run.compiling(step):
        state, metrics = train_step(state, batch)
      profile.after(step, state)
      run.add(step, metrics)
      last = step == run.total_steps
      evaluating = last or run.is_due(step, config.eval.every_epochs)
      stopped = parallel.stop_requested(step)
      saving = (
        last
        or stopped is not None
        or run.is_due(step, config.checkpoint.every_epochs)
      )
      if evaluating or saving:
        # A state is evaluated and saved only once its numbers are known to be
        # finite: the checkpoints then hold nothing to recover from.
        run.flush(step)
      score = -math.inf  # a state that is not evaluated is not the best
      if evaluating:
        with run.paused():
          found = evaluation.quick(eval_model(graphdef, state))
          score = run.write(step, found)
      if saving:
        meta["train_secs"] = time.perf_counter() - started
        meta["skipped"] = run.skipped
        run.save()
        checkpoints.save(state, meta, best=score)
      if stopped is not None:
        checkpoints.wait()
        _end(stopped, run, step)
  return state, meta


def _end(stopped: Stopped, run: Run, step: int) -> NoReturn:
  saved = f"which is saved in {run.workdir}" if step else "with nothing to save"
  stopped.tell(
    f"stopped after step {step} of {run.total_steps}, {saved}. The same "
    "command goes on from there"
  )
  raise stopped


def _end_if_asked() -> None:
  if stopped := parallel.stop_requested():
    raise stopped


@contextlib.contextmanager
def _saved_whatever_happens(checkpoints: Checkpoints) -> Iterator[None]:
  """Waits for a save under way, also if an error ends the run."""
  try:
    yield
  except Exception:
    # Other processes may be gone; waiting for them would never end.
    if parallel.process() == (0, 1):
      try:
        checkpoints.close()
      except CheckpointError as error:
        _logger.error("%s", error)
    raise
  except Stopped:
    checkpoints.close()
    raise
  checkpoints.close()


def _check_initial_classes(
  initial: Initial, config: ConfigDict, class_names: Sequence[str]
) -> None:
  # Entirely different classes, or another number of them, are allowed: their
  # outputs start anew.
  theirs = initial.class_names
  if (
    config.init_head
    and len(theirs) == len(class_names)
    and set(theirs) & set(class_names)
    and (differences := class_differences(theirs, class_names))
  ):
    raise ValueError(
      f"--config.init_from={config.init_from} must have the classes of the "
      "data, in their order, for training to go on from its outputs; it has "
      f"others:\n{differences}\nName and order them alike, or set "
      "--config.init_head=False: outputs then start anew."
    )


def _write_report(workdir: files.AnyPath, baseline: str) -> files.AnyPath:
  with speaking.doing("drawing the page"):
    if baseline:
      try:
        return write_report(workdir, baseline)
      except ValueError as error:
        # The run is finished: a fault of another one must not spoil it.
        _logger.warning("No baseline in the report: %s", error)
    return write_report(workdir)


@contextlib.contextmanager
def _opened(
  workdir: files.AnyPath,
  config: ConfigDict,
  train_set: data.Dataset,
  test_set: data.Dataset,
) -> Iterator[None]:
  """Makes the workdir, locks it for all processes, writes the config into it.

  One that another process writes to, whose run has learned other classes, or
  was measured on other pictures, is refused and stays untouched.
  """
  with contextlib.ExitStack() as stack:

    def open_it():
      try:
        workdir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(files.held(workdir, "--workdir"))
        _check_same_classes(workdir, train_set)
        _check_same_pictures(workdir, test_set)
        text = json.dumps(saved_config.to_dict(config), indent=2)
        files.write_text(workdir / saved_config.FILENAME, text + "\n")
      except OSError as error:
        raise ValueError(
          f"--workdir={workdir} must be a folder that can be written to: "
          f"{error}. Choose another, or change its permissions."
        ) from error

    parallel.main_does(open_it)
    yield


def _check_same_classes(
  workdir: files.AnyPath, train_set: data.Dataset
) -> None:
  meta = checkpoint.read_meta(workdir)
  names = trained.class_names(workdir, meta)
  if names and (differences := class_differences(names, train_set.class_names)):
    raise ValueError(
      f"--workdir={workdir} holds a run that learned other classes than the "
      f"data has now, and nothing of it was touched:\n{differences}\nChange "
      "them back to go on with that run (rename folders, rows of tables), or "
      "use another --workdir to train on these."
    )
  multi_label = meta.get("multi_label", train_set.multi_label)
  if multi_label != train_set.multi_label:
    kinds = {False: "one class", True: "several classes"}
    raise ValueError(
      f"--workdir={workdir} holds a run of pictures that show "
      f"{kinds[multi_label]} each, and those of the data show "
      f"{kinds[train_set.multi_label]} now; nothing of it was touched. Change "
      "the labels back to go on with that run, or use another --workdir."
    )


def _check_same_pictures(
  workdir: files.AnyPath, test_set: data.Dataset
) -> None:
  """Checks that a finished run was measured on what the data has now."""
  there = artefact.pictures_of(workdir)
  if there and there != test_set.digest():
    raise ValueError(
      f"--workdir={workdir} holds a finished run that was measured on other "
      "pictures, masks or boxes than the data has now, and nothing of it was "
      "touched. To measure it on those: python -m gc_jax.evaluate "
      f"--workdir={workdir} --out=FOLDER. To train anew, use another --workdir."
    )


def _num_train(
  workdir: files.AnyPath, train_set: data.Dataset
) -> tuple[int, list[str]]:
  """Returns how many pictures make an epoch, and lines to say about it.

  A run keeps the number it began with: its schedule and end follow from it.
  """
  now = len(train_set.source)
  begun = checkpoint.read_meta(workdir).get("num_train", now)
  if begun == now:
    return now, []
  return begun, [
    f"note: --workdir={workdir} holds a run that began with {begun:,} pictures "
    f"to train on; the data has {now:,} now. It keeps its number of steps, and "
    "what is left of them sees today's pictures. To train on those from the "
    "start, use another --workdir"
  ]
