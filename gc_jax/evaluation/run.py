"""An evaluation, of a finished training run or of any model: its story.

Read top to bottom: plan, measure, look, report. The end of a training run asks
few questions (`Evaluation`), `python -m gc_jax.evaluate` all of them
(`evaluate`), and goes on where it stopped before. Both leave the same files,
see `report.artefact`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import attribution, data
from gc_jax.attribution import METHODS
from gc_jax.attribution.randomization import stages as stages_of
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation import examples, summary
from gc_jax.evaluation import ledger as ledgers
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation.checks import (
  check_methods,
  fitting,
  remarks,
  validate_evaluation,
)
from gc_jax.evaluation.ledger import Ledger
from gc_jax.inference import arrays, trained
from gc_jax.inference.trained import LoadedModel
from gc_jax.report import artefact, cautions, logs, page
from gc_jax.report.artefact import Evaluated
from gc_jax.report.gallery import Example
from gc_jax.report.rows import Rows
from gc_jax.runtime import checkpoint, files, parallel, speaking
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.messages import (
  class_differences,
  listed,
  number_of,
)

PARTIAL = "partial.npz"
_SAVE_EVERY_SECS = 15.0
_NUM_EXAMPLES = 8


def evaluate(
  config: ConfigDict,
  *,
  source: str | Path,
  arch: str | None,
  methods: tuple[str, ...],
  out: Path,
) -> Iterator[str]:
  """Measures a model and writes the report; yields lines for people.

  Args:
    config: resolved; only `data` and `eval` count.
    source: workdir of a run, or PyTorch checkpoint.
    arch: of a checkpoint that gc_jax did not export.
    methods: keys of `METHODS`.
    out: folder to write to. An unfinished evaluation in it goes on; a finished
      one is kept.

  Raises:
    ValueError: an argument is invalid; raised before anything is compiled.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  mesh = parallel.make_mesh()
  check_methods("--methods", methods)
  validate_evaluation(config)
  loaded = trained.load_model(source, arch)
  dataset = data.load(config.data, config.data.eval_split)
  check_fits(loaded, dataset, config)
  methods, left_out = fitting(methods, loaded.model, config)
  yield from remarks(left_out)
  stages_of(loaded.model)  # an error is told now
  is_run = loaded.consistency is not None  # files do not say it
  trained_by, total_steps = {}, 0
  if is_run:
    workdir = files.as_path(source)
    trained_by = saved_config.read(workdir)
    path = workdir / logs.FILENAME
    lines = logs.read_metrics(path) if path.is_file() else []
    _, total_steps = cautions.progress(lines, trained_by)
  identity = {
    "model": loaded.source,
    "weights": checkpoint.digest(nnx.state(loaded.model)),
    artefact.PICTURES: dataset.digest(),
    "methods": list(methods),
    "method_settings": attribution.settings_of(methods),
    **saved_config.evaluation_settings(saved_config.to_dict(config)),
  }
  _open(out, identity)
  if artefact.is_evaluation(out):
    yield f"{out} holds this evaluation, finished; nothing to do."
    return

  if loaded.multi_label != dataset.multi_label:
    yield _outputs_note(loaded, dataset)
    loaded.model.multi_label = dataset.multi_label

  with files.held(out, "--out"), jax.set_mesh(mesh):
    model = parallel.on_all_devices(loaded.model, mesh)
    planner = plans.Planner(model, dataset, config, mesh)
    costly = tuple(name for name in methods if METHODS[name].is_costly)
    plan = planner.passes(artefact.QUESTIONS, methods, costly)
    ledger = ledgers.load(out / PARTIAL, len(planner.pairs.index), identity)
    yield from _measured(plan, planner, ledger, out / PARTIAL)
    yield "randomising weights layer by layer, and looking at pictures"
    started = time.monotonic()
    stages, randomization, strips = examples.sanity(
      planner, methods, config.eval.sanity_rows
    )
    pairs = planner.pairs
    chosen = {
      "fixed": examples.spread(planner, _NUM_EXAMPLES),
      "wrong": examples.surely_wrong(ledger, pairs.first & (pairs.target >= 0)),
    }
    gallery = examples.gallery(planner, ledger, chosen, methods, strips=strips)
    ledger.secs += time.monotonic() - started

  done = _evaluated(
    planner,
    ledger,
    out,
    gallery,
    {"stages": stages, "randomization": randomization},
    source=loaded.source,
    architecture=loaded.name,
    consistency=loaded.consistency,
    methods=methods,
    left_out=left_out,
    costly_methods=costly,
    num_costly_images=len(planner.few()),
    num_compilations=len(plan),
    secs=ledger.secs,
    identity=identity,
    trained=trained_by,
    questions=artefact.QUESTIONS,
    on_validation=is_run
    and data.was_watched(
      dataset, config.data, saved_config.completed(trained_by).data
    ),
    step=loaded.step,
    total_steps=total_steps,
  )
  with speaking.doing("drawing the page"):
    written = page.write_evaluation(done)
  # Last: with it the evaluation is finished.
  written += artefact.save(done)
  (out / PARTIAL).unlink(missing_ok=True)
  for path in written:
    yield f"wrote {path}"


class Evaluation:
  """The evaluations of a training run: quick ones meanwhile, one at its end.

  Composites and random points are the same for every run and state, so that
  two results differ by their models alone. Models are given in evaluation mode,
  on every device of the mesh.
  """

  def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
    self._config = config
    self._mesh = mesh
    self._val = data.load(config.data, config.data.val_split)
    self._test = data.load(config.data, config.data.eval_split)

  @property
  def splits(self) -> tuple[Dataset, Dataset]:
    """Returns the pictures to validate with, and those to test with."""
    return self._val, self._test

  def fitting(
    self, model: nnx.Module
  ) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns what `fitting` does, of the methods in the configuration."""
    return fitting(tuple(self._config.eval.methods), model, self._config)

  def quick(self, model: nnx.Module) -> dict[str, float]:
    """Returns classification on the validation split."""
    planner = plans.Planner(
      model, self._val, self._config, self._mesh, explains=False
    )
    ledger = Ledger(len(planner.pairs.index))
    plan = planner.passes(("classification",))
    # While a model trains, it is the training that is shown.
    for _ in plans.run(plan, planner, ledger, at_once=False):
      pass
    return summary.flat(summary.accuracies(ledger))

  def full(
    self,
    model: nnx.Module,
    workdir: files.AnyPath,
    after_batch: Callable[[], None] = lambda: None,
  ) -> Evaluated:
    """Returns classification and localisation on the evaluation split.

    And what `config.eval.also` asks. `after_batch` is called on every process,
    and may raise.
    """
    planner = plans.Planner(model, self._test, self._config, self._mesh)
    ledger = Ledger(len(planner.pairs.index))
    methods, left_out = self.fitting(model)
    also = tuple(self._config.eval.also)
    questions = (*artefact.OF_RUNS, *also)
    plan = planner.passes(questions, methods)
    for _ in plans.run(plan, planner, ledger):
      after_batch()
    telling = examples.telling(planner, ledger, methods[0])
    gallery = examples.gallery(
      planner,
      ledger,
      telling.chosen,
      methods[:1],
      with_composites=telling.with_composites,
    )
    return _evaluated(
      planner,
      ledger,
      workdir,
      gallery,
      {},
      source=str(workdir),
      methods=methods,
      left_out=left_out,
      num_costly_images=len(planner.few()) if also else 0,
      num_compilations=len(plan),
      identity={artefact.PICTURES: self._test.digest()},
      questions=questions,
      ranked_by=telling.ranked_by,
      on_validation=data.was_watched(
        self._test, self._config.data, self._config.data
      ),
    )


def _evaluated(
  planner: plans.Planner,
  ledger: Ledger,
  folder: files.AnyPath,
  gallery: list[Example],
  sanity: dict[str, Any],
  **about: Any,
) -> Evaluated:
  """Returns the results, with fields of `About` as `about`."""
  config, dataset, pairs = planner.config, planner.dataset, planner.pairs
  with speaking.doing("computing intervals of 95%"):
    found, by_class = summary.results(
      ledger, pairs, config.eval, dataset.class_names
    )
  results = summary.flat(found)
  if config.data.on_error == "skip":
    num_skipped = len(dataset.source) - results["val/num_examples"]
    results["data/skipped_eval"] = num_skipped
    results["data/dropped_eval"] = dataset.num_dropped
  return Evaluated(
    folder=folder,
    about=artefact.make_about(
      saved_config.to_dict(config),
      results=results,
      multi_label=dataset.multi_label,
      num_pairs=int((pairs.target >= 0).sum()),
      method_settings=attribution.settings_of(about["methods"]),
      **about,
    ),
    results=results,
    per_class={
      name: {key.name: value for key, value in numbers.items()}
      for name, numbers in by_class.items()
    },
    curves=summary.curves(ledger, found, config.eval, **sanity),
    rows=Rows(
      pairs.index,
      pairs.target,
      np.array(dataset.names or [""] * len(dataset.source))[pairs.index],
      summary.counting(ledger, config.eval),
    ),
    examples=gallery,
    class_names=list(dataset.class_names),
  )


def check_fits(
  loaded: LoadedModel, dataset: Dataset, config: ConfigDict
) -> None:
  """Checks that a model and a data set agree in their classes."""
  name = f"--config.data.name={config.data.name!r}"
  todo = "Evaluate it on the data it was trained on."
  if loaded.class_names and (
    differences := class_differences(loaded.class_names, dataset.class_names)
  ):
    raise ValueError(
      f"{loaded.source} must know the classes of {name} in their order; it "
      f"knows others:\n{differences}\n{todo}"
    )
  size = config.data.image_size
  found = arrays.check_fits(loaded.model, size, size)
  wanted = len(dataset.class_names)
  if found != wanted:
    raise ValueError(
      f"{loaded.source} must have one output for each class of {name}, "
      f"{wanted}; it has {found}. {todo}"
    )


def _outputs_note(loaded: LoadedModel, dataset: Dataset) -> str:
  """Says how a model is scored whose file says nothing, or something else."""
  kinds = {
    False: "one class a picture (softmax, top-1)",
    True: "several classes a picture (sigmoid, above 50% is yes)",
  }
  said = kinds.get(loaded.multi_label)
  return (
    f"note: {loaded.source} "
    + (f"is for {said}" if said else "does not say what its outputs are")
    + f"; scored as the data has it: {kinds[dataset.multi_label]}"
  )


def _open(out: Path, identity: dict[str, Any]) -> None:
  """Makes the folder; refuses one with anything but this evaluation."""
  if (out / saved_config.FILENAME).is_file():
    raise ValueError(
      f"--out must be no folder of a run, and {out} is one; nothing of it was "
      f"touched. Choose another: --out={out}_evaluated for example."
    )
  if artefact.is_evaluation(out):
    about = artefact.load(out).about
    # What older evaluations do not say.
    unsaid = ("method_settings", artefact.PICTURES)
    there = {key: identity[key] for key in unsaid} | {**about.identity}
    if about.protocol != "corrected":  # the field was added for "release"
      there = {"eval.border": "", **there}
    # Older evaluations also name fields that move no number.
    differing = sorted(k for k in identity if there.get(k) != identity[k])
    if differing:
      raise ValueError(
        f"--out={out} holds the evaluation of something else, and nothing of "
        f"it was touched. They differ in {', '.join(differing)}. Choose "
        "another folder."
      )
    return
  known = {PARTIAL, files.LOCK, *artefact.FILENAMES, *page.FILENAMES}
  try:
    out.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in out.iterdir())
  except OSError as error:
    raise ValueError(
      f"--out={out} must be a folder that can be written to: {error}. Choose "
      "another."
    ) from error
  strange = [n for n in others if n not in known and not n.endswith(".tmp")]
  if strange:
    raise ValueError(
      "--out must be a new folder, an empty one, or one with an earlier "
      f"evaluation; {str(out)!r} holds {listed(strange, 3)}. Choose another "
      "folder."
    )


def _measured(plan, planner, ledger, partial: Path) -> Iterator[str]:
  """Runs the passes; saves the ledger now and then."""
  count = sum(one.num_batches for one in plan)
  total = sum(len(one.rows) for one in plan)
  yield (
    f"{len(plan)} programs to compile, {count:,} batches of "
    f"{number_of(ledger.num_rows, 'pair')} of picture and class"
  )
  done = sum(ledger.done.values())
  if done:
    yield f"going on from {partial}: {done:,} of {total:,} are measured"
  clock = saved = time.monotonic()
  for _ in plans.run(plan, planner, ledger):
    now = time.monotonic()
    ledger.secs += now - clock
    clock = now
    if now - saved > _SAVE_EVERY_SECS:
      ledger.save(partial)
      saved = now
  ledger.save(partial)
  yield f"measured in {logs.format_secs(ledger.secs)}, of all sittings"
