"""Tables as Markdown, HTML, CSV, and LaTeX for a paper."""

import csv
import html
import io
from collections.abc import Collection, Sequence

from gc_jax.attribution import title_of
from gc_jax.report import tables

_LATEX_HEADER = """\
% Needs, in the preamble: \\usepackage{booktabs}
% Read as UTF-8, the default of LaTeX since 2018. The notes below each table
% are comments.
"""
_LATEX_ESCAPES = {
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


def format_cell(cell: tables.Cell | None, decimals: int = 1) -> str:
  """Returns "45.2", or "45.2 ± 0.3" where there is a spread; "" for none."""
  if cell is None:
    return ""
  std = cell.sampling_std if cell.std is None else cell.std
  text = f"{cell.mean:,.{decimals}f}"
  return text + ("" if std is None else f" ± {std:.{decimals}f}")


def format_interval(cell: tables.Cell | None, decimals: int = 1) -> str:
  """Returns "[44.1, 46.3]"; "" where there is no interval."""
  if cell is None or cell.interval is None:
    return ""
  low, high = cell.interval
  return f"[{low:.{decimals}f}, {high:.{decimals}f}]"


def notes(table: tables.Table, explained: Collection[str] = ()) -> list[str]:
  """Returns what a reader of this table must know, a sentence each.

  Args:
    table: read.
    explained: titles of columns whose meaning the reader was told before.
  """
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
  if any(
    cell.sampling_std is not None and cell.std is None
    for row in table.rows
    for cell in row.cells.values()
  ):
    spreads.append("for a single run, ± is the spread of SPG over its draws")
  if spreads:
    text = "; ".join(spreads)
    sentences.append(text[0].upper() + text[1:] + ".")
  if any(cell.interval for row in table.rows for cell in row.cells.values()):
    sentences.append(
      "In brackets: the 95% interval, by resampling the evaluated images."
    )
  if any(row.is_control for row in table.rows):
    sentences.append(
      "The last rows are controls: maps that know nothing of the model."
    )
  return sentences + list(table.notes)


def to_markdown(table: tables.Table) -> str:
  """Returns a GitHub table; the best of each method and column is bold."""
  runs = is_repeated(table)
  headings = ["Model", "Explanation"] + ["Runs"] * runs
  headings += [column.heading for column in table.columns]
  aligned = ["---", "---"] + ["--:"] * (len(headings) - 2)
  lines = [headings, aligned]
  for row in table.rows:
    line = [_escape(row.label), _escape(method_title(row))]
    line += [num_runs(row)] * runs
    for column in table.columns:
      cell = row.cells.get(column.key)
      text = format_cell(cell, column.decimals)
      text = f"**{text}**" if table.is_best(row, column) else text
      interval = format_interval(cell, column.decimals)
      line.append(f"{text} {interval}" if interval else text)
    lines.append(line)
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def to_html(table: tables.Table) -> str:
  """Returns a `<table>`; classes `control`, `reference`, `best` for style."""
  runs = is_repeated(table)
  headings = ["Model", "Explanation"] + ["Runs"] * runs
  out = ["<table>", "<thead><tr>"]
  out += [f'<th scope="col">{heading}</th>' for heading in headings]
  for column in table.columns:
    title = html.escape(column.meaning)
    out.append(f'<th scope="col" title="{title}">{column.heading}</th>')
  out.append("</tr></thead>\n<tbody>")
  previous = None
  for row in table.rows:
    first = " first" if previous not in (None, block(table, row)) else ""
    previous = block(table, row)
    kind = previous if row.is_reference or row.is_control else "model"
    out.append(f'<tr class="{kind}{first}">')
    out.append(f'<th scope="row">{html.escape(row.label)}</th>')
    out.append(f"<td>{html.escape(method_title(row))}</td>")
    if runs:
      out.append(f"<td>{num_runs(row)}</td>")
    for column in table.columns:
      cell = row.cells.get(column.key)
      text = format_cell(cell, column.decimals)
      if table.is_best(row, column):
        text = f'<strong class="best">{text}</strong>'
      if interval := format_interval(cell, column.decimals):
        text += f' <span class="interval">{interval}</span>'
      out.append(f"<td>{text}</td>")
    out.append("</tr>")
  return "".join(out) + "</tbody>\n</table>"


def to_long_csv(all_tables: Sequence[tables.Table]) -> str:
  """Returns the cells of several tables, a line each, empty ones too.

  `kind` is model, paper or control; `std` is over runs, `sampling_std` over
  the draws within a run; `low` and `high` end the 95% interval.
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  names = ["table", "kind", "model", "method", "num_runs", "metric", "value"]
  writer.writerow([*names, "std", "sampling_std", "low", "high"])
  for table in all_tables:
    for row in table.rows:
      kind = "paper" if row.is_reference else "model"
      kind = "control" if row.is_control else kind
      start = [table.title, kind, row.label, row.method, row.num_runs]
      for column in table.columns:
        cell = row.cells.get(column.key)
        numbers: tuple[float | None, ...] = (None,) * 5
        if cell is not None:
          ends = cell.interval or (None, None)
          numbers = (cell.mean, cell.std, cell.sampling_std, *ends)
        written = ["" if n is None else f"{n:.4f}" for n in numbers]
        writer.writerow([*start, column.key, *written])
  return buffer.getvalue()


def to_csv(table: tables.Table) -> str:
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
  names = ["model", "method", "control", "num_runs"]
  for column in table.columns:
    names += [column.key, f"{column.key}_std"]
    names += [f"{column.key}_sampling_std"] * (column.key in drawn)
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
  writer.writeheader()
  for row in table.rows:
    line = {
      "model": row.label,
      "method": row.method,
      "control": int(row.is_control),
      "num_runs": row.num_runs,
    }
    for key, cell in row.cells.items():
      line[key] = f"{cell.mean:.4f}"
      if cell.std is not None:
        line[f"{key}_std"] = f"{cell.std:.4f}"
      if cell.sampling_std is not None:
        line[f"{key}_sampling_std"] = f"{cell.sampling_std:.4f}"
    writer.writerow(line)
  return buffer.getvalue()


def escape_latex(text: str) -> str:
  """Returns text as LaTeX prints it, on one line."""
  return "".join(_LATEX_ESCAPES.get(character, character) for character in text)


def to_latex_document(all_tables: Sequence[tables.Table]) -> str:
  """Returns the tables one below the other, for `\\input`."""
  return _LATEX_HEADER + "".join("\n" + to_latex(table) for table in all_tables)


def to_latex(table: tables.Table) -> str:
  """Returns a `table` with a caption; the best of each method is bold.

  Rules stand between the blocks of a method, and above the controls.
  """
  runs = is_repeated(table)
  headings = ["Model", "Explanation"] + ["Runs"] * runs
  headings += [column.heading for column in table.columns]
  caption = rf"\caption{{{escape_latex(table.title)}. In percent.}}"
  lines = [
    r"\begin{table}",
    r"\centering",
    caption if table.title else "",
    rf"\begin{{tabular}}{{ll{'r' * (len(headings) - 2)}}}",
    r"\toprule",
    " & ".join(map(escape_latex, headings)) + r" \\",
  ]
  previous = None
  for row in table.rows:
    own = block(table, row)
    if own != previous:
      lines.append(r"\midrule")
    previous = own
    cells = [escape_latex(row.label), escape_latex(method_title(row))]
    cells += [num_runs(row)] * runs
    for column in table.columns:
      cell = row.cells.get(column.key)
      text = escape_latex(format_cell(cell, column.decimals))
      if table.is_best(row, column):
        text = rf"\textbf{{{text}}}"
      interval = format_interval(cell, column.decimals)
      # Braces: after "\\", "[" would begin an optional argument.
      cells.append(f"{text} {{{interval}}}" if interval else text)
    lines.append(" & ".join(cells) + r" \\")
  lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
  lines += [f"% {note}" for note in notes(table)]
  return "".join(f"{line}\n" for line in lines if line)


def is_repeated(table: tables.Table) -> bool:
  """Returns whether a row stands for several runs."""
  return any(row.num_runs > 1 for row in table.rows)


def method_title(row: tables.Row) -> str:
  """Returns what stands in the second column."""
  if row.title:
    return row.title
  if row.is_control:
    return "control"
  return title_of(row.method)


def block(table: tables.Table, row: tables.Row) -> str:
  """Returns what a row stands together with: a method, quotes, controls."""
  if row.is_reference:
    return "reference"
  if row.is_control:
    return "control"
  return "method" if table.across_methods else f"method {row.method}"


def num_runs(row: tables.Row) -> str:
  """Returns how many runs a row stands for, where that is said."""
  return "" if row.is_control or row.is_reference else str(row.num_runs)


def _escape(text: str) -> str:
  return text.replace("|", "\\|")
