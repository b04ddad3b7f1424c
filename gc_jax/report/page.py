"""report.html: one page that says how a run went and what its maps look at."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe

from gc_jax.report import (
  describe,
  figures,
  files,
  pictures,
  summary,
  table_formats,
  tables,
)
from gc_jax.report.run import Run, load_finished_run, load_run
from gc_jax.saved_config import flatten

FILENAME = "report.html"
_KINDS = {  # kind of example -> heading, and what it shows
  "best": ("Best", "The maps with the most mass on the object."),
  "typical": ("Typical", "Maps around the median."),
  "worst": ("Worst", "The maps with the least mass on the object."),
  "fixed": ("The same images in every run", "For comparison between runs."),
}


def write_report(
  workdir: str | os.PathLike, baseline: str | os.PathLike | None = None
) -> files.AnyPath:
  """Writes `workdir`/report.html, a page that needs no other file.

  Args:
    workdir: a run, finished or not: what is missing is left out.
    baseline: a finished run on the same data, to compare with: its rows in
      the table, changes in the headline numbers, maps side by side.

  Returns:
    The path of the page.

  Raises:
    ValueError: a folder is no run, the baseline is unfinished, or it was
      trained on another data set.
  """
  run = load_run(workdir)
  other = None if baseline is None else load_finished_run(baseline)
  if other is not None:
    describe.check_comparable([run, other])
  path = run.workdir / FILENAME
  files.write_text(path, render("report.html", **_context(run, other)))
  return path


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


def table_blocks(made: Sequence[tables.Table]) -> list[dict[str, Any]]:
  """Returns tables for the page; a note stands below the first it is of."""
  seen: set[str] = set()
  explained: set[str] = set()
  blocks = []
  for table in made:
    if not table.columns:
      continue
    notes = table_formats.notes(table, explained)
    notes = [note for note in notes if note not in seen]
    seen.update(notes)
    explained.update(column.title for column in table.columns)
    html = table_formats.to_html(table)
    blocks.append({"title": table.title, "html": html, "notes": notes})
  return blocks


def _context(run: Run, other: Run | None) -> dict[str, Any]:
  """Returns what templates/report.html asks for."""
  models, other_label = _models(run, other)
  table = tables.make_table(
    {label: [r.results] for label, r in models.items() if r.results}
  )
  shown = [example.kind for example in run.examples]
  pairs = [] if other is None else pictures.pairs(run, other)
  kinds = [k for k in _KINDS if k in shown and not (k == "fixed" and pairs)]
  return {
    "name": run.workdir.resolve().name,
    "title": f"{describe.architecture(run)} {describe.short_name(run)}",
    "sentence": describe.sentence(run),
    "is_consistent": describe.is_consistent(run),
    "headlines": summary.headlines(run, other),
    "other_label": other_label,
    "other_sentence": describe.sentence(other) if other else "",
    "table": markupsafe.Markup(table_formats.to_html(table)),
    "has_table": bool(table.columns),
    "table_notes": table_formats.notes(table) + summary.zero_map_notes(run),
    "charts": figures.curves(run.metrics),
    "not_finite": figures.count_not_finite(run.metrics),
    "gallery": [
      (
        *_KINDS[kind],
        [pictures.card(run, e) for e in run.examples if e.kind == kind],
      )
      for kind in kinds
    ],
    "pairs": pairs,
    "color_bar": pictures.color_bar(),
    "settings": flatten(run.config),
    "results": run.results,
    "facts": summary.facts(run),
    "workdir": str(run.workdir),
  }


def _models(run: Run, other: Run | None) -> tuple[dict[str, Run], str]:
  """Returns label to run, baseline first, and the baseline's label."""
  if other is None:
    return {describe.short_name(run): run}, ""
  groups = describe.group_runs([other, run])
  if len(groups) == 1:  # the same configuration, another seed
    label = next(iter(groups))
    labels = [f"{label}, seed {r.setting('seed')}" for r in (other, run)]
    if labels[0] == labels[1]:
      labels = [f"{label} ({r.workdir.name})" for r in (other, run)]
    if labels[0] == labels[1]:
      labels = [f"{label} (compared with)", f"{label} (this run)"]
  else:
    labels = list(groups)
  return {labels[0]: other, labels[1]: run}, labels[0]
