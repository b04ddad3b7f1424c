"""A table as Markdown, HTML and CSV."""

import csv
import html
import io

from gc_jax.report import tables


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


def notes(table: tables.Table) -> list[str]:
  """Returns what a reader of this table must know, a sentence each."""
  meanings = "; ".join(f"{c.title}: {c.meaning}" for c in table.columns)
  sentences = [f"All numbers in percent. {meanings}."]
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
  if any(row.is_control for row in table.rows):
    sentences.append(
      "The last rows are controls: maps that know nothing of the model."
    )
  return sentences


def to_markdown(table: tables.Table) -> str:
  """Returns a GitHub table; the best of each method and column is bold."""
  runs = is_repeated(table)
  headings = ["Model", "Explanation"] + ["Runs"] * runs
  headings += [column.heading for column in table.columns]
  aligned = ["---", "---"] + ["--:"] * (len(headings) - 2)
  lines = [headings, aligned]
  for row in table.rows:
    line = [_escape(row.label), _escape(method_title(row))]
    line += [_num_runs(row)] * runs
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
    first = " first" if previous not in (None, row.method) else ""
    first = "" if first and previous in tables.CONTROLS else first
    kind = ("control" if row.is_control else "model") + first
    kind = "reference" + first if row.is_reference else kind
    previous = row.method
    out.append(f'<tr class="{kind}">')
    out.append(f'<th scope="row">{html.escape(row.label)}</th>')
    out.append(f"<td>{html.escape(method_title(row))}</td>")
    if runs:
      out.append(f"<td>{_num_runs(row)}</td>")
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


def is_repeated(table: tables.Table) -> bool:
  """Returns whether a row stands for several runs."""
  return any(row.num_runs > 1 for row in table.rows)


def method_title(row: tables.Row) -> str:
  """Returns what stands in the second column."""
  if row.title:
    return row.title
  if row.is_control:
    return "control"
  return tables.METHOD_TITLES.get(row.method, row.method)


def _num_runs(row: tables.Row) -> str:
  return "" if row.is_control or row.is_reference else str(row.num_runs)


def _escape(text: str) -> str:
  return text.replace("|", "\\|")
