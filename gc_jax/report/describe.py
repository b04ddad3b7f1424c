"""What a run is, in words: a sentence, a short name, what sets it apart."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gc_jax import models
from gc_jax.models import MODELS
from gc_jax.report.run import Run
from gc_jax.saved_config import flatten

_DATA = {
  "context_digits": "context digits",
  "tfds:caltech_birds2011": "Caltech-UCSD Birds 2011",
  "tfds:oxford_iiit_pet": "Oxford-IIIT Pet",
  "tfds:voc/2007": "PASCAL VOC 2007",
  "tfds:voc/2012": "PASCAL VOC 2012",
  "imagenet": "ImageNet",
  "coco": "MS-COCO",
}
# Settings that do not make another model: not part of what a run is.
_NO_PART = {
  "seed",
  "data.dir",
  "data.num_workers",
  "eval.batch_size",
  "log.every_steps",
  "report.baseline",
}
# Settings without effect where the consistency loss is off.
_CONSISTENCY = {
  "loss.reduction",
  "loss.stop_gradient",
  "loss.ramp_epochs",
  "loss.target_draw",
}


def architecture(run: Run) -> str:
  """Returns "ResNet18": the model's name without its pooling."""
  return architecture_title(str(run.setting("model.name") or "model"))


def architecture_title(name: str) -> str:
  """Returns "ResNet18" for a key of `MODELS`: its pooling is not said."""
  return MODELS[name].title if name in MODELS else models.without_gmp(name)


def data_name(run: Run) -> str:
  """Returns the data set as one writes it."""
  return data_title(str(run.setting("data.name") or "unknown data"))


def data_title(name: str) -> str:
  """Returns a key of `DATASETS`, or a stock set's name, as one writes it."""
  return _DATA.get(name, name.removeprefix("tfds:").replace("_", " "))


def is_consistent(run: Run) -> bool:
  """Returns whether the run trained with the consistency loss."""
  return (run.setting("loss.consistency_weight") or 0) > 0


def short_name(run: Run) -> str:
  """Returns the paper's name: Baseline, GC, GMP or GMP+GC."""
  return paper_name(str(run.setting("model.name")), is_consistent(run))


def paper_name(architecture: str, is_consistent: bool) -> str:
  """Returns Baseline, GC, GMP or GMP+GC for a key of `MODELS`."""
  parts = ["GMP"] * models.is_gmp(architecture) + ["GC"] * is_consistent
  return "+".join(parts) or "Baseline"


def pooling(architecture: str) -> str:
  """Returns " with global max pooling", or "" for a key of `MODELS`."""
  if models.is_gmp(architecture):
    return " with global max pooling"
  known = MODELS.get(architecture)
  return " with global average pooling" if known and known.torch_pooling else ""


def sentence(run: Run, others: Sequence[Run] = ()) -> str:
  """Returns the configuration in one English sentence.

  Args:
    run: the run described.
    others: runs that differ from it by seed only.
  """
  model = architecture(run) + pooling(str(run.setting("model.name")))
  parts = [model + ","]
  epochs = run.setting("num_epochs")
  if epochs is not None:
    plural = "epoch" if epochs == 1 else "epochs"
    parts.append(f"trained for {epochs:g} {plural}")
  else:
    parts.append("trained")
  parts.append(f"on {data_name(run)}{_data_details(run)}")
  if is_consistent(run):
    parts.append("with the Grad-CAM consistency loss,")
    parts.append(f"λ = {run.setting('loss.consistency_weight'):g},")
    if run.setting("compose.mode"):
      parts.append(f"{run.setting('compose.mode')} composites,")
  else:
    parts.append("without the consistency loss,")
  seeds = sorted({str(r.setting("seed")) for r in [run, *others]})
  if len(seeds) == 1:
    parts.append(f"seed {seeds[0]}.")
  else:
    parts.append(f"seeds {', '.join(seeds[:-1])} and {seeds[-1]}.")
  return " ".join(parts)


def check_comparable(runs: Sequence[Run]) -> None:
  """Checks that the runs were evaluated on the same data in the same way.

  Raises:
    ValueError: they were not; their numbers do not compare.
  """
  for path in (
    "data.name",
    "data.image_size",
    "data.background_frac",
    "data.eval_split",
    "eval.protocol",
  ):
    values = {str(run.workdir): run.setting(path) for run in runs}
    check_equal("Runs", f"--config.{path}", values)
  counts = {
    str(run.workdir): run.results["val/num_examples"]
    for run in runs
    if run.results.get("val/num_examples") is not None
  }
  check_equal("Runs", "the number of evaluated images", counts)


def check_equal(who: str, what: str, values: dict[str, Any]) -> None:
  """Checks that all values are one.

  Args:
    who: whose they are, in the plural.
    what: they are.
    values: by their owner's name.

  Raises:
    ValueError: they differ.
  """
  first, *others = values.values() or [None]
  if any(other != first for other in others):
    listed = ", ".join(f"{name}: {value!r}" for name, value in values.items())
    raise ValueError(
      f"{who} must share {what} for their numbers to compare. Got {listed}. "
      f"Compare {who.lower()} on the same data."
    )


def shared_seeds(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a remark on each group whose members share a seed.

  Args:
    groups: label to the seeds of its members, by folder.
  """
  remarks = []
  for label, seeds in groups.items():
    if len(set(seeds.values())) < len(seeds):
      listed = ", ".join(f"{name} ({seed})" for name, seed in seeds.items())
      remarks.append(
        f"Runs of {label} share a seed, so their ± says too little: {listed}."
      )
  return remarks


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Returns label to runs; the runs of a label differ by seed only.

  A label is the paper's name, with the architecture where runs differ in it
  and every other setting that the names do not tell apart.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    identity = {
      path: float(v) if type(v) is int else v  # 25 and 25.0 are one setting
      for path, v in _identity(run).items()
    }
    groups.setdefault(json.dumps(identity), []).append(run)
  firsts = [group[0] for group in groups.values()]
  return dict(zip(_labels(firsts), groups.values(), strict=True))


def _labels(runs: Sequence[Run]) -> list[str]:
  """Returns short names, and what else differs where they are the same."""
  one_model = len({architecture(run) for run in runs}) == 1
  names = [
    short_name(run) if one_model else f"{architecture(run)} {short_name(run)}"
    for run in runs
  ]
  identities = [_identity(run) for run in runs]
  labels = []
  for name, identity in zip(names, identities, strict=True):
    namesakes = [
      other
      for other_name, other in zip(names, identities, strict=True)
      if other_name == name
    ]
    differing = [
      path
      for path in sorted(identity)
      if any(other.get(path) != identity[path] for other in namesakes)
    ]
    details = [
      f"{_setting(path)}={_value(identity[path])}" for path in differing
    ]
    labels.append(", ".join([name, *details]))
  return labels


def _setting(path: str) -> str:
  return "λ" if path == "loss.consistency_weight" else path


def _value(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)


def _identity(run: Run) -> dict[str, Any]:
  """Returns the flat settings that make the model."""
  return model_settings(run.config)


def model_settings(config: dict[str, Any]) -> dict[str, Any]:
  """Returns the flat settings that make the model, its seed not among them."""
  flat = dict(sorted(flatten(config).items()))
  ignored = set(_NO_PART)
  if flat.get("data.name") in ("folder", "image_folder"):
    ignored.discard("data.dir")  # there, the folder is the data
  if (flat.get("loss.consistency_weight") or 0) <= 0:
    ignored |= _CONSISTENCY | {"loss.consistency_weight"}
    ignored |= {path for path in flat if path.startswith("compose.")}
  return {path: v for path, v in flat.items() if path not in ignored}


def _data_details(run: Run) -> str:
  details = []
  size = run.setting("data.image_size")
  if size:
    details.append(f"{size}×{size}")
  frac = run.setting("data.background_frac")
  if frac is not None and "digits" in str(run.setting("data.name")):
    details.append(
      f"background follows the class {100 * frac:.0f}% of the time"
    )
  return f" ({', '.join(details)})" if details else ""
