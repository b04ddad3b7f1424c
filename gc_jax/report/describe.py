"""What was evaluated, in words: names, sentences, what may be compared."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gc_jax import data, models
from gc_jax.method.metrics import Key
from gc_jax.models import MODELS
from gc_jax.report.artefact import About, Evaluated
from gc_jax.runtime import config as saved_config

# Settings that only some questions depend on: others compare without them.
_OF_QUESTIONS = {
  "eval.epsilons": ("attacks",),
  "eval.costly_rows": ("faithfulness", "attacks"),
  "eval.faithfulness_steps": ("faithfulness",),
  "eval.sanity_rows": ("sanity",),
}
_OF_RELEASE = ("eval.shorter_side_px", "eval.round_px")


def architecture_title(name: str) -> str:
  """Returns "ResNet18" for a key of `MODELS`: its pooling is not said."""
  return MODELS[name].title if name in MODELS else models.without_gmp(name)


def paper_names(about: About) -> list[str]:
  """Returns what the paper would call the model: two names if it is open."""
  gmp = ["GMP"] * models.is_gmp(about.architecture)
  losses = (False, True) if about.consistency is None else (about.consistency,)
  others = [name.capitalize() for name in _other_guidance(about)]
  return [
    "+".join([*gmp, *["GC"] * loss, *others]) or "Baseline" for loss in losses
  ]


def _other_guidance(about: About) -> dict[str, float]:
  """Returns name to weight of the guidance terms that are not the paper's."""
  weights = about.trained.get("loss", {})
  return {
    field.removesuffix("_weight"): weight
    for field, weight in weights.items()
    if field.endswith("_weight")
    and field not in ("classification_weight", "consistency_weight")
    and weight > 0
  }


def label(about: About) -> str:
  """Returns "ResNet18 GMP+GC"; where nobody says the loss, the source too."""
  title = architecture_title(about.architecture)
  if about.consistency is not None:
    return f"{title} {paper_names(about)[0]}"
  pooled = " GMP" if models.is_gmp(about.architecture) else ""
  name = pathlib.PurePath(about.source).name or about.source
  return f"{title}{pooled} ({name})"


def pooling(architecture: str) -> str:
  """Returns " with global max pooling", or "" for a key of `MODELS`."""
  if models.is_gmp(architecture):
    return " with global max pooling"
  known = MODELS.get(architecture)
  return " with global average pooling" if known and known.torch_pooling else ""


def training(about: About, others: Sequence[About] = ()) -> str:
  """Returns how the model was trained, in a sentence.

  Args:
    about: what was evaluated.
    others: repetitions of it, which differ by seed only.
  """
  model = architecture_title(about.architecture) + pooling(about.architecture)
  if not about.trained:
    loss = {
      None: "whether with the consistency loss, its file does not say",
      True: "trained with the Grad-CAM consistency loss",
      False: "trained without the consistency loss",
    }[about.consistency]
    return f"{model}, {loss}."
  setting = about.trained_with
  parts = [f"{model},"]
  epochs = setting("num_epochs")
  if epochs is not None:
    plural = "epoch" if epochs == 1 else "epochs"
    parts.append(f"trained for {epochs:g} {plural}")
  else:
    parts.append("trained")
  name = data.title(str(setting("data.name") or "unknown data"))
  parts.append(f"on {name}{_data_details(about)}")
  if about.consistency:
    parts.append("with the Grad-CAM consistency loss,")
    parts.append(f"λ = {setting('loss.consistency_weight'):g},")
    if setting("compose.mode"):
      parts.append(f"{setting('compose.mode')} composites,")
  else:
    parts.append("without the consistency loss,")
  for name, weight in _other_guidance(about).items():
    parts.append(f"with the {name} loss, weight {weight:g},")
  seeds = sorted({str(one.trained_with("seed")) for one in [about, *others]})
  if len(seeds) == 1:
    parts.append(f"seed {seeds[0]}.")
  else:
    parts.append(f"seeds {', '.join(seeds[:-1])} and {seeds[-1]}.")
  return " ".join(parts)


def sentence(about: About, others: Sequence[About] = ()) -> str:
  """Returns how the model was trained, and on what it was evaluated."""
  if not about.num_images:
    return training(about, others)
  return (
    f"{training(about, others)} Evaluated on {about.num_images:,} images of "
    f"{data.title(about.data_name)}, split {about.split}."
  )


def _data_details(about: About) -> str:
  details = []
  size = about.trained_with("data.image_size")
  if size:
    details.append(f"{size}×{size}")
  frac = about.trained_with("data.background_frac")
  entry = data.DATASETS.get(str(about.trained_with("data.name")))
  if frac is not None and entry and entry.background_frac:
    details.append(
      f"background follows the class {100 * frac:.0f}% of the time"
    )
  return f" ({', '.join(details)})" if details else ""


def tolerance(about: About) -> str:
  """Returns how near to the object a point still hits it."""
  tolerance_px = setting(about, "tolerance_px")
  pixels = 15.0 if tolerance_px is None else tolerance_px
  if about.protocol == "release":
    return f"comes within {pixels:g} pixels of it"
  return f"comes within {pixels:g} pixels of it (at 224×224)"


def protocol(about: About) -> str:
  """Returns how maps were held against annotations, in a sentence."""
  if about.protocol == "release":
    return (
      "Protocol “release”, as the authors' programs measure: pictures whole "
      "with their aspect kept, maps resized to the annotation's own pixels; a "
      f"point hits the object if it {tolerance(about)}; the pointing game is "
      "averaged over classes; objects marked difficult count in CH only."
    )
  if about.protocol == "paper":
    return (
      "Protocol “paper”, as its text says: pictures and annotations as "
      f"squares of one size; a point hits the object if it {tolerance(about)}; "
      "the pointing game counts hits over hits and misses."
    )
  return f"Protocol “{about.protocol}”."


def setting(about: About, name: str) -> Any:
  """Returns one of the settings; from the configuration where not listed."""
  for known in (name, f"eval.{name}"):
    if known in about.settings:
      return about.settings[known]
  return saved_config.field(about.config, f"eval.{name}")


def fewer_pairs(evaluated: Evaluated) -> str:
  """Returns "100 of the 1,200 pairs"; "" where costly things had them all."""
  about = evaluated.about
  num_pairs = evaluated.number(Key("num_pairs"))
  total = about.num_images if num_pairs is None else round(num_pairs)
  if not 0 < about.num_costly_images < total:
    return ""
  return f"{about.num_costly_images:,} of the {total:,} (image, class) pairs"


def check_comparable(evaluations: Sequence[Evaluated]) -> None:
  """Checks that the evaluations measured the same thing in the same way.

  Raises:
    ValueError: they did not; their numbers do not compare.
  """

  def check(what: str, value_of: Callable[[Evaluated], Any], among=evaluations):
    values = {str(one.folder): value_of(one) for one in among}
    first, *others = values.values() or [None]
    if any(other != first for other in others):
      shown = list(values.items())[:5]
      listed = ", ".join(f"{name}: {value!r}" for name, value in shown)
      more = f" and {len(values) - 5} more" if len(values) > 5 else ""
      raise ValueError(
        f"What is compared must share {what} for its numbers to compare. Got "
        f"{listed}{more}. Compare what was evaluated on the same data in the "
        "same way."
      )

  check("the data set, --config.data.name", lambda one: one.about.data_name)
  check("the protocol, --config.eval.protocol", lambda one: one.about.protocol)
  measured = {
    str(one.folder): saved_config.evaluation_settings(one.about.config)
    for one in evaluations
  }
  for name in dict.fromkeys(k for own in measured.values() for k in own):
    asked = _OF_QUESTIONS.get(name)
    check(
      f"--config.{name}",
      lambda one, name=name: measured[str(one.folder)].get(name),
      [
        one
        for one in evaluations
        if (asked is None or set(asked) & set(one.about.questions))
        and (name not in _OF_RELEASE or one.about.protocol == "release")
      ],
    )
  check(
    "the number of evaluated images",
    lambda one: one.about.num_images,
    [one for one in evaluations if one.about.num_images],
  )


def shared_seeds(groups: Mapping[str, Sequence[Evaluated]]) -> list[str]:
  """Returns a remark on each group whose members share a seed."""
  remarks = []
  for name, members in groups.items():
    seeds = {str(one.folder): one.about.trained_with("seed") for one in members}
    if len(set(seeds.values())) < len(seeds):
      listed = ", ".join(f"{folder} ({seed})" for folder, seed in seeds.items())
      remarks.append(
        f"Runs of {name} share a seed, so their ± says too little: {listed}."
      )
  return remarks


def group(evaluations: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
  """Returns label to evaluations; those of a label differ by seed only.

  A label is the architecture with the paper's name of the model, and what else
  the models differ in where those are the same.
  """
  groups: dict[str, list[Evaluated]] = {}
  for evaluated in evaluations:
    about = evaluated.about
    key: list[Any] = [about.architecture, about.consistency]
    if about.trained_with("seed") is None:
      key.append(str(evaluated.folder))  # nobody says that it is a repetition
    else:
      key.append(saved_config.model_settings(about.trained))
    groups.setdefault(json.dumps(key, default=str), []).append(evaluated)
  members = list(groups.values())
  return dict(zip(_labels(members), members, strict=True))


def _labels(groups: Sequence[Sequence[Evaluated]]) -> list[str]:
  """Returns a label each, with what differs where they clash."""
  abouts = [members[0].about for members in groups]
  labels = [label(about) for about in abouts]
  details = [
    _differing(abouts, labels),
    [pathlib.PurePath(about.source).name for about in abouts],
    [members[0].folder.name for members in groups],
    [str(members[0].folder) for members in groups],
  ]
  for names in details:
    clashing = {name for name in labels if labels.count(name) > 1}
    labels = [
      f"{text}, {name}"
      if name
      and text in clashing
      and not text.endswith((f"({name})", f", {name}"))
      else text
      for text, name in zip(labels, names, strict=True)
    ]
  return labels


def _differing(abouts: Sequence[About], labels: Sequence[str]) -> list[str]:
  """Returns "λ=25, seed=1": the settings that namesakes do not share."""
  settings = [
    saved_config.model_settings(about.trained) if about.trained else {}
    for about in abouts
  ]
  found = []
  for own_label, own in zip(labels, settings, strict=True):
    namesakes = [
      other
      for other_label, other in zip(labels, settings, strict=True)
      if other_label == own_label
    ]
    names = [
      name
      for name in sorted(own)
      if any(other.get(name) != own[name] for other in namesakes)
    ]
    found.append(", ".join(f"{_short(n)}={_value(own[n])}" for n in names))
  return found


def _short(name: str) -> str:
  return "λ" if name == "loss.consistency_weight" else name


def _value(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)
