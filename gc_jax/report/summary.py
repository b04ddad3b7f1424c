"""The headline numbers of an evaluation, each with what it means."""

import dataclasses
from typing import Any

from gc_jax.attribution import title_of
from gc_jax.method.metrics import Key
from gc_jax.report import describe, progress, tables
from gc_jax.report.artefact import Evaluated, number

METHOD = "gradcam_elementwise"  # what training makes consistent (paper, eq. 3)


@dataclasses.dataclass(frozen=True)
class Headline:
  """A number in percent with its meaning.

  Attributes:
    title: the metric's name in words.
    short: its name in the table.
    value: "86.2".
    meaning: one plain sentence.
    reference: what to hold it against, or "".
    change: "+1.2 against Baseline", or "".
    is_better: whether the change is one for the better; None where it is 0.
    interval: "95% interval 85.0 to 87.4", or "".
  """

  title: str
  short: str
  value: str
  meaning: str
  reference: str
  change: str = ""
  is_better: bool | None = None
  interval: str = ""


def method_of(evaluated: Evaluated) -> str:
  """Returns the method on the tiles: what training made consistent, if any."""
  methods = evaluated.about.methods
  if METHOD in methods:
    return METHOD
  return methods[0] if methods else ""


def headlines(
  evaluated: Evaluated, other: Evaluated | None = None, other_name: str = ""
) -> list[Headline]:
  """Returns the headline numbers there are.

  Args:
    evaluated: whose numbers.
    other: evaluation to tell changes against.
    other_name: of its model.
  """
  method = method_of(evaluated) or METHOD
  count = evaluated.number(Key("num_examples"))
  images = f"the {count:,.0f} evaluation images" if count else "the images"
  uniform = evaluated.number(Key("content_heatmap", "uniform"))
  center = evaluated.number(Key("pointing_game", "center"))
  said = [
    (
      Key("top1"),
      "Accuracy",
      f"{{:.1f}}% of {images} were classified correctly.",
      "",
    ),
    (
      Key("f1_overall"),
      "F1 over all decisions",
      "Balance of finding the classes that are there and naming no others: "
      "{:.1f} of 100.",
      "",
    ),
    (
      Key("content_heatmap", method),
      "On the object",
      "On average {:.1f}% of what the explanation highlights is the object "
      "itself.",
      ""
      if uniform is None
      else f"A uniform map scores {uniform:.1f}, the share of the picture "
      "that objects cover.",
    ),
    (
      Key("negative_quadrants_heatmap", method),
      "On other images",
      "Beside three images without the class, {:.1f}% of the explanation "
      "falls on those three.",
      "A uniform map scores 75 (three of four quadrants); 0 is ideal.",
    ),
    (
      Key("pointing_game", method),
      "Peak on the object",
      "In {:.1f}% of cases the highest point of the map hits the object, or "
      f"{describe.tolerance(evaluated.about)}.",
      ""
      if center is None
      else f"Always pointing at the centre scores {center:.1f}.",
    ),
  ]
  return [
    _headline(evaluated, other, other_name, *one)
    for one in said
    if evaluated.number(one[0]) is not None
  ]


def _headline(
  evaluated: Evaluated,
  other: Evaluated | None,
  other_name: str,
  key: Key,
  title: str,
  meaning: str,
  reference: str,
) -> Headline:
  value, column = evaluated.number(key), tables.column(key.metric)
  ends = evaluated.interval(key)
  change, is_better = "", None
  before = None if other is None else other.number(key)
  if before is not None:
    delta = round(value, 1) - round(before, 1)  # as the reader would subtract
    delta = round(delta, 1) + 0.0
    change = f"{delta:+.1f} against {other_name}"
    change = change.replace("-", "−", 1) if delta < 0 else change
    if delta:
      is_better = (delta > 0) == column.higher_is_better
  return Headline(
    title=title,
    short=column.heading,
    value=f"{value:.1f}",
    meaning=meaning.format(value),
    reference=reference,
    change=change,
    is_better=is_better,
    interval=""
    if ends is None
    else f"95% interval {ends[0]:.1f} to {ends[1]:.1f}",
  )


def zero_map_notes(evaluated: Evaluated) -> list[str]:
  """Returns a sentence for each method of which some maps were empty."""
  found = [
    (title_of(method), evaluated.number(Key("zero_map_frac", method)))
    for method in evaluated.about.methods
  ]
  return [
    f"{100 * frac:.1f}% of the maps of {title} were zero everywhere: no "
    "feature spoke for the class. They count as they are."
    for title, frac in found
    if frac
  ]


def facts(evaluated: Evaluated) -> list[tuple[str, str]]:
  """Returns what was evaluated and what it took, as (name, value)."""
  about, found = evaluated.about, []

  def add(title: str, value: Any, write: Any) -> None:
    if value:
      found.append((title, write(value)))

  add("model from", about.source, str)
  add("architecture", about.architecture, str)
  of = lambda name: number(evaluated.results, name)
  add("parameters", of("model/num_params"), "{:,.0f}".format)
  add("updates", of("step"), "{:,.0f}".format)
  add("training took", of("time/train_secs"), progress.format_secs)
  add("images", about.num_images, "{:,}".format)
  pairs = evaluated.number(Key("num_pairs"))
  add("(image, class) pairs", pairs, "{:,.0f}".format)
  add("methods", about.methods, lambda m: ", ".join(map(title_of, m)))
  add("programs compiled", about.num_compilations, "{:,}".format)
  secs = of("time/eval_secs") or about.secs
  add("evaluation took", secs, progress.format_secs)
  return found
