"""A table as Markdown, HTML and CSV."""

import csv
import html
import io

from gc_jax.report import tables


def format_cell(cell: tables.Cell | None) -> str:
  """Returns "45.2", or "45.2 ± 0.3" where there is a spread; "" for none."""
  if cell is None:
    return ""
  std = cell.sampling_std if cell.std is None else cell.std
  return f"{cell.mean:.1f}" + ("" if std is None else f" ± {std:.1f}")


def notes(table: tables.Table) -> list[str]:
  """Returns what a reader of this table must know, a sentence each."""
  meanings = "; ".join(f"{c.title}: {c.meaning}" for c in table.columns)
  sentences = [f"All numbers in percent. {meanings}."]
  spreads = []
  if _repeated(table):
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
  runs = _repeated(table)
  headings = ["Model", "Explanation"] + ["Runs"] * runs
  headings += [column.heading for column in table.columns]
  aligned = ["---", "---"] + ["--:"] * (len(headings) - 2)
  lines = [headings, aligned]
  for row in table.rows:
    line = [_escape(row.label), _escape(_method_title(row))]
    line += ["" if row.is_control else str(row.num_runs)] * runs
    for column in table.columns:
      text = format_cell(row.cells.get(column.key))
      line.append(f"**{text}**" if table.is_best(row, column) else text)
    lines.append(line)
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def to_html(table: tables.Table) -> str:
  """Returns a `<table>`; classes `control`, `best`, `first` for the style."""
  runs = _repeated(table)
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
    previous = row.method
    out.append(f'<tr class="{kind}">')
    out.append(f'<th scope="row">{html.escape(row.label)}</th>')
    out.append(f"<td>{html.escape(_method_title(row))}</td>")
    if runs:
      out.append(f"<td>{'' if row.is_control else row.num_runs}</td>")
    for column in table.columns:
      text = format_cell(row.cells.get(column.key))
      if table.is_best(row, column):
        text = f'<strong class="best">{text}</strong>'
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


def _repeated(table: tables.Table) -> bool:
  return any(row.num_runs > 1 for row in table.rows)


def _method_title(row: tables.Row) -> str:
  if row.is_control:
    return "control"
  return tables.METHOD_TITLES.get(row.method, row.method)


def _escape(text: str) -> str:
  return text.replace("|", "\\|")
