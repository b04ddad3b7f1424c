"""An evaluation, of a finished training run or of any model: its story.

Read top to bottom: plan, measure, look, report. The end of a training run asks
few questions (`Evaluation`), `python -m gc_jax.evaluate` all of them
(`evaluate`), and where that stopped before, it goes on. Both leave the same
files, see `report.artefact`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import data
from gc_jax.attribution import METHODS
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation import examples, programs, sanity, summary
from gc_jax.evaluation import ledger as ledgers
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation.config import validate_evaluation
from gc_jax.evaluation.ledger import Ledger
from gc_jax.evaluation.sanity import Panel
from gc_jax.inference import trained
from gc_jax.inference.trained import LoadedModel
from gc_jax.method import metrics
from gc_jax.method.metrics import Key
from gc_jax.report import artefact, page, progress
from gc_jax.report.artefact import Curves, Evaluated, Example
from gc_jax.runtime import checkpoint, files, parallel
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.messages import class_differences, unknown_name_message

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
    config: resolved; of it `data` and `eval` count.
    source: workdir of a run, or PyTorch checkpoint.
    arch: of a checkpoint that gc_jax did not export.
    methods: keys of `METHODS`.
    out: folder to write to. An unfinished evaluation in it goes on; a finished
      one of the same is kept as it is.

  Raises:
    ValueError: something of it cannot be; before anything is compiled.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  mesh = parallel.make_mesh()
  check(config, methods)
  loaded = trained.load_model(source, arch)
  dataset = data.load(config.data, config.data.eval_split)
  check_fits(loaded, dataset, config)
  identity = _identity(config, loaded, methods)
  _open(out, identity)
  if artefact.is_evaluation(out):
    yield f"{out} holds this evaluation, finished; nothing to do."
    return

  if loaded.multi_label != dataset.multi_label:
    yield _outputs_note(loaded, dataset)

  with files.held(out, "--out"), jax.set_mesh(mesh):
    model = parallel.on_all_devices(loaded.model, mesh)
    planner = plans.Planner(model, dataset, config, mesh)
    costly = tuple(name for name in methods if METHODS[name].is_costly)
    plan = planner.passes(artefact.QUESTIONS, methods, costly)
    num_rows = len(planner.pairs.index)
    ledger = ledgers.load(out / PARTIAL, num_rows, identity)
    yield from _described(plan, ledger, out)
    yield from _measured(plan, planner, mesh, ledger, out)
    yield "looking at pictures, and at weights randomised layer by layer"
    started = time.monotonic()
    num_rows = config.eval.sanity_rows
    panel = sanity.check(model, planner, methods, num_rows, mesh)
    gallery = examples.gallery(
      model,
      planner,
      ledger,
      {"fixed": examples.spread(planner, _NUM_EXAMPLES)},
      methods,
      mesh,
      strips=panel.strips,
    )
    ledger.secs += time.monotonic() - started

  done = _evaluated(
    planner,
    ledger,
    config,
    dataset,
    out,
    loaded.source,
    panel,
    gallery=gallery,
    about={
      "architecture": loaded.name,
      "consistency": loaded.consistency,
      "methods": methods,
      "costly_methods": costly,
      "num_costly_images": len(planner.few()),
      "num_compilations": len(plan),
      "secs": ledger.secs,
      "identity": identity,
      "trained": _trained_with(source, loaded),
      "questions": artefact.QUESTIONS,
    },
  )
  written = page.write_evaluation(done)
  # Last: with it the evaluation is finished.
  written += artefact.save(done)
  (out / PARTIAL).unlink(missing_ok=True)
  for path in written:
    yield f"wrote {path}"


class Evaluation:
  """The evaluations of a training run: a quick one meanwhile, one at its end.

  Composites and random points are the same for every run and state, so that
  two results differ by their models alone.

  Args:
    config: resolved.
    mesh: the batch is divided along it.
  """

  def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
    self._config = config
    self._mesh = mesh
    self._val = data.load(config.data, config.data.val_split)
    self._test = data.load(config.data, config.data.eval_split)

  def quick(self, model: nnx.Module) -> dict[str, float]:
    """Returns classification on the validation split.

    Args:
      model: in evaluation mode, on every device of the mesh.
    """
    planner = plans.Planner(
      model, self._val, self._config, self._mesh, explains=False
    )
    ledger = Ledger(len(planner.pairs.index))
    plan = planner.passes(("classification",))
    for _ in plans.run(plan, planner.pairs, self._mesh, ledger):
      pass
    return summary.flat(summary.accuracies(ledger))

  def full(
    self,
    model: nnx.Module,
    workdir: files.AnyPath,
    after_batch: Callable[[], None] = lambda: None,
  ) -> Evaluated:
    """Returns classification and localisation on the evaluation split.

    Args:
      model: in evaluation mode, on every device of the mesh.
      workdir: of the run.
      after_batch: called after every batch, on every process; it may raise.
    """
    config, dataset = self._config, self._test
    planner = plans.Planner(model, dataset, config, self._mesh)
    ledger = Ledger(len(planner.pairs.index))
    methods = tuple(config.eval.methods)
    plan = planner.passes(artefact.OF_RUNS, methods)
    for _ in plans.run(plan, planner.pairs, self._mesh, ledger):
      after_batch()
    gallery = examples.gallery(
      model,
      planner,
      ledger,
      examples.telling(planner, ledger, methods[0]),
      methods[:1],
      self._mesh,
      with_composites=True,
    )
    return _evaluated(
      planner,
      ledger,
      config,
      dataset,
      workdir,
      str(workdir),
      gallery=gallery,
      about={"methods": methods, "num_compilations": len(plan)},
    )


def _evaluated(
  planner: plans.Planner,
  ledger: Ledger,
  config: ConfigDict,
  dataset: Dataset,
  folder: files.AnyPath,
  source: str,
  panel: Panel | None = None,
  *,
  gallery: list[Example],
  about: dict[str, Any],
) -> Evaluated:
  """Returns what a ledger and some looks add up to."""
  found, by_class = summary.results(
    ledger, planner.pairs, config, dataset.class_names
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
      source,
      results,
      multi_label=dataset.multi_label,
      **about,
    ),
    results=results,
    per_class={
      name: {key.name: value for key, value in numbers.items()}
      for name, numbers in by_class.items()
    },
    curves=_curves(ledger, found, config, panel or Panel()),
    examples=gallery,
    class_names=list(dataset.class_names),
  )


def check(config: ConfigDict, methods: tuple[str, ...]) -> None:
  """Checks what can be known before anything is read.

  Raises:
    ValueError: names what must hold, what came, what to do.
  """
  for method in methods:
    if method not in METHODS:
      raise ValueError(unknown_name_message("--methods", method, METHODS))
  if not methods or len(set(methods)) < len(methods):
    raise ValueError(
      "--methods must name explanation methods, each once; it is "
      f"{','.join(methods)!r}. Known: {', '.join(METHODS)}."
    )
  validate_evaluation(config)


def check_fits(
  loaded: LoadedModel, dataset: Dataset, config: ConfigDict
) -> None:
  """Checks that a model can be evaluated on a data set.

  Raises:
    ValueError: their classes differ, in names, order or number.
  """
  if loaded.class_names and (
    differences := class_differences(loaded.class_names, dataset.class_names)
  ):
    raise ValueError(
      f"{loaded.source} must know the classes of --config.data.name="
      f"{config.data.name!r} in their order; it knows others:\n{differences}\n"
      "Evaluate it on the data it was trained on."
    )
  size = config.data.image_size
  found = programs.num_classes(loaded.model, size)
  wanted = len(dataset.class_names)
  if found != wanted:
    raise ValueError(
      f"{loaded.source} must have one output for each class of --config.data."
      f"name={config.data.name!r}, {wanted}; it has {found}. Evaluate it on "
      "the data it was trained on."
    )


def _outputs_note(loaded: LoadedModel, dataset: Dataset) -> str:
  """Says how a model is scored that says nothing of its outputs, or other."""
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
  """Makes the folder; refuses one with anything but this evaluation.

  Raises:
    ValueError: `out` cannot be written to, or holds something else.
  """
  if artefact.is_evaluation(out):
    there = artefact.load(out).about.identity
    # Evaluations of before name fields as well that move no number.
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
      f"evaluation; {str(out)!r} holds {', '.join(strange[:3])}"
      f"{' and more' if len(strange) > 3 else ''}. Choose another folder."
    )


def _identity(
  config: ConfigDict, loaded: LoadedModel, methods: tuple[str, ...]
) -> dict[str, Any]:
  """Returns what makes an evaluation this one, JSON's values."""
  return {
    "model": loaded.source,
    "weights": checkpoint.digest(nnx.state(loaded.model)),
    "methods": list(methods),
    **saved_config.evaluation_settings(saved_config.to_dict(config)),
  }


def _trained_with(source: str | Path, loaded: LoadedModel) -> dict[str, Any]:
  """Returns the configuration of a run; none where it is of no run."""
  if loaded.consistency is None:  # which runs say, and files do not
    return {}
  return saved_config.read(files.as_path(source))


def _described(plan, ledger, out) -> Iterator[str]:
  count = sum(one.num_batches for one in plan)
  total = sum(len(one.rows) for one in plan)
  yield (
    f"{len(plan)} programs to compile, {count:,} batches of "
    f"{ledger.num_rows:,} pairs of picture and class"
  )
  done = sum(ledger.done.values())
  if done:
    yield f"going on from {out / PARTIAL}: {done:,} of {total:,} are measured"


def _measured(plan, planner, mesh, ledger, out) -> Iterator[str]:
  """Runs the passes, with progress; saves the ledger now and then."""
  total = sum(len(one.rows) for one in plan)
  bar = progress.Progress(total, sum(ledger.done.values()), unit="row")
  clock = saved = time.monotonic()
  current = None
  try:
    for one in plans.run(plan, planner.pairs, mesh, ledger):
      now = time.monotonic()
      ledger.secs += now - clock
      clock = now
      if one is not current:
        bar.message(f"measuring {one.name}: {len(one.rows):,} pairs")
        current = one
      bar.update(sum(ledger.done.values()))
      if now - saved > _SAVE_EVERY_SECS:
        ledger.save(out / PARTIAL)
        saved = now
    ledger.save(out / PARTIAL)
  finally:
    bar.close()
  yield f"measured in {progress.format_secs(ledger.secs)}, of all sittings"


def _curves(ledger, found, config: ConfigDict, panel: Panel) -> Curves:
  robustness: dict[str, dict[str, float]] = {}
  metric = metrics.accuracy(Key("f1_overall") in found)
  for key, estimate in found.items():
    if key.attack and key.metric == metric:
      curve = robustness.setdefault(key.attack, {})
      curve[f"{key.epsilon:g}"] = estimate.value
  for attack, curve in robustness.items():
    if not metrics.ATTACKS[
      attack
    ].on_few:  # those have a clean row of their own
      robustness[attack] = {"0": found[Key(metric)].value, **curve}
  curves = {"insertion": {}, "deletion": {}}
  for key, (total, weight) in ledger.totals.items():
    if key.metric in curves:
      curves[key.metric][key.method] = (total / max(weight, 1)).tolist()
  steps = config.eval.faithfulness_steps if curves["insertion"] else 0
  return Curves(
    robustness=robustness,
    fractions=[i / steps for i in range(steps + 1)] if steps else [],
    stages=panel.stages,
    randomization=panel.correlations,
    **curves,
  )
