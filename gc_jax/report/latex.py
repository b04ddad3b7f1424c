"""A table as LaTeX, for a paper."""

from collections.abc import Sequence

from gc_jax.report import table_formats, tables

HEADER = """\
% Needs, in the preamble: \\usepackage{booktabs}
% Read as UTF-8, the default of LaTeX since 2018. The notes below each table
% are comments.
"""
_ESCAPES = {
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


def escape(text: str) -> str:
  """Returns text as LaTeX prints it, on one line."""
  return "".join(_ESCAPES.get(character, character) for character in text)


def document(all_tables: Sequence[tables.Table]) -> str:
  """Returns the tables one below the other, for `\\input`."""
  return HEADER + "".join("\n" + to_latex(table) for table in all_tables)


def to_latex(table: tables.Table) -> str:
  """Returns a `table` with a caption; the best of each method is bold.

  Rules stand between the blocks of a method, and above the controls.
  """
  runs = table_formats.is_repeated(table)
  headings = ["Model", "Explanation"] + ["Runs"] * runs
  headings += [column.heading for column in table.columns]
  lines = [
    r"\begin{table}",
    r"\centering",
    rf"\caption{{{escape(table.title)}. In percent.}}" if table.title else "",
    rf"\begin{{tabular}}{{ll{'r' * (len(headings) - 2)}}}",
    r"\toprule",
    " & ".join(map(escape, headings)) + r" \\",
  ]
  previous = None
  for row in table.rows:
    block = table_formats.block(table, row)
    if block != previous:
      lines.append(r"\midrule")
    previous = block
    cells = [escape(row.label), escape(table_formats.method_title(row))]
    cells += [table_formats.num_runs(row)] * runs
    for column in table.columns:
      cell = row.cells.get(column.key)
      text = escape(table_formats.format_cell(cell, column.decimals))
      if table.is_best(row, column):
        text = rf"\textbf{{{text}}}"
      interval = table_formats.format_interval(cell, column.decimals)
      # Braces: after "\\", "[" would begin an optional argument.
      cells.append(f"{text} {{{interval}}}" if interval else text)
    lines.append(" & ".join(cells) + r" \\")
  lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
  lines += [f"% {note}" for note in table_formats.notes(table)]
  return "".join(f"{line}\n" for line in lines if line)
