"""The headline numbers of a run, each with what it means in a sentence."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gc_jax.report import describe, progress, tables
from gc_jax.report.run import Run
from gc_jax.report.tables import number

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


def headlines(run: Run, other: Run | None = None) -> list[Headline]:
  """Returns the headline numbers that the run has, changes against `other`."""
  return headlines_of(
    run.results,
    _tolerance(run),
    None if other is None else other.results,
    "" if other is None else describe.short_name(other),
  )


def headlines_of(
  results: Mapping[str, Any],
  tolerance: str,
  other: Mapping[str, Any] | None = None,
  other_name: str = "",
  method: str = METHOD,
) -> list[Headline]:
  """Returns the headline numbers among some results.

  Args:
    results: results.json, flat.
    tolerance: when a point beside the object hits it, ending the sentence
      "... hits the object, or".
    other: results to tell changes against.
    other_name: whose they are.
    method: whose maps' numbers to take.
  """
  count = number(results, "val/num_examples")
  images = f"the {count:,.0f} evaluation images" if count else "the images"
  uniform = number(results, "val/uniform/content_heatmap")
  center = number(results, "val/center/pointing_game")
  made = [
    _headline(
      results,
      other,
      other_name,
      "val/top1",
      "Accuracy",
      "Top-1",
      f"{{:.1f}}% of {images} were classified correctly.",
    ),
    _headline(
      results,
      other,
      other_name,
      "val/f1_overall",
      "F1 over all decisions",
      "F1-Overall",
      "Balance of finding the classes that are there and naming no others: "
      "{:.1f} of 100.",
    ),
    _headline(
      results,
      other,
      other_name,
      f"val/{method}/content_heatmap",
      "On the object",
      "CH",
      "On average {:.1f}% of what the explanation highlights is the object "
      "itself.",
      ""
      if uniform is None
      else f"A uniform map scores {uniform:.1f}, the share of the picture "
      "that objects cover.",
    ),
    _headline(
      results,
      other,
      other_name,
      f"val/{method}/negative_quadrants_heatmap",
      "On other images",
      "NQH",
      "Beside three images without the class, {:.1f}% of the explanation "
      "falls on those three.",
      "A uniform map scores 75 (three of four quadrants); 0 is ideal.",
      higher_is_better=False,
    ),
    _headline(
      results,
      other,
      other_name,
      f"val/{method}/pointing_game",
      "Peak on the object",
      "PG",
      "In {:.1f}% of cases the highest point of the map hits the object, or "
      f"{tolerance}.",
      ""
      if center is None
      else f"Always pointing at the centre scores {center:.1f}.",
    ),
  ]
  return [headline for headline in made if headline is not None]


def zero_map_notes(run: Run) -> list[str]:
  """Returns a sentence where some maps were empty."""
  frac = number(run.results, f"val/{METHOD}/zero_map_frac")
  if not frac:
    return []
  return [
    f"{100 * frac:.1f}% of the element-wise maps were zero everywhere: no "
    "feature spoke for the class."
  ]


def facts(run: Run) -> list[tuple[str, str]]:
  """Returns what the run took, as (name, value)."""
  found: list[tuple[str, str]] = []

  def add(title: str, key: str, write: Any) -> None:
    value = number(run.results, key)
    if value is not None:
      found.append((title, write(value)))

  add("updates", "step", "{:,.0f}".format)
  add("training took", "time/train_secs", progress.format_secs)
  add("evaluation took", "time/eval_secs", progress.format_secs)
  add("parameters", "model/num_params", "{:,.0f}".format)
  add("images evaluated", "val/num_examples", "{:,.0f}".format)
  add("image and class pairs explained", "val/num_pairs", "{:,.0f}".format)
  return found


def _headline(
  results: Mapping[str, Any],
  other: Mapping[str, Any] | None,
  other_name: str,
  key: str,
  title: str,
  short: str,
  meaning: str,
  reference: str = "",
  higher_is_better: bool = True,
) -> Headline | None:
  value = number(results, key)
  if value is None:
    return None
  ends = tables.number_interval(results, key)
  change, is_better = "", None
  before = None if other is None else number(other, key)
  if before is not None:
    delta = round(value, 1) - round(before, 1)  # as the reader would subtract
    delta = round(delta, 1) + 0.0
    change = f"{delta:+.1f} against {other_name}"
    change = change.replace("-", "−", 1) if delta < 0 else change
    if delta:
      is_better = (delta > 0) == higher_is_better
  return Headline(
    title=title,
    short=f"{short} {'↑' if higher_is_better else '↓'}",
    value=f"{value:.1f}",
    meaning=meaning.format(value),
    reference=reference,
    change=change,
    is_better=is_better,
    interval=""
    if ends is None
    else f"95% interval {ends[0]:.1f} to {ends[1]:.1f}",
  )


def _tolerance(run: Run) -> str:
  tolerance = run.setting("eval.tolerance_px")
  if tolerance is None or run.setting("eval.protocol") == "release":
    return "comes within 15 pixels of it"
  return f"comes within {tolerance:g} pixels of it (at 224×224)"
