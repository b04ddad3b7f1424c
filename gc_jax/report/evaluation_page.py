"""What people look at of an evaluation: tables, figures, report.html."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gc_jax.report import (
  describe,
  describe_evaluated,
  evaluation_charts,
  evaluation_rows,
  evaluation_tables,
  files,
  latex,
  overlay,
  page,
  pictures,
  plots,
  progress,
  summary,
  table_formats,
  tables,
)
from gc_jax.report.evaluated import Evaluated, Example
from gc_jax.report.evaluation_rows import title_of
from gc_jax.saved_config import flatten

REPORT = "report.html"
_MEANINGS = {  # of the files that `write_evaluation` may write
  REPORT: "this page, which needs no other file",
  "tables.md": "the tables as Markdown",
  "tables.csv": "a line for every cell, four decimals, for other programs",
  "tables.tex": "the tables as LaTeX, for a paper",
  "figure_methods.png": "the images by every method, side by side",
  "curves.png": "all curves, below each other",
  "robustness.png": "accuracy against ε",
  "insertion.png": "the insertion curves",
  "deletion.png": "the deletion curves",
  "randomization.png": "rank correlation while weights are randomised",
  "sanity.png": "the maps of an image while weights are randomised",
}
FILENAMES = tuple(_MEANINGS)
_DATA_FILES = {
  "results.json": "every number, flat",
  "per_class.json": "the same by class",
  "curves.json": "the curves' points",
  "examples.npz": "the images and maps on this page, as arrays",
  "evaluation.json": "what was evaluated, and how",
}
_MAX_CARDS = 12
_MAX_CLASS_COLUMNS = 12


def write_evaluation(evaluated: Evaluated) -> list[pathlib.Path]:
  """Writes tables, figures and the page beside the evaluation's own files.

  A figure that there is nothing for is left out, and removed where an earlier
  evaluation left it.

  Returns:
    The paths written, the page first.
  """
  models = describe_evaluated.group([evaluated])
  made = evaluation_tables.make_tables(models)
  charts = evaluation_charts.charts(evaluated)
  contents = tables_files(made, describe_evaluated.protocol(evaluated.about))
  contents |= {f"{name}.png": chart.png for name, chart in charts.items()}
  if charts:
    contents["curves.png"] = plots.stack(list(charts.values()))
  for name, picture in (
    ("figure_methods.png", evaluation_charts.methods_figure(evaluated)),
    ("sanity.png", evaluation_charts.sanity_figure(evaluated)),
  ):
    if picture is not None:
      contents[name] = picture
  written = [name for name in FILENAMES if name == REPORT or name in contents]
  context = _context(evaluated, made, charts, contents.get("sanity.png"))
  context["listed_files"] = [
    *((name, _MEANINGS[name]) for name in written),
    *_DATA_FILES.items(),
  ]
  contents[REPORT] = page.render("evaluation.html", **context).encode()
  for name in FILENAMES:
    if name not in contents:
      (evaluated.folder / name).unlink(missing_ok=True)
      continue
    with files.replacing(evaluated.folder / name) as file:
      file.write(contents[name])
  return [evaluated.folder / name for name in written]


def tables_files(
  made: Sequence[tables.Table], preface: str
) -> dict[str, bytes]:
  """Returns tables.md, tables.csv and tables.tex.

  Args:
    made: the tables.
    preface: what holds for all of them.
  """
  markdown = f"{preface}\n"
  for table in made:
    markdown += f"\n## {table.title}\n\n{table_formats.to_markdown(table)}"
    markdown += "".join(f"\n{note}\n" for note in table_formats.notes(table))
  return {
    "tables.md": markdown.encode(),
    "tables.csv": table_formats.to_long_csv(made).encode(),
    "tables.tex": (latex.document(made) + f"\n% {preface}\n").encode(),
  }


def _context(
  evaluated: Evaluated,
  made: Sequence[tables.Table],
  charts: dict[str, Any],
  sanity_figure: bytes | None,
) -> dict[str, Any]:
  """Returns what templates/evaluation.html asks for."""
  about = evaluated.about
  method = _headline_method(evaluated)
  headlines = summary.headlines_of(
    evaluated.results,
    describe_evaluated.tolerance(about),
    method=method or summary.METHOD,
  )
  blocks = page.table_blocks(made)
  is_papers = [block["title"].startswith("Table ") for block in blocks]
  verdicts = evaluation_charts.sanity(evaluated)
  headings, rows = _by_class(evaluated, method)
  shown = evaluation_charts.sanity_example(evaluated)
  return {
    "name": evaluated.folder.resolve().name,
    "title": describe_evaluated.label(about),
    "data_name": describe.data_title(about.data_name),
    "sentence": describe_evaluated.sentence(about),
    "protocol": describe_evaluated.protocol(about),
    "headlines": headlines,
    "headline_method": title_of(method) if method else "",
    "paper_tables": [
      b for b, own in zip(blocks, is_papers, strict=True) if own
    ],
    "full_tables": [
      b for b, own in zip(blocks, is_papers, strict=True) if not own
    ],
    "charts": charts,
    "attacks": list(evaluated.curves.robustness),
    "sanity": verdicts,
    "stages": list(evaluated.curves.stages),
    "flagged": [v.title for v in verdicts if v.stays_high],
    "all_change": bool(verdicts)
    and all(v.verdict == "changes" for v in verdicts),
    "threshold": f"{evaluation_charts.STAYS_HIGH:g}",
    "sanity_figure": (
      ""
      if sanity_figure is None
      else overlay.compact_uri(overlay.read_png(sanity_figure))
    ),
    "sanity_index": None if shown is None else shown.index,
    "gallery": [_card(evaluated, e) for e in evaluated.examples[:_MAX_CARDS]],
    "color_bar": pictures.color_bar(),
    "class_headings": headings,
    "class_rows": rows,
    "class_method": title_of(method) if method else "",
    "measured_notes": _measured_notes(evaluated),
    "fewer_pairs": describe_evaluated.fewer_pairs(evaluated),
    "facts": _facts(evaluated),
    "settings": {
      name: _written(value) for name, value in about.settings.items()
    },
    "config": flatten(dict(about.config)),
    "folder": str(evaluated.folder),
  }


def _headline_method(evaluated: Evaluated) -> str:
  """Returns the method on the tiles: what training made consistent, if any."""
  methods = evaluated.about.methods
  if summary.METHOD in methods:
    return summary.METHOD
  return methods[0] if methods else ""


def _measured_notes(evaluated: Evaluated) -> list[str]:
  about = evaluated.about
  notes = [describe_evaluated.protocol(about)]
  costly, fewer = _costly(evaluated), describe_evaluated.fewer_pairs(evaluated)
  if costly and fewer:
    notes.append(
      f"Measured on {fewer}, as they take many passes each: "
      f"{', '.join(costly)}."
    )
  num_rows = describe_evaluated.setting(about, "sanity_rows")
  if evaluated.curves.randomization and num_rows:
    notes.append(
      f"Rank correlations of the sanity check are means over {num_rows:,} "
      f"{'pair' if num_rows == 1 else 'pairs'} at most."
    )
  for method in about.methods:
    key = f"val/{method}/zero_map_frac"
    if frac := tables.number(evaluated.results, key):
      notes.append(
        f"{100 * frac:.1f}% of the maps of {title_of(method)} were zero "
        "everywhere; they count as they are."
      )
  return notes


def _costly(evaluated: Evaluated) -> list[str]:
  """Returns what was measured, of all that is measured on fewer pairs."""
  curves = evaluated.curves
  measured = {
    "insertion": bool(curves.insertion),
    "deletion": bool(curves.deletion),
    "boxes": any("/max_box_acc_" in key for key in evaluated.results),
    "PGD": "pgd" in curves.robustness,
  }
  methods = [title_of(method) for method in evaluated.about.costly_methods]
  return methods + [what for what, is_there in measured.items() if is_there]


def _facts(evaluated: Evaluated) -> list[tuple[str, str]]:
  about = evaluated.about
  facts = [
    ("model from", about.source),
    ("architecture", about.architecture),
    ("images", f"{about.num_images:,}"),
  ]
  pairs = tables.number(evaluated.results, "val/num_pairs")
  if pairs is not None:
    facts.append(("(image, class) pairs", f"{pairs:,.0f}"))
  facts += [
    ("methods", ", ".join(map(title_of, about.methods)) or "none"),
    ("programs compiled", f"{about.num_compilations:,}"),
    ("took", progress.format_secs(about.secs)),
  ]
  return facts


def _by_class(
  evaluated: Evaluated, method: str
) -> tuple[list[str], list[tuple[str, list[str]]]]:
  """Returns headings, and a row of texts for each class."""
  columns = [
    *((c.key, c) for c in evaluation_rows.CLASSIFICATION),
    *((f"{method}/{c.key}", c) for c in evaluation_rows.MAPS if method),
  ]
  by_class = {
    name: {key.removeprefix("val/"): v for key, v in values.items()}
    for name, values in evaluated.per_class.items()
  }
  kept = [
    (key, column)
    for key, column in columns
    if column.key not in evaluation_rows.FRACTIONS
    and any(tables.number(v, key) is not None for v in by_class.values())
  ][:_MAX_CLASS_COLUMNS]
  rows = []
  for name, values in by_class.items():
    numbers = [(tables.number(values, key), column) for key, column in kept]
    texts = [
      "" if number is None else f"{number:,.{column.decimals}f}"
      for number, column in numbers
    ]
    rows.append((name, texts))
  return [column.heading for _, column in kept], rows if kept else []


def _card(evaluated: Evaluated, example: Example) -> pictures.Card:
  """Returns an image with its maps by every method it has."""
  target = describe_evaluated.class_name(evaluated, example.target)
  is_right = example.predicted == example.target
  outlined = pictures.outlined(example.image, example.object_mask)
  shown = [
    pictures.Picture(
      overlay.compact_uri(outlined),
      "Image, object outlined",
      f"Image {example.index} with its object ({target}) outlined.",
    )
  ]
  for method in evaluation_charts.shown_methods([example]):
    cam, title = example.maps[method], title_of(method)
    share = _share_on_object(cam, example.object_mask)
    words = "empty" if share is None else f"{share:.0f}%"
    picture = pictures.explained(example.image, example.object_mask, cam)
    shown.append(
      pictures.Picture(
        overlay.compact_uri(picture),
        f"{title}: {words}",
        f"The same image with its map by {title}: {words} on the object.",
      )
    )
  return pictures.Card(
    target=target,
    predicted=describe_evaluated.class_name(evaluated, example.predicted),
    is_correct=(
      True if is_right else None if evaluated.about.multi_label else False
    ),
    facts=(("image", str(example.index)),),
    pictures=tuple(shown),
  )


def _share_on_object(cam: np.ndarray, object_mask: np.ndarray) -> float | None:
  """Returns the percent of the enlarged map on the object; None if empty."""
  heat = overlay.enlarge_map(cam, *object_mask.shape)
  total = float(heat.sum())
  return 100.0 * float(heat[object_mask].sum()) / total if total > 0 else None


def _written(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ", ".join(map(str, value))
  return str(value)
