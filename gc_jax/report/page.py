"""report.html: one page that says what a model scores and its maps look at.

Of a run, finished or not, and of an evaluation: the same page, which leaves out
what was not asked. Beside it, tables and figures as files.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2

from gc_jax import data
from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key
from gc_jax.report import (
  artefact,
  charts,
  describe,
  formats,
  gallery,
  overlay,
  paper_layouts,
  pictures,
  plots,
  summary,
  tables,
)
from gc_jax.report.artefact import Evaluated
from gc_jax.report.tables import Models, Table
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files

FILENAME = "report.html"
_MEANINGS = {  # of the files that `write_evaluation` may write
  FILENAME: "this page, which needs no other file",
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
  artefact.RESULTS: "every number, flat",
  artefact.PER_CLASS: "the same by class",
  artefact.CURVES: "the curves' points",
  gallery.FILENAME: "the images and maps on this page, as arrays",
  artefact.ABOUT: "what was evaluated, and how",
}
_RUN_FILES = {
  "metrics.jsonl": "every logged step, one JSON object a line; also as "
  "TensorBoard events",
  "config.json": "the resolved configuration",
  "checkpoints/": "model, optimizer, data position: the same command resumes",
}
_KINDS = {  # kind of example -> heading, and what it shows
  "best": ("Best", "The maps with the most mass on the object."),
  "typical": ("Typical", "Maps around the median."),
  "worst": ("Worst", "The maps with the least mass on the object."),
  "fixed": ("The same images in every run", "For comparison between runs."),
}
_MAX_CLASS_COLUMNS = 12


def write_report(
  folder: str | os.PathLike, baseline: str | os.PathLike | None = None
) -> files.AnyPath:
  """Writes report.html, a page that needs no other file.

  Args:
    folder: a run, finished or not, or an evaluation: what is missing is left
      out.
    baseline: a finished one on the same data, to compare with: its rows in
      the tables, changes in the headline numbers, maps side by side.

  Returns:
    The path of the page.

  Raises:
    ValueError: a folder is none, the baseline is unfinished, or it was
      evaluated on other data or in another way.
  """
  evaluated = artefact.load(folder)
  other = None if baseline is None else artefact.load_finished(baseline)
  if other is not None:
    describe.check_comparable([evaluated, other])
  path = evaluated.folder / FILENAME
  drawn, strip = charts.charts(evaluated), charts.sanity_figure(evaluated)
  found = _context(evaluated, other, drawn, strip, [FILENAME])
  files.write_text(path, render("report.html", **found))
  return path


def write_evaluation(evaluated: Evaluated) -> list[files.AnyPath]:
  """Writes tables, figures and the page beside the evaluation's own files.

  A figure that there is nothing for is left out, and removed where an earlier
  evaluation left it.

  Returns:
    The paths written, the page first.
  """
  contents = tables_files(
    make_tables(describe.group([evaluated])), describe.protocol(evaluated.about)
  )
  drawn = charts.charts(evaluated)
  contents |= {f"{name}.png": chart.png for name, chart in drawn.items()}
  if drawn:
    contents["curves.png"] = plots.stack(list(drawn.values()))
  strip = charts.sanity_figure(evaluated)
  for name, picture in (
    ("figure_methods.png", charts.methods_figure(evaluated)),
    ("sanity.png", strip),
  ):
    if picture is not None:
      contents[name] = picture
  written = [n for n in FILENAMES if n == FILENAME or n in contents]
  found = _context(evaluated, None, drawn, strip, written)
  contents[FILENAME] = render("report.html", **found).encode()
  for name in FILENAMES:
    if name not in contents:
      (evaluated.folder / name).unlink(missing_ok=True)
      continue
    with files.replacing(evaluated.folder / name) as file:
      file.write(contents[name])
  return [evaluated.folder / name for name in written]


def make_tables(models: Models) -> list[Table]:
  """Returns the paper's layouts, then all that was measured, with intervals.

  Args:
    models: label to its evaluations, which differ by seed only; all on the
      same data.
  """
  made = [
    *paper_layouts.make_layouts(models),
    tables.accuracy_table(models),
    *tables.attacks_table(models),
    tables.full_table(models),
  ]
  return [table for table in made if table.columns]


def tables_files(made: Sequence[Table], preface: str) -> dict[str, bytes]:
  """Returns tables.md, tables.csv and tables.tex.

  Args:
    made: the tables.
    preface: what holds for all of them.
  """
  markdown = f"{preface}\n"
  for table in made:
    markdown += f"\n## {table.title}\n\n{formats.to_markdown(table)}"
    markdown += "".join(f"\n{note}\n" for note in formats.notes(table))
  latex = formats.to_latex_document(made)
  return {
    "tables.md": markdown.encode(),
    "tables.csv": formats.to_long_csv(made).encode(),
    "tables.tex": f"{latex}\n% {preface}\n".encode(),
  }


def render(template: str, **context: Any) -> str:
  """Returns a page made from a template in gc_jax/report/templates/."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(
      pathlib.Path(__file__).parent / "templates", encoding="utf-8"
    ),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(**context)


def table_blocks(made: Sequence[Table]) -> list[dict[str, Any]]:
  """Returns tables for the page; a note stands below the first it is of."""
  seen: set[str] = set()
  explained: set[str] = set()
  blocks = []
  for table in made:
    if not table.columns:
      continue
    notes = formats.notes(table, explained)
    notes = [note for note in notes if note not in seen]
    seen.update(notes)
    explained.update(column.title for column in table.columns)
    html = formats.to_html(table)
    blocks.append({"title": table.title, "html": html, "notes": notes})
  return blocks


def _context(
  evaluated: Evaluated,
  other: Evaluated | None,
  drawn: dict[str, plots.Chart],
  strip: bytes | None,
  written: Sequence[str],
) -> dict[str, Any]:
  """Returns what templates/report.html asks for.

  Args:
    evaluated: what the page is of.
    other: what it is compared with.
    drawn: `charts.charts` of it.
    strip: `charts.sanity_figure` of it.
    written: names of the files beside the page.
  """
  about = evaluated.about
  models, other_label = _models(evaluated, other)
  made = make_tables(models) if evaluated.results else []
  glance = [tables.overview(models)] if evaluated.results else []
  blocks = table_blocks([*glance, *made])
  is_papers = [block["title"].startswith("Table ") for block in blocks]
  method = summary.method_of(evaluated)
  verdicts = charts.sanity(evaluated)
  pairs = [] if other is None else pictures.pairs(evaluated, other)
  shown = charts.sanity_example(evaluated)
  headings, rows = _by_class(evaluated, method)
  listed = {name: _MEANINGS[name] for name in written} | _DATA_FILES
  return {
    "is_run": evaluated.is_run,
    "name": evaluated.folder.resolve().name,
    "title": describe.label(about),
    "data_name": data.title(about.data_name),
    "sentence": describe.sentence(about),
    "protocol": describe.protocol(about),
    "is_consistent": about.consistency,
    "headlines": summary.headlines(evaluated, other, other_label),
    "method": title_of(method),
    "is_trained_method": method == summary.METHOD,
    "other_label": other_label,
    "other_sentence": describe.sentence(other.about) if other else "",
    "glance": blocks[: len(glance)],
    "paper_tables": [
      b for b, own in zip(blocks, is_papers, strict=True) if own
    ],
    "full_tables": [
      b
      for b, own in list(zip(blocks, is_papers, strict=True))[len(glance) :]
      if not own
    ],
    "training_charts": charts.training_charts(evaluated.training),
    "not_finite": charts.count_not_finite(evaluated.training),
    "charts": drawn,
    "attacks": list(evaluated.curves.robustness),
    "sanity": verdicts,
    "stages": list(evaluated.curves.stages),
    "flagged": [v.title for v in verdicts if v.stays_high],
    "all_change": bool(verdicts)
    and all(v.verdict == "changes" for v in verdicts),
    "threshold": f"{charts.STAYS_HIGH:g}",
    "sanity_figure": ""
    if strip is None
    else overlay.compact_uri(overlay.read_png(strip)),
    "sanity_index": None if shown is None else shown.index,
    "gallery": _gallery(evaluated, skips_fixed=bool(pairs)),
    "has_composites": any(
      example.composite is not None for example in evaluated.examples
    ),
    "pairs": pairs,
    "color_bar": pictures.color_bar(),
    "class_headings": headings,
    "class_rows": rows,
    "measured_notes": _measured_notes(evaluated),
    "fewer_pairs": describe.fewer_pairs(evaluated),
    "facts": summary.facts(evaluated),
    "settings": {
      name: _written(value) for name, value in about.settings.items()
    },
    "config": saved_config.flatten(dict(about.config)),
    "results": evaluated.results,
    "listed_files": (listed | _RUN_FILES if evaluated.is_run else listed),
    "folder": str(evaluated.folder),
  }


def _models(
  evaluated: Evaluated, other: Evaluated | None
) -> tuple[dict[str, list[Evaluated]], str]:
  """Returns label to evaluation, the other first, and the other's label."""
  if other is None:
    return describe.group([evaluated]), ""
  groups = describe.group([other, evaluated])
  if len(groups) == 2:
    return groups, next(iter(groups))
  # The same configuration, another seed.
  label = next(iter(groups))
  both = (other, evaluated)
  labels = [f"{label}, seed {one.about.trained_with('seed')}" for one in both]
  if labels[0] == labels[1]:
    labels = [f"{label} ({one.folder.name})" for one in both]
  if labels[0] == labels[1]:
    labels = [f"{label} (compared with)", f"{label} (this run)"]
  return {labels[0]: [other], labels[1]: [evaluated]}, labels[0]


def _gallery(
  evaluated: Evaluated, skips_fixed: bool
) -> list[tuple[str, str, list[pictures.Card]]]:
  """Returns heading, meaning and cards of each kind of example."""
  kinds = dict.fromkeys(e.kind for e in evaluated.examples)
  only = list(kinds) == ["fixed"]
  found = []
  for kind in _KINDS:
    if kind not in kinds or (kind == "fixed" and skips_fixed):
      continue
    heading, meaning = ("", "") if only else _KINDS[kind]
    cards = [
      pictures.card(evaluated, example)
      for example in evaluated.examples
      if example.kind == kind
    ]
    found.append((heading, meaning, cards))
  return found


def _measured_notes(evaluated: Evaluated) -> list[str]:
  about = evaluated.about
  notes = [describe.protocol(about)]
  costly, fewer = _costly(evaluated), describe.fewer_pairs(evaluated)
  if costly and fewer:
    notes.append(
      f"Measured on {fewer}, as they take many passes each: "
      f"{', '.join(costly)}."
    )
  num_rows = describe.setting(about, "sanity_rows")
  if evaluated.curves.randomization and num_rows:
    notes.append(
      f"Rank correlations of the sanity check are means over {num_rows:,g} "
      f"{'pair' if num_rows == 1 else 'pairs'} at most."
    )
  return notes + summary.zero_map_notes(evaluated)


def _costly(evaluated: Evaluated) -> list[str]:
  """Returns what was measured, of all that is measured on fewer pairs."""
  curves = evaluated.curves
  boxes = [Key("max_box_acc_v2", m) for m in evaluated.about.methods]
  measured = {
    "insertion": bool(curves.insertion),
    "deletion": bool(curves.deletion),
    "boxes": any(evaluated.number(key) is not None for key in boxes),
    "PGD": "pgd" in curves.robustness,
  }
  methods = [title_of(method) for method in evaluated.about.costly_methods]
  return methods + [what for what, is_there in measured.items() if is_there]


def _by_class(
  evaluated: Evaluated, method: str
) -> tuple[list[str], list[tuple[str, list[str]]]]:
  """Returns headings, and a row of texts for each class."""
  columns = [*tables.OF_MODELS, *(tables.OF_MAPS if method else ())]
  named = [(column.number(method).name, column) for column in columns]
  by_class = evaluated.per_class
  kept = [
    (name, column)
    for name, column in named
    if METRICS[column.metric].unit == "percent"
    and any(artefact.number(v, name) is not None for v in by_class.values())
  ][:_MAX_CLASS_COLUMNS]
  rows = []
  for class_name, values in by_class.items():
    numbers = [artefact.number(values, name) for name, _ in kept]
    texts = ["" if n is None else f"{n:,.1f}" for n in numbers]
    rows.append((class_name, texts))
  return [column.heading for _, column in kept], rows if kept else []


def _written(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ", ".join(map(str, value))
  return str(value)
