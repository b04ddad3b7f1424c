"""The headline numbers of a run, each with what it means in a sentence."""

import dataclasses
from typing import Any

from gc_jax.report import describe, progress
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
  """

  title: str
  short: str
  value: str
  meaning: str
  reference: str
  change: str = ""
  is_better: bool | None = None


def headlines(run: Run, other: Run | None = None) -> list[Headline]:
  """Returns the headline numbers that the run has, changes against `other`."""
  count = number(run.results, "val/num_examples")
  images = f"the {count:,.0f} evaluation images" if count else "the images"
  uniform = _control(run, "uniform", "content_heatmap")
  center = _control(run, "center", "pointing_game")
  made = [
    _headline(
      run,
      other,
      "val/top1",
      "Accuracy",
      "Top-1",
      f"{{:.1f}}% of {images} were classified correctly.",
    ),
    _headline(
      run,
      other,
      "val/f1_overall",
      "F1 over all decisions",
      "F1-Overall",
      "Balance of finding the classes that are there and naming no others: "
      "{:.1f} of 100.",
    ),
    _headline(
      run,
      other,
      f"val/{METHOD}/content_heatmap",
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
      run,
      other,
      f"val/{METHOD}/negative_quadrants_heatmap",
      "On other images",
      "NQH",
      "Beside three images without the class, {:.1f}% of the explanation "
      "falls on those three.",
      "A uniform map scores 75 (three of four quadrants); 0 is ideal.",
      higher_is_better=False,
    ),
    _headline(
      run,
      other,
      f"val/{METHOD}/pointing_game",
      "Peak on the object",
      "PG",
      "In {:.1f}% of cases the highest point of the map hits the object, or "
      f"{_tolerance(run)}.",
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
  run: Run,
  other: Run | None,
  key: str,
  title: str,
  short: str,
  meaning: str,
  reference: str = "",
  higher_is_better: bool = True,
) -> Headline | None:
  value = number(run.results, key)
  if value is None:
    return None
  change, is_better = "", None
  before = None if other is None else number(other.results, key)
  if before is not None:
    delta = round(value, 1) - round(before, 1)  # as the reader would subtract
    delta = round(delta, 1) + 0.0
    change = f"{delta:+.1f} against {describe.short_name(other)}"
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
  )


def _control(run: Run, method: str, metric: str) -> float | None:
  return number(run.results, f"val/{method}/{metric}")


def _tolerance(run: Run) -> str:
  tolerance = run.setting("eval.tolerance_px")
  if tolerance is None or run.setting("eval.protocol") == "release":
    return "comes within 15 pixels of it"
  return f"comes within {tolerance:g} pixels of it (at 224×224)"
