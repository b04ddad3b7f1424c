"""What `python -m gc_jax.evaluate` does: a model, every explanation, a report.

Read top to bottom: plan, measure, look, report. Where it stopped before, it
goes on.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import (
  checkpoint,
  data,
  evaluation,
  measure,
  parallel,
  passes,
  sanity,
  saved_config,
  trained,
)
from gc_jax import config as configs
from gc_jax.attacks import ATTACKS
from gc_jax.attribution import COSTLY, METHODS
from gc_jax.data.dataset import (
  Dataset,
  class_differences,
  unknown_name_message,
)
from gc_jax.evaluators import ledger as ledgers
from gc_jax.evaluators import robustness
from gc_jax.report import evaluated as files
from gc_jax.report import evaluation_page, progress
from gc_jax.report.evaluated import About, Curves, Evaluated, Example
from gc_jax.report.files import LOCK, held
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
  if loaded.multi_label != dataset.multi_label:
    yield _outputs_note(loaded, dataset)

  with held(out, "--out"), jax.set_mesh(mesh):
    model = parallel.on_all_devices(loaded.model, mesh)
    planner = passes.Planner(model, dataset, config, mesh)
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

  results, per_class = evaluation.results(
    ledger, planner.pairs, config, dataset.class_names
  )
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
    per_class=per_class,
    curves=_curves(ledger, results, config, panel),
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
  found = measure.num_classes(loaded.model, size)
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
  known = {PARTIAL, LOCK, *files.FILENAMES, *evaluation_page.FILENAMES}
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
  planner: passes.Planner, config: ConfigDict, methods: tuple[str, ...]
) -> list[passes.Pass]:
  costly = tuple(name for name in methods if name in COSTLY)
  cheap = tuple(name for name in methods if name not in COSTLY)
  return [
    *planner.standard(cheap),
    *planner.costly(costly),
    planner.faithfulness(methods),
    *planner.robustness(tuple(config.eval.epsilons)),
  ]


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
    for one in passes.run(plan, planner.pairs, mesh, ledger):
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
  found = evaluation.explained(
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


def _curves(ledger, results, config, panel: sanity.Panel) -> Curves:
  metric = "top1" if "val/top1" in results else "f1_overall"
  clean = {"0": results[f"val/{metric}"]}
  curves_of: dict[str, dict[str, float]] = {
    "fgsm": clean,
    f"fgsm{robustness.WITHIN}": dict(clean),
  }
  for key, value in results.items():
    attack, _, name = key.removeprefix("val/").partition("/")
    kind, _, epsilon = attack.partition("_")
    if kind.partition("-")[0] in ATTACKS and name == metric:
      curves_of.setdefault(kind, {})[epsilon] = value
  steps = config.eval.faithfulness_steps
  curves = {"insertion": {}, "deletion": {}}
  for key, (total, weight) in ledger.totals.get("faithfulness", {}).items():
    method, what = key.split("/")
    curves[what][method] = (total / max(weight, 1)).tolist()
  return Curves(
    robustness=curves_of,
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
  costly = tuple(name for name in methods if name in COSTLY)
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
