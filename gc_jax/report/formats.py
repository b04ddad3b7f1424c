"""Tables as Markdown, CSV, LaTeX for a paper, and texts for a page."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from gc_jax.attribution import title_of
from gc_jax.report.tables import Cell, Column, Row, Table

_LATEX_HEADER = """\
% Needs, in the preamble: \\usepackage{booktabs}
% Read as UTF-8, the default of LaTeX since 2018. The notes below each table
% are comments.
"""
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


class Text(NamedTuple):
  """A cell in words: "45.2 ± 0.3", "[44.1, 46.3]"; "" for what is unknown."""

  number: str
  interval: str = ""
  is_best: bool = False


def texts(table: Table, row: Row) -> list[Text]:
  """Returns the cells of a row in words."""
  return [
    Text(
      *_written(row.cells.get(column.key), column.decimals),
      table.is_best(row, column),
    )
    for column in table.columns
  ]


def _written(cell: Cell | None, decimals: int) -> tuple[str, str]:
  if cell is None:
    return "", ""
  std = cell.sampling_std if cell.std is None else cell.std
  number = f"{cell.mean:,.{decimals}f}"
  number += "" if std is None else f" ± {std:.{decimals}f}"
  if cell.interval is None:
    return number, ""
  low, high = cell.interval
  return number, f"[{low:.{decimals}f}, {high:.{decimals}f}]"


def notes(table: Table, explained: Collection[str] = ()) -> list[str]:
  """Returns what a reader of this table must know, a sentence each.

  Args:
    table: to be read.
    explained: titles of columns whose meaning the reader knows already.
  """
  cells = [cell for row in table.rows for cell in row.cells.values()]
  sentences = ["All numbers in percent."]
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
  if is_repeated(table):
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


def is_repeated(table: Table) -> bool:
  """Returns whether a row stands for several runs."""
  return any(row.num_runs > 1 for row in table.rows)


def method_title(row: Row) -> str:
  """Returns what stands in the second column."""
  return row.title or ("control" if row.is_control else title_of(row.method))


def block(table: Table, row: Row) -> str:
  """Returns what a row stands together with: a method, quotes, controls."""
  if row.is_reference:
    return "reference"
  if row.is_control:
    return "control"
  return "method" if table.across_methods else f"method {row.method}"


def num_runs(row: Row) -> str:
  """Returns how many runs a row stands for; "" where it stands for none."""
  return "" if row.is_control or row.is_reference else str(row.num_runs)


def _headings(table: Table) -> list[str]:
  runs = ["Runs"] * is_repeated(table)
  return ["Model", "Explanation", *runs, *(c.heading for c in table.columns)]


def _line(
  table: Table,
  row: Row,
  escape: Callable[[str], str],
  best: str,
  beside: str,
) -> list[str]:
  """Returns a row in words, escaped.

  Args:
    table: the row's.
    row: to be written.
    escape: makes text safe in this format.
    best: "**{}**": how the best number looks.
    beside: "{} {}": a number and its interval.
  """
  line = [escape(row.label), escape(method_title(row))]
  line += [num_runs(row)] * is_repeated(table)
  for number, interval, is_best in texts(table, row):
    text = best.format(escape(number)) if is_best else escape(number)
    line.append(beside.format(text, interval) if interval else text)
  return line


def to_markdown(table: Table) -> str:
  """Returns a GitHub table; the best of each method and column is bold."""
  headings = _headings(table)
  lines = [headings, ["---", "---"] + ["--:"] * (len(headings) - 2)]
  escape = lambda text: text.replace("|", "\\|")
  lines += [_line(table, row, escape, "**{}**", "{} {}") for row in table.rows]
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def for_page(groups: Sequence[Sequence[Table]]) -> list[list[dict[str, Any]]]:
  """Returns tables for the page; a note stands below the first it is of."""
  seen: set[str] = set()
  explained: set[str] = set()

  def told(table: Table) -> list[str]:
    own = [note for note in notes(table, explained) if note not in seen]
    seen.update(own)
    explained.update(column.title for column in table.columns)
    return own

  return [
    [
      {
        "title": table.title,
        "notes": told(table),
        "columns": table.columns,
        "is_repeated": is_repeated(table),
        "rows": _rows_for_page(table),
      }
      for table in made
    ]
    for made in groups
  ]


def _rows_for_page(table: Table) -> list[dict[str, Any]]:
  rows, previous = [], None
  for row in table.rows:
    own = block(table, row)
    rows.append(
      {
        "label": row.label,
        "method": method_title(row),
        "runs": num_runs(row),
        "kind": "model" if own.startswith("method") else own,
        "is_first": previous not in (None, own),
        "cells": texts(table, row),
      }
    )
    previous = own
  return rows


def to_files(made: Sequence[Table], preface: str) -> dict[str, bytes]:
  """Returns tables.md, tables.csv and tables.tex.

  Args:
    made: the tables.
    preface: what holds for all of them.
  """
  markdown = f"{preface}\n"
  for table in made:
    markdown += f"\n## {table.title}\n\n{to_markdown(table)}"
    markdown += "".join(f"\n{note}\n" for note in notes(table))
  latex = [_LATEX_HEADER, *map(to_latex, made), f"% {preface}\n"]
  return {
    "tables.md": markdown.encode(),
    "tables.csv": _long_csv(made).encode(),
    "tables.tex": "\n".join(latex).encode(),
  }


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
      kind = "paper" if row.is_reference else "model"
      kind = "control" if row.is_control else kind
      start = [table.title, kind, row.label, row.method, row.num_runs]
      for column in table.columns:
        numbers = _numbers(row.cells.get(column.key))
        lines.append([*start, column.key, *numbers])
  return csv_text(lines)


def _numbers(cell: Cell | None) -> tuple[float | None, ...]:
  """Returns mean, std, sampling_std, low, high."""
  if cell is None:
    return (None,) * 5
  low, high = cell.interval or (None, None)
  return cell.mean, cell.std, cell.sampling_std, low, high


def to_csv(table: Table) -> str:
  """Returns one line a row: means, then spreads, named by metric key.

  `KEY_std` is over runs, `KEY_sampling_std` over the draws within a run;
  four decimals; what is not measured is empty.
  """

  def kept(column: Column, values: Sequence[Any]) -> Sequence[Any]:
    """Returns mean and std; the spread over draws where a row has one."""
    cells = [row.cells.get(column.key) for row in table.rows]
    is_drawn = any(c and c.sampling_std is not None for c in cells)
    return values[: 3 if is_drawn else 2]

  names = ["model", "method", "control", "num_runs"]
  for column in table.columns:
    endings = kept(column, ("", "_std", "_sampling_std"))
    names += [column.key + ending for ending in endings]
  lines: list[list[Any]] = [names]
  for row in table.rows:
    line = [row.label, row.method, int(row.is_control), row.num_runs]
    for column in table.columns:
      line += kept(column, _numbers(row.cells.get(column.key)))
    lines.append(line)
  return csv_text(lines)


def _escape_latex(text: str) -> str:
  return text.translate(_LATEX_ESCAPES)


def to_latex(table: Table) -> str:
  """Returns a `table` with a caption; the best of each method is bold.

  Rules stand between the blocks of a method, and above the controls.
  """
  headings = _headings(table)
  caption = rf"\caption{{{_escape_latex(table.title)}. In percent.}}"
  lines = [
    r"\begin{table}",
    r"\centering",
    caption if table.title else "",
    rf"\begin{{tabular}}{{ll{'r' * (len(headings) - 2)}}}",
    r"\toprule",
    " & ".join(map(_escape_latex, headings)) + r" \\",
  ]
  previous = None
  for row in table.rows:
    own = block(table, row)
    if own != previous:
      lines.append(r"\midrule")
    previous = own
    # Braces: after "\\", "[" would begin an optional argument.
    line = _line(table, row, _escape_latex, r"\textbf{{{}}}", "{} {{{}}}")
    lines.append(" & ".join(line) + r" \\")
  lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
  lines += [f"% {note}" for note in notes(table)]
  return "".join(f"{line}\n" for line in lines if line)
