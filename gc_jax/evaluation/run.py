"""What `python -m gc_jax.evaluate` does: a model, every explanation, a report.

Read top to bottom: plan, measure, look, report. Where it stopped before, it
goes on.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import (
  checkpoint,
  data,
  metrics,
  parallel,
  saved_config,
  trained,
)
from gc_jax import config as configs
from gc_jax.attribution import METHODS
from gc_jax.data.dataset import Dataset, unknown_name_message
from gc_jax.evaluation import attacks, programs, sanity, summary
from gc_jax.evaluation import examples as looks
from gc_jax.evaluation import ledger as ledgers
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation.ledger import Ledger
from gc_jax.metrics import Key
from gc_jax.report import evaluated as files
from gc_jax.report import evaluation_page, gallery, progress
from gc_jax.report.evaluated import About, Curves, Evaluated, Example
from gc_jax.report.files import AnyPath
from gc_jax.trained import LoadedModel

PARTIAL = "partial.npz"
_SAVE_EVERY_SECS = 15.0
_NUM_EXAMPLES = 8
# Fields of a configuration that move no number of an evaluation. Where archives
# lie does not either; a folder's path says which data set it is.
_NO_PART = ("data.dir", "data.num_workers", "eval.batch_size")


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
    gc_jax.checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  mesh = parallel.make_mesh()
  check(config, methods)
  loaded = trained.load_model(source, arch)
  dataset = data.load(config.data, config.data.eval_split)
  check_fits(loaded, dataset, config)
  identity = _identity(config, loaded, methods)
  _open(out, identity)
  if files.is_evaluation(out):
    yield f"{out} holds this evaluation, finished; nothing to do."
    return

  with jax.set_mesh(mesh):
    model = parallel.on_all_devices(loaded.model, mesh)
    planner = plans.Planner(model, dataset, config, mesh)
    plan = _plan(planner, config, methods)
    num_rows = len(planner.pairs.index)
    ledger = ledgers.load(out / PARTIAL, num_rows, identity)
    yield from _described(plan, ledger, out)
    yield from _measured(plan, planner, mesh, ledger, out)
    yield "looking at pictures, and at weights randomised layer by layer"
    started = time.monotonic()
    panel = sanity.check(model, planner, methods, config.eval.sanity_rows, mesh)
    examples = _examples(model, planner, methods, mesh, panel.strips)
    ledger.secs += time.monotonic() - started

  found, by_class = summary.results(
    ledger, planner.pairs, config, dataset.class_names
  )
  results = summary.flat(found)
  done = Evaluated(
    folder=out,
    about=_about(
      config,
      loaded,
      dataset,
      methods,
      planner,
      plan,
      ledger,
      results,
      identity,
    ),
    results=results,
    per_class={
      name: {key.name: value for key, value in numbers.items()}
      for name, numbers in by_class.items()
    },
    curves=_curves(ledger, found, dataset, config, panel),
    examples=examples,
    class_names=list(dataset.class_names),
  )
  written = evaluation_page.write_evaluation(done)
  # Last: with it the evaluation is finished.
  written += files.save(done)
  (out / PARTIAL).unlink(missing_ok=True)
  for path in written:
    yield f"wrote {path}"


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
  configs.validate_evaluation(config)


def check_fits(
  loaded: LoadedModel, dataset: Dataset, config: ConfigDict
) -> None:
  """Checks that a model can be evaluated on a data set.

  Raises:
    ValueError: their classes differ, in number or in kind.
  """
  size = config.data.image_size
  found = programs.num_classes(loaded.model, size)
  wanted = len(dataset.class_names)
  if found != wanted:
    raise ValueError(
      f"{loaded.source} must have one output for each class of --config.data."
      f"name={config.data.name!r}, {wanted}; it has {found}. Evaluate it on "
      "the data it was trained on."
    )
  theirs = loaded.class_names
  if theirs and tuple(theirs) != tuple(dataset.class_names):
    k = next(
      k for k, name in enumerate(theirs) if name != dataset.class_names[k]
    )
    raise ValueError(
      f"{loaded.source} must know the classes of --config.data.name="
      f"{config.data.name!r} in their order; its class {k} is {theirs[k]!r}, "
      f"and {dataset.class_names[k]!r} there. Evaluate it on the data it was "
      "trained on."
    )


def _open(out: Path, identity: dict[str, Any]) -> None:
  """Makes the folder; refuses one with anything but this evaluation.

  Raises:
    ValueError: `out` cannot be written to, or holds something else.
  """
  if files.is_evaluation(out):
    there = files.load(out).about.identity
    if there != identity:
      keys = sorted(identity.keys() | there.keys())
      differing = [k for k in keys if there.get(k) != identity.get(k)]
      raise ValueError(
        f"--out={out} holds the evaluation of something else, and nothing of "
        f"it was touched. They differ in {', '.join(differing)}. Choose "
        "another folder."
      )
    return
  known = {PARTIAL, *files.FILENAMES, *evaluation_page.FILENAMES}
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
  whole = saved_config.to_dict(config)
  flat = saved_config.flatten({"data": whole["data"], "eval": whole["eval"]})
  if config.data.name != "folder":
    del flat["data.path"]
  return {
    "model": loaded.source,
    "weights": checkpoint.digest(nnx.state(loaded.model)),
    "methods": list(methods),
    **{name: v for name, v in flat.items() if name not in _NO_PART},
  }


def _plan(
  planner: plans.Planner, config: ConfigDict, methods: tuple[str, ...]
) -> list[plans.Pass]:
  costly = _costly(methods)
  cheap = tuple(name for name in methods if name not in costly)
  return [
    *planner.standard(cheap),
    *planner.costly(costly),
    planner.faithfulness(methods),
    *planner.attacks(tuple(config.eval.epsilons)),
  ]


def _costly(methods: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(name for name in methods if METHODS[name].is_costly)


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


def _examples(model, planner, methods, mesh, strips) -> list[Example]:
  """Returns pictures spread over the split, with the maps of all methods.

  Args:
    model: in evaluation mode.
    planner: of the split.
    methods: keys of `METHODS`.
    mesh: a batch is divided along it.
    strips: row -> its maps of models randomised.
  """
  rows = sanity.spread(planner, _NUM_EXAMPLES)
  found = looks.explained(
    model, planner.pairs, rows, planner.with_objects(), methods, mesh
  )
  return [
    Example(
      index=int(planner.pairs.index[row]),
      image=one.batch["image"],
      object_mask=one.batch["object_mask"],
      target=int(planner.pairs.target[row]),
      predicted=one.predicted,
      maps=one.cams,
      randomized=strips.get(row, {}),
    )
    for row, one in zip(rows, found, strict=True)
  ]


def _curves(ledger, found, dataset, config, panel: sanity.Panel) -> Curves:
  metric = metrics.accuracy(dataset.multi_label)
  clean = {"0": found[Key(metric)].value}
  robustness: dict[str, dict[str, float]] = {
    "fgsm": clean,
    attacks.WITHIN: dict(clean),
  }
  for key, estimate in found.items():
    if key.attack and key.metric == metric:
      curve = robustness.setdefault(key.attack, {})
      curve[f"{key.epsilon:g}"] = estimate.value
  steps = config.eval.faithfulness_steps
  curves = {"insertion": {}, "deletion": {}}
  for key, (total, weight) in ledger.totals.items():
    if key.metric in curves:
      curves[key.metric][key.method] = (total / max(weight, 1)).tolist()
  return Curves(
    robustness=robustness,
    fractions=[i / steps for i in range(steps + 1)],
    stages=panel.stages,
    randomization=panel.correlations,
    **curves,
  )


def _about(
  config, loaded, dataset, methods, planner, plan, ledger, results, identity
) -> About:
  settings = saved_config.to_dict(config)["eval"]
  settings["image_size"] = config.data.image_size
  for name in ("methods", "protocol", "batch_size", "every_epochs"):
    del settings[name]
  costly = _costly(methods)
  return About(
    source=loaded.source,
    architecture=loaded.name,
    consistency=loaded.consistency,
    data_name=config.data.name,
    split=config.data.eval_split,
    multi_label=dataset.multi_label,
    protocol=config.eval.protocol,
    methods=methods,
    settings=settings,
    config=saved_config.to_dict(config),
    num_images=results["val/num_examples"],
    costly_methods=costly,
    num_costly_images=len(planner.few()),
    num_compilations=len(plan),
    secs=ledger.secs,
    identity=identity,
  )


class Evaluation:
  """The evaluations of a training run: a quick one meanwhile, a full one after.

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
    plan = [planner.predictions()]
    for _ in plans.run(plan, planner.pairs, self._mesh, ledger):
      pass
    return summary.flat(summary.accuracies(ledger))

  def full(
    self,
    model: nnx.Module,
    workdir: AnyPath,
    after_batch: Callable[[], None] = lambda: None,
  ) -> dict[str, float | int]:
    """Returns every metric on the evaluation split; writes the gallery.

    Args:
      model: in evaluation mode, on every device of the mesh.
      workdir: where the gallery goes.
      after_batch: called after every batch, on every process; it may raise.
    """
    config, dataset = self._config, self._test
    planner = plans.Planner(model, dataset, config, self._mesh)
    ledger = Ledger(len(planner.pairs.index))
    methods = tuple(config.eval.methods)
    plan = planner.standard(methods)
    for _ in plans.run(plan, planner.pairs, self._mesh, ledger):
      after_batch()
    found = summary.flat(
      summary.results(ledger, planner.pairs, config, dataset.class_names)[0]
    )
    if config.data.on_error == "skip":
      num_skipped = len(dataset.source) - found["val/num_examples"]
      found["data/skipped_eval"] = num_skipped
      found["data/dropped_eval"] = dataset.num_dropped
    examples = looks.gallery(model, planner, ledger, methods[0], self._mesh)
    if parallel.is_main():
      gallery.save_gallery(
        workdir / gallery.FILENAME, examples, dataset.class_names
      )
    return found
