"""The model card: what weights were trained and measured on, and what not.

In a folder it starts with the metadata that Hugging Face's Hub reads.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from gc_jax import data
from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.models.pixels import RGB_MEAN, RGB_STD
from gc_jax.report import artefact, cautions, describe
from gc_jax.torch_io import packaged
from gc_jax.torch_io.files import Metadata

_FEW_CLASSES = 4
_MANY_MASKED = 1 / 3


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
  """A trained model as its card describes it."""

  name: str  # of the file or folder
  metadata: Metadata
  num_classes: int
  run: artefact.Evaluated
  grid: tuple[int, int]  # h, w of the features, which most maps lie on
  step: int | None = None  # completed updates of these weights
  num_train: int | None = None  # pictures of the training split, if known
  license: str = ""  # the weights', an identifier of Hugging Face's list

  def trained_with(self, path: str) -> Any:
    """Returns a field of the run's configuration; None where it lacks it."""
    return self.run.about.trained_with(path)

  @property
  def resize_px(self) -> int:
    """The shorter side of a picture before its centre is cropped."""
    return self.trained_with("data.eval_resize_px") or self.metadata.image_size

  @property
  def results(self) -> artefact.Evaluated | None:
    """The run's results, if they are of these weights."""
    at = self.run.results.get("step")
    return self.run if at is not None and at == self.step else None


def model_card(exported: Exported, how: str, block: Mapping[str, Any]) -> str:
  """Returns the card as Markdown.

  Args:
    exported: what it is of.
    how: the sections that say how to load it.
    block: the Hub's metadata, from `hub_metadata`; none if empty.
  """
  metadata = exported.metadata
  classes = "\n".join(f"{i}. {n}" for i, n in enumerate(metadata.class_names))
  outputs = {
    None: "",
    True: "Each has a sigmoid of its own: a picture may show several.",
    False: "One softmax over all: a picture shows one.",
  }[metadata.multi_label]
  front = ""
  if block:
    lines = yaml.safe_dump(dict(block), sort_keys=False, allow_unicode=True)
    front = f"---\n{lines}---\n\n"
  return (
    f"""\
{front}# {exported.name}

{describe.training(exported.run.about)}

Trained by gc_jax. Configuration (SHA-256): `{metadata.config_digest}`.

{how}
## Pictures

{_pictures(exported)}

## Results

{_results(exported)}

## Limits

{_bullets(_limits(exported))}

## Licence

{_bullets(_licences(exported))}

## Classes

{classes or f"{exported.num_classes}, without names."}

{outputs}
""".rstrip()
    + "\n"
  )


def hub_metadata(
  exported: Exported, library: str, *tags: str
) -> dict[str, Any]:
  """Returns the fields that Hugging Face's Hub reads at the top of a card."""
  block: dict[str, Any] = {}
  if exported.license:
    block["license"] = exported.license
  about = exported.run.about
  name = str(exported.trained_with("data.name") or "")
  named = [] if name in ("", "folder") else [name.removeprefix("tfds:")]
  own = ["gc_jax", "interpretability", "grad-cam"]
  block |= {
    "library_name": library,
    "pipeline_tag": "image-classification",
    "tags": ["image-classification", *tags, *own],
  }
  if named:
    block["datasets"] = named
  found = _measured(exported)
  if found:
    block["metrics"] = list(dict.fromkeys(key.metric for key in found))
    metrics = []
    for key in found:
      entry = {
        "type": key.metric,
        "name": METRICS[key.metric].title,
        "value": round(exported.run.number(key), 2),
      }
      if interval := exported.run.interval(key):
        entry["args"] = {"interval_95": [round(end, 2) for end in interval]}
      metrics.append(entry)
    dataset = {
      "type": about.data_name.removeprefix("tfds:"),
      "name": data.title(about.data_name),
      "split": about.split,
    }
    result = {
      "task": {"type": "image-classification"},
      "dataset": dataset,
      "metrics": metrics,
    }
    block["model-index"] = [{"name": exported.name, "results": [result]}]
  return block


def _measured(exported: Exported) -> list[Key]:
  """Returns what was measured of these weights, in percent."""
  if exported.results is None:
    return []
  method = _method(exported)
  keys = [
    Key(name, method if metric.is_of_maps else "")
    for name, metric in METRICS.items()
    if metric.unit == "percent"
  ]
  return [key for key in keys if exported.run.number(key) is not None]


def _method(exported: Exported) -> str:
  """Returns whose maps the card speaks of: the paper's, if measured."""
  methods = exported.run.about.methods
  preferred = "gradcam_elementwise"
  return preferred if preferred in methods else methods[0] if methods else ""


def _title(key: Key) -> str:
  metric = METRICS[key.metric]
  arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
  return metric.title + arrow


def _pictures(exported: Exported) -> str:
  size, resize = exported.metadata.image_size, exported.resize_px
  if exported.trained_with("data.eval_squash"):
    fitted = f"the whole picture scaled to {size}×{size}, its aspect lost"
  else:
    fitted = f"the shorter side scaled to {resize} pixels"
    fitted += f" and the centre of {size}×{size} kept"
  mean, std = (", ".join(map(str, each)) for each in (RGB_MEAN, RGB_STD))
  lines = [
    f"In evaluation a picture was turned upright as its EXIF says, made RGB of "
    f"8 bits (transparent pixels on white), and {fitted}, by bilinear "
    "interpolation with antialias (torchvision's and Pillow's). Divided by "
    f"255, it is normalised: mean {mean}; standard deviation {std}."
  ]
  about = exported.run.about
  if about.protocol in PROTOCOLS and PROTOCOLS[about.protocol].whole:
    side = about.settings.get("eval.shorter_side_px")
    lines.append(
      f"Maps were measured on whole pictures, their shorter side {side:g} "
      "pixels."
    )
  return " ".join(lines)


def _results(exported: Exported) -> str:
  run, found = exported.run, _measured(exported)
  if not found:
    at = run.results.get("step")
    if at is None:
      return "None yet: the run had not been evaluated."
    return (
      f"None of these weights (step {exported.step}): the run was evaluated at "
      f"step {at}."
    )
  rows = ["| | % | 95% interval | uniform map | |", "|---|--:|---|--:|---|"]
  for key in found:
    metric = METRICS[key.metric]
    interval = run.interval(key)
    ends = "{:.1f} to {:.1f}".format(*interval) if interval else ""
    blind = run.number(Key(key.metric, "uniform")) if key.method else None
    rows.append(
      f"| {_title(key)} | {run.number(key):.1f} | {ends} | "
      f"{'' if blind is None else f'{blind:.1f}'} | {metric.meaning} |"
    )
  of_maps = any(key.method for key in found)
  about = run.about
  lines = [
    f"{about.num_images:,} pictures of {data.title(about.data_name)}, split "
    f"{about.split}."
  ]
  if of_maps:
    lines.append(
      f"Maps by {title_of(_method(exported))}; *uniform map* is what a map "
      "gets that looks at nothing."
    )
  return "\n".join([" ".join(lines), "", *rows])


def _limits(exported: Exported) -> list[str]:
  metadata = exported.metadata
  title = data.title(str(exported.trained_with("data.name") or "unknown data"))
  count = "" if exported.num_train is None else f"{exported.num_train:,} "
  others = (
    "of anything else its outputs say nothing"
    if metadata.multi_label
    else "a picture of anything else gets one of them too"
  )
  said = [
    f"Trained on {count}pictures of {title}, split "
    f"{exported.trained_with('data.train_split')}. It knows "
    f"{exported.num_classes} classes; {others}."
  ]
  if start := exported.trained_with("init_from"):
    # A path would tell strangers of this machine's folders.
    name = start if packaged.is_packaged(start) else pathlib.Path(start).name
    said.append(f"Training started from the weights of `{name}`.")
  size = f"{metadata.image_size}×{metadata.image_size}"
  cells = "×".join(map(str, exported.grid))
  return [
    *said,
    f"Trained at {size} pixels, where a map has {cells} cells. Other sizes "
    "work, and were not measured.",
    "Results hold for pictures like those of that data. On others, expect "
    "less.",
    *_masked(exported),
    *cautions.cautions(exported.run),
    *_limits_of_maps(exported),
    "A map shows what a score rests on. It is no segmentation.",
  ]


def _masked(exported: Exported) -> list[str]:
  """Says how many composites taught nothing, where that matters."""
  shares = [
    share
    for record in exported.run.training
    if (share := record.get("train/masked_pairs_frac")) is not None
  ]
  if not shares or not exported.run.about.consistency:
    return []
  share, count = sum(shares) / len(shares), exported.num_classes
  if share <= _MANY_MASKED and count > _FEW_CLASSES:
    return []
  return [
    f"Of {count} classes, few distractors are of another class: the "
    f"consistency loss left out {100 * share:.0f} % of the pairs."
  ]


def _limits_of_maps(exported: Exported) -> list[str]:
  of_maps = [key for key in _measured(exported) if key.method]
  if not of_maps:
    return []
  said = [
    "Maps were measured for classes that the picture shows, by "
    f"{title_of(_method(exported))}. Of a class that it does not show, and of "
    "other methods, this card says nothing."
  ]
  return said + cautions.below_controls({"": [exported.run]})


def _licences(exported: Exported) -> list[str]:
  name = str(exported.trained_with("data.name") or "")
  said = []
  if name in data.DATASETS:
    said.append(f"Data: {data.DATASETS[name].license}")
  elif name:
    page = name.removeprefix("tfds:").split("/")[0]
    said.append(
      "Data: under the terms that tensorflow-datasets names: "
      f"https://www.tensorflow.org/datasets/catalog/{page}"
    )
  start = exported.trained_with("init_from") or ""
  if packaged.is_packaged(start):
    licence = packaged.find(start).licence
    said.append(f"Weights that training started from: {licence}.")
  said.append(
    f"Weights: {exported.license}."
    if exported.license
    else "Weights: whoever publishes them chooses, within the data's terms."
  )
  said.append(
    "Method: Pillai & Pirsiavash, *Explainable Models with Consistent "
    "Interpretations*, AAAI 2021. gc_jax holds none of their code."
  )
  return said


def _bullets(sentences: list[str]) -> str:
  return "\n".join(f"- {sentence}" for sentence in sentences)
