"""Tables in words, and as files: Markdown, LaTeX, CSV."""

import csv
import io
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from gc_jax.attribution import title_of
from gc_jax.report.tables import Cell, Column, Row, Table

_LATEX_POINTS = 345.0  # the width of the text in an article of 10 points
_LATEX_LINES = 52  # of tables on one of its pages
_LATEX_ESCAPES = str.maketrans(
  {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": "$-$",
    "×": r"$\times$",
    "λ": r"$\lambda$",
    "ε": r"$\epsilon$",
    "≥": r"$\geq$",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
  }
)


def render(template: str, **context: Any) -> str:
  """Returns text made from a template in gc_jax/report/templates/."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(
      pathlib.Path(__file__).parent / "templates", encoding="utf-8"
    ),
    autoescape=template.endswith(".html"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters |= {
    "markdown": lambda text: text.replace("|", "\\|"),
    "latex": lambda text: text.translate(_LATEX_ESCAPES),
    "slug": lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-"),
    "capitalize_first": lambda text: text[:1].upper() + text[1:],
    "bytes": _size,
    "count": _count,
  }
  # The contents of a page: its headings add to them.
  return environment.get_template(template).render(sections=[], **context)


def _size(num_bytes: int) -> str:
  """Returns bytes in binary units, as compilers give them."""
  size = float(num_bytes)
  for unit in ("B", "KiB", "MiB"):
    if size < 1024:
      return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
    size /= 1024
  return f"{size:.2f} GiB"


def _count(number: float) -> str:
  for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
    if number >= factor:
      return f"{number / factor:.2f} {unit}"
  return f"{number:.0f}"


class CellText(NamedTuple):
  """A cell in words: "45.2 ± 0.3", "[44.1, 46.3]"; "" for what is unknown."""

  number: str = ""
  interval: str = ""  # with a verdict
  verdict: str = ""
  is_best: bool = False


class RowText(NamedTuple):
  """A row in words."""

  label: str
  method: str  # what stands in the second column
  runs: str  # how many it stands for; "" for none
  kind: str
  is_first: bool  # of a block, which is not the table's first
  cells: Sequence[CellText]


class TableText(NamedTuple):
  """A table in words; `is_repeated` if a row stands for several runs."""

  title: str
  caption: str  # the title without a number
  unit: str
  columns: Sequence[Column]
  is_repeated: bool
  rows: Sequence[RowText]
  notes: Sequence[str]


def in_words(
  table: Table, explained: Mapping[str, Any] | None = None
) -> TableText:
  """Returns a table in words.

  Args:
    table: to be read.
    explained: titles of columns whose meaning the reader knows already.
  """
  rows, previous = [], None
  for row in table.rows:
    # What the row stands together with.
    by_method = row.kind == "model" and not table.across_methods
    block = row.kind, row.method if by_method else ""
    is_first = previous not in (None, block)
    previous = block
    rows.append(
      RowText(
        row.label,
        row.title or ("control" if row.is_control else title_of(row.method)),
        str(row.num_runs) if row.kind == "model" else "",
        row.kind,
        is_first,
        [_cell(table, row, column) for column in table.columns],
      )
    )
  return TableText(
    table.heading,
    table.title,
    table.unit,
    table.columns,
    any(row.num_runs > 1 for row in table.rows),
    rows,
    _notes(table, explained or {}),
  )


def _cell(table: Table, row: Row, column: Column) -> CellText:
  cell, decimals = row.cells.get(column.key), column.decimals
  if cell is None:
    return CellText()
  std = cell.sampling_std if cell.std is None else cell.std
  number = f"{cell.mean:{table.sign},.{decimals}f}"
  number += "" if std is None else f" ± {std:.{decimals}f}"
  interval = ""
  if cell.interval is not None:
    low, high = cell.interval
    form = f"{table.sign}.{decimals}f"
    interval = f"[{low:{form}}, {high:{form}}] {cell.verdict}".rstrip()
  return CellText(number, interval, cell.verdict, table.is_best(row, column))


def _notes(table: Table, explained: Mapping[str, Any]) -> list[str]:
  """Returns what a reader of this table must know, a sentence each."""
  cells = [cell for row in table.rows for cell in row.cells.values()]
  sentences = [f"All numbers in {table.unit}."]
  meanings = [
    f"{c.title}: {c.meaning}"
    for c in table.columns
    if c.meaning and c.title not in explained
  ]
  if meanings:
    sentences[0] += f" {'; '.join(meanings)}."
  elif explained:
    sentences = []  # said before
  spreads = []
  if any(cell.std is not None for cell in cells):
    spreads.append(
      "± is the sample standard deviation over the runs of a row, which "
      "differ by seed only"
    )
  if any(c.sampling_std is not None and c.std is None for c in cells):
    spreads.append("for a single run, ± is the spread of SPG over its draws")
  if spreads:
    text = "; ".join(spreads)
    sentences.append(text[0].upper() + text[1:] + ".")
  if any(cell.interval for cell in cells):
    sentences.append(
      "In brackets: the 95% interval, by resampling the evaluated images."
    )
  if any(row.is_control for row in table.rows):
    sentences.append(
      "The last rows are controls: maps that know nothing of the model."
    )
  return [*sentences, *table.notes]


def for_page(groups: Sequence[Sequence[Table]]) -> list[list[TableText]]:
  """Returns tables for the page; a note stands below the first it is of."""
  seen: dict[str, None] = {}
  explained: dict[str, None] = {}
  found = []
  for made in groups:
    found.append([])
    for table in made:
      if not table.columns:
        continue
      words = in_words(table, explained)
      notes = [note for note in words.notes if note not in seen]
      found[-1].append(words._replace(notes=notes))
      seen |= dict.fromkeys(notes)
      explained |= dict.fromkeys(column.title for column in table.columns)
  return found


def to_markdown(*made: Table) -> str:
  """Returns GitHub tables with their notes; the best of each block is bold."""
  return render("tables.md", tables=map(in_words, made), preface="")


def to_files(made: Sequence[Table], preface: str) -> dict[str, bytes]:
  """Returns tables.md, tables.csv and tables.tex.

  Args:
    made: the tables.
    preface: what holds for all of them.
  """
  words = [in_words(table) for table in made]
  markdown = render("tables.md", tables=words, preface=preface)
  latex = render(
    "tables.tex",
    tables=[(table, _latex_floats(table)) for table in words],
    preface=preface,
  )
  return {
    "tables.md": markdown.encode(),
    "tables.csv": _long_csv(made).encode(),
    "tables.tex": latex.encode(),
  }


def _latex_blocks(table: TableText) -> list[tuple[int, int]]:
  """Returns from and to which column each part goes that fits the text's width.

  By the letters of the widest cells, in \\footnotesize within the 345 points
  of an article; what is wider all the same, LaTeX shrinks.
  """
  points = lambda texts: 4.25 * max(map(len, texts), default=0) + 6
  names = points([r.label for r in table.rows] + ["Model"])
  names += points([r.method for r in table.rows] + ["Explanation"])
  blocks, left = [], 0.0
  for place, column in enumerate(table.columns):
    texts = [
      f"{r.cells[place].number} {r.cells[place].interval}".strip()
      for r in table.rows
    ]
    width = points([*texts, column.heading])
    if not blocks or width > left:
      blocks.append((place, place))
      left = _LATEX_POINTS - names
    blocks[-1] = (blocks[-1][0], place + 1)
    left -= width
  return blocks


def _latex_floats(table: TableText) -> list[list[tuple[int, int]]]:
  """Returns the parts of `_latex_blocks`, those together that fit a page."""
  at_once = max(1, _LATEX_LINES // (len(table.rows) + 5))
  blocks = _latex_blocks(table)
  return [
    blocks[start : start + at_once] for start in range(0, len(blocks), at_once)
  ]


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
  """Returns lines as CSV: floats with four decimals, None as nothing."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  for line in lines:
    writer.writerow([f"{x:.4f}" if isinstance(x, float) else x for x in line])
  return buffer.getvalue()


def _long_csv(made: Sequence[Table]) -> str:
  """Returns the cells of several tables, a line each, empty ones too.

  `kind` is model, paper or control; `std` is over runs, `sampling_std` over
  the draws within a run; `low` and `high` end the 95% interval.
  """
  names = ["table", "kind", "model", "method", "num_runs", "metric", "value"]
  lines: list[list[Any]] = [[*names, "std", "sampling_std", "low", "high"]]
  for table in made:
    for row in table.rows:
      kind = "paper" if row.is_reference else row.kind
      start = [table.heading, kind, row.label, row.method, row.num_runs]
      for column in table.columns:
        numbers = _numbers(row.cells.get(column.key))
        lines.append([*start, column.key, *numbers])
  return csv_text(lines)


def _numbers(cell: Cell | None) -> tuple[float | None, ...]:
  """Returns mean, std, sampling_std, low, high."""
  if cell is None:
    return (None,) * 5
  return cell.mean, cell.std, cell.sampling_std, *(cell.interval or (None,) * 2)


def to_csv(table: Table) -> str:
  """Returns one line a row: means, then spreads, named by metric key.

  `KEY_std` is over runs, `KEY_sampling_std` over the draws within a run;
  four decimals; what is not measured is empty.
  """
  drawn = {
    key
    for row in table.rows
    for key, cell in row.cells.items()
    if cell.sampling_std is not None
  }
  counts = {c.key: 3 if c.key in drawn else 2 for c in table.columns}
  names = ["model", "method", "control", "num_runs"]
  for key, count in counts.items():
    names += [key, f"{key}_std", f"{key}_sampling_std"][:count]
  lines: list[list[Any]] = [names]
  for row in table.rows:
    line = [row.label, row.method, int(row.is_control), row.num_runs]
    for key, count in counts.items():
      line += _numbers(row.cells.get(key))[:count]
    lines.append(line)
  return csv_text(lines)
