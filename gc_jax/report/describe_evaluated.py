"""What an evaluation is, in words: names, sentences, what may be compared."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from gc_jax.report import describe, tables
from gc_jax.report.evaluated import About, Evaluated

_SAME_DATA = ("image_size", "background_frac", "eval_split", "eval_resize_px")


def architecture(about: About) -> str:
  """Returns the model's name without its pooling: a key of `MODELS`."""
  return about.architecture.removesuffix("-gmp")


def paper_names(about: About) -> list[str]:
  """Returns what the paper would call the model: two names if it is open."""
  losses = (False, True) if about.consistency is None else (about.consistency,)
  return [describe.paper_name(about.architecture, loss) for loss in losses]


def label(about: About) -> str:
  """Returns "ResNet18 GMP+GC"; where nobody says the loss, the source too."""
  title = describe.architecture_title(about.architecture)
  if about.consistency is not None:
    return f"{title} {paper_names(about)[0]}"
  pooled = " GMP" if about.architecture.endswith("-gmp") else ""
  name = pathlib.PurePath(about.source).name or about.source
  return f"{title}{pooled} ({name})"


def sentence(about: About) -> str:
  """Returns what was evaluated on what."""
  model = describe.architecture_title(about.architecture)
  model += describe.pooling(about.architecture)
  loss = {
    None: "whether with the consistency loss, its file does not say",
    True: "trained with the Grad-CAM consistency loss",
    False: "trained without the consistency loss",
  }[about.consistency]
  data = describe.data_title(about.data_name)
  return (
    f"{model}, {loss}; evaluated on {about.num_images:,} images of {data}, "
    f"split {about.split}."
  )


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
  group = about.config.get("eval")
  return group.get(name) if isinstance(group, dict) else None


def fewer_pairs(evaluated: Evaluated) -> str:
  """Returns "100 of the 1,200 pairs"; "" where costly things had them all."""
  about = evaluated.about
  num_pairs = tables.number(evaluated.results, "val/num_pairs")
  total = about.num_images if num_pairs is None else round(num_pairs)
  if about.num_costly_images >= total:
    return ""
  return f"{about.num_costly_images:,} of the {total:,} (image, class) pairs"


def class_name(evaluated: Evaluated, label: int) -> str:
  """Returns the name of a class, or its number where it has none."""
  if 0 <= label < len(evaluated.class_names):
    return evaluated.class_names[label]
  return str(label)


def group(evaluations: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
  """Returns label to evaluations; those of a label differ by seed only."""
  groups: dict[str, list[Evaluated]] = {}
  for evaluated in evaluations:
    about = evaluated.about
    seed = about.config.get("seed")
    key: list[Any] = [about.architecture, about.consistency]
    if about.consistency is None or seed is None:
      key.append(str(evaluated.folder))  # nobody says that it is a repetition
    else:
      key.append(describe.model_settings(dict(about.config)))
    groups.setdefault(json.dumps(key, default=str), []).append(evaluated)
  members = list(groups.values())
  return dict(zip(_labels(members), members, strict=True))


def check_comparable(evaluations: Sequence[Evaluated]) -> None:
  """Checks that the evaluations measured the same thing in the same way.

  Raises:
    ValueError: they did not; their numbers do not compare.
  """

  def check(what: str, values: Iterable[Any]) -> None:
    names = [str(evaluated.folder) for evaluated in evaluations]
    describe.check_equal(
      "Evaluations", what, dict(zip(names, values, strict=True))
    )

  abouts = [evaluated.about for evaluated in evaluations]
  check("the data set", [about.data_name for about in abouts])
  check("the split", [about.split for about in abouts])
  check("the protocol", [about.protocol for about in abouts])
  for name in _SAME_DATA:
    check(f"--config.data.{name}", [_data(about).get(name) for about in abouts])
  for name in dict.fromkeys(n for about in abouts for n in about.settings):
    check(
      f"the setting {name}",
      [_plain(about.settings.get(name)) for about in abouts],
    )
  check("the number of images", [about.num_images for about in abouts])


def _data(about: About) -> dict[str, Any]:
  group = about.config.get("data")
  return group if isinstance(group, dict) else {}


def _plain(value: Any) -> Any:
  """Returns a value as its file gives it back: tuples are lists."""
  return json.loads(json.dumps(value, default=str))


def _labels(groups: Sequence[Sequence[Evaluated]]) -> list[str]:
  """Returns a label each, with the source or the folder where they clash."""
  abouts = [members[0].about for members in groups]
  labels = [label(about) for about in abouts]
  details = [
    [pathlib.PurePath(about.source).name for about in abouts],
    [members[0].folder.name for members in groups],
    [str(members[0].folder) for members in groups],
  ]
  for names in details:
    clashing = {name for name in labels if labels.count(name) > 1}
    labels = [
      f"{text}, {name}"
      if text in clashing and not text.endswith((f"({name})", f", {name}"))
      else text
      for text, name in zip(labels, names, strict=True)
    ]
  return labels
