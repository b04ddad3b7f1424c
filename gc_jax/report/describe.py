"""What was evaluated, in words: names, sentences, what may be compared."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gc_jax import data
from gc_jax.method.compose import MODES
from gc_jax.method.fields import FIELDS
from gc_jax.method.metrics import Key
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.models import MODELS, is_gmp, without_gmp
from gc_jax.report.artefact import About, Evaluated
from gc_jax.runtime import config as saved_config

# Settings that only some questions depend on: others compare without them.
_OF_QUESTIONS = {
  "eval.epsilons": ("attacks",),
  "eval.costly_rows": ("faithfulness", "attacks"),
  "eval.faithfulness_steps": ("faithfulness",),
  "eval.sanity_rows": ("sanity",),
}
_OF_WHOLE = ("eval.shorter_side_px", "eval.round_px")
# In these two evaluations may differ: each row then says its own.
_OF_PROTOCOL = ("eval.protocol", "eval.border")


# Names.


def architecture_title(name: str) -> str:
  """Returns "ResNet18" for a key of `MODELS`, whatever its pooling."""
  return MODELS[name].title if name in MODELS else without_gmp(name)


def paper_names(about: About) -> list[str]:
  """Returns what the paper would call the model: two names if it is open."""
  gmp = ["GMP"] * is_gmp(about.architecture)
  losses = (False, True) if about.consistency is None else (about.consistency,)
  others = [name.capitalize() for name in _other_guidance(about)]
  return [
    "+".join([*gmp, *["GC"] * loss, *others]) or "Baseline" for loss in losses
  ]


def _other_guidance(about: About) -> dict[str, float]:
  """Returns name to weight of the guidance terms that are not the paper's."""
  weights = {
    name: about.trained_with(f"loss.{fields.weight.name}") or 0.0
    for name, fields in FIELDS.items()
    if name != "consistency"
  }
  return {name: weight for name, weight in weights.items() if weight > 0}


def label(about: About) -> str:
  """Returns "ResNet18 GMP+GC"; with its source if its loss is unknown."""
  title = architecture_title(about.architecture)
  if about.consistency is not None:
    return f"{title} {paper_names(about)[0]}"
  pooled = " GMP" if is_gmp(about.architecture) else ""
  return f"{title}{pooled} ({_source(about)})"


def _source(about: About) -> str:
  return pathlib.PurePath(about.source).name or about.source


# Sentences.


def training(about: About, others: Sequence[About] = ()) -> str:
  """Returns how the model was trained, in a sentence.

  Args:
    about: what was evaluated.
    others: repetitions of it, which differ by seed only.
  """
  model = architecture_title(about.architecture) + _pooling(about.architecture)
  if not about.trained:
    loss = {
      None: "whether with the consistency loss, its file does not say",
      True: "trained with the Grad-CAM consistency loss",
      False: "trained without the consistency loss",
    }[about.consistency]
    return f"{model}, {loss}."
  setting = about.trained_with
  epochs = setting("num_epochs")
  plural = "epoch" if epochs == 1 else "epochs"
  trained = "trained" if epochs is None else f"trained for {epochs:g} {plural}"
  known = str(setting("data.name") or "unknown data")
  name = data.title(known, setting("data.path"))
  parts = [f"{model}, {trained} on {name}{_data_details(about)}"]
  if about.consistency:
    weight = setting("loss.consistency_weight")
    parts.append(f"with the Grad-CAM consistency loss, λ = {weight:g},")
    if mode := setting("compose.mode"):
      title = MODES[mode].title if mode in MODES else mode
      parts.append(f"{title} composites,")
  else:
    parts.append("without the consistency loss,")
  for name, weight in _other_guidance(about).items():
    title = FIELDS[name].title
    parts.append(f"with a loss on the {title}, weight {weight:g},")
  *first, last = sorted({str(a.trained_with("seed")) for a in [about, *others]})
  seeds = f"seeds {', '.join(first)} and {last}." if first else f"seed {last}."
  return " ".join([*parts, seeds])


def _pooling(architecture: str) -> str:
  if is_gmp(architecture):
    return " with global max pooling"
  known = MODELS.get(architecture)
  return " with global average pooling" if known and known.torch_pooling else ""


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


def sentence(about: About, others: Sequence[About] = ()) -> str:
  """Returns how the model was trained, and on what it was evaluated."""
  if not about.num_images:
    return training(about, others)
  return (
    f"{training(about, others)} Evaluated on {about.num_images:,} images of "
    f"{data_title(about)}, split {about.split}."
  )


def data_title(about: About) -> str:
  """Returns what it was evaluated on: "ImageNet", or "folder birds"."""
  path = saved_config.field(about.config, "data.path")
  return data.title(about.data_name, path)


def tolerance(about: About) -> str:
  """Returns how near to the object a point still hits it."""
  tolerance_px = setting(about, "tolerance_px")
  pixels = 15.0 if tolerance_px is None else tolerance_px
  at_size = "" if PROTOCOLS[about.protocol].whole else " (at 224×224)"
  return f"comes within {pixels:g} pixels of it{at_size}"


def protocols(abouts: Sequence[About]) -> str:
  """Returns how each of some evaluations held maps against annotations."""
  sentences = list(dict.fromkeys(map(protocol, abouts)))
  if len(sentences) > 1:
    sentences.append("Numbers of different protocols cannot be compared.")
  return " ".join(sentences)


def protocol(about: About) -> str:
  """Returns how maps were held against annotations, in a sentence."""
  meaning = PROTOCOLS[about.protocol].meaning.format(hits=tolerance(about))
  border = border_of(about)
  if border != PROTOCOLS[about.protocol].border:
    meaning += f" Boxes at the border differ from that: {border}."
  return f"Protocol “{about.protocol}”, {meaning}"


def border_of(about: About) -> str:
  """Returns which pixels its boxes cover, see `Protocol`."""
  return setting(about, "border") or PROTOCOLS[about.protocol].border


def by_protocols(abouts: Sequence[About]) -> list[str]:
  """Returns " by “release”" and so on; all "" if there is one protocol."""
  named = [
    f" by “{about.protocol}”"
    + f", border {border_of(about)}"
    * (border_of(about) != PROTOCOLS[about.protocol].border)
    for about in abouts
  ]
  return named if len(set(named)) > 1 else [""] * len(named)


def setting(about: About, name: str) -> Any:
  """Returns a setting of the evaluation; None where it is unknown."""
  field = f"eval.{name}"
  known = about.settings.get(field, about.settings.get(name))
  return saved_config.field(about.config, field) if known is None else known


def fewer_pairs(evaluated: Evaluated) -> str:
  """Returns "100 of the 1,200 pairs"; "" where costly things had them all."""
  about = evaluated.about
  located = round(evaluated.number(Key("num_pairs")) or 0)
  total = about.num_pairs or located or about.num_images
  if not 0 < about.num_costly_images < total:
    return ""
  words = f"{about.num_costly_images:,} of the {total:,} (image, class) pairs"
  if 0 < located < total:
    words += f" ({located:,} of all have an object)"
  return words


# What may be compared.


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
  check(
    "whether pictures are whole, --config.eval.protocol",
    lambda one: PROTOCOLS[one.about.protocol].whole,
  )
  measured = {
    str(one.folder): saved_config.evaluation_settings(one.about.config)
    for one in evaluations
  }
  names = dict.fromkeys(k for own in measured.values() for k in own)
  for name in [name for name in names if name not in _OF_PROTOCOL]:
    asked = _OF_QUESTIONS.get(name)
    check(
      f"--config.{name}",
      lambda one, name=name: measured[str(one.folder)].get(name),
      [
        one
        for one in evaluations
        if (asked is None or set(asked) & set(one.about.questions))
        and (name not in _OF_WHOLE or PROTOCOLS[one.about.protocol].whole)
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

  A label is the architecture with the paper's name of the model; models of the
  same name are told apart by what else they differ in.
  """
  groups: dict[str, list[Evaluated]] = {}
  for evaluated in evaluations:
    about = evaluated.about
    # Without a seed, nothing says that it is a repetition.
    is_known = about.trained_with("seed") is not None
    own = saved_config.model_settings(about.trained) if is_known else None
    key = (
      *(about.architecture, about.consistency, own or str(evaluated.folder)),
      *(about.protocol, border_of(about)),
    )
    groups.setdefault(json.dumps(key, default=str), []).append(evaluated)
  members = list(groups.values())
  return dict(zip(_labels(members), members, strict=True))


def _labels(groups: Sequence[Sequence[Evaluated]]) -> list[str]:
  """Returns a label each, with what differs where they clash."""
  abouts = [members[0].about for members in groups]
  labels = [
    label(about) + how
    for about, how in zip(abouts, by_protocols(abouts), strict=True)
  ]
  details = [
    _differing(abouts, labels),
    [_source(about) for about in abouts],
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
  labelled = list(zip(labels, settings, strict=True))
  found = []
  for own_label, own in labelled:
    namesakes = [other for text, other in labelled if text == own_label]
    words = []
    for name, value in sorted(own.items()):
      if any(other.get(name) != value for other in namesakes):
        short = "λ" if name == "loss.consistency_weight" else name
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(f"{short}={text}")
    found.append(", ".join(words))
  return found
