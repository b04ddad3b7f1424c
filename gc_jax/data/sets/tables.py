"""Text files and tables as people save them, read strictly.

Texts are UTF-8, with or without a byte order mark, or UTF-16 with one; nothing
is guessed or replaced.

A fault of a whole table, in its encoding or its header, raises ValueError
before the first row. A fault of one row comes as a `Problem` in its place, and
the rows behind it are read: even behind a quotation mark that never closes. So
there are as many problems as rows that cannot be used.
"""

import codecs
import csv
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gc_jax.runtime.messages import clipped

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}

_ENCODINGS = (
  (codecs.BOM_UTF8, "UTF-8"),
  (codecs.BOM_UTF16_LE, "UTF-16-LE"),
  (codecs.BOM_UTF16_BE, "UTF-16-BE"),
  (b"", "UTF-8"),
)
_SAVE_AS = 'Save it as UTF-8 (in a spreadsheet: "CSV UTF-8").'
_OPEN = "a quotation mark is opened and never closed"

_TRUE = ("true", "yes", "t", "y")
_FALSE = ("false", "no", "f", "n", "")
# No exponents above zero: a spreadsheet that writes 1.2E+05 has rounded.
_NUMBER = re.compile(
  r"[+-]?(\d+\.?\d*|\.\d+)(e-\d+)?", re.ASCII | re.IGNORECASE
)


class Problem(ValueError):
  """What is wrong with one row, and where it stands."""


def read_text(path: str | os.PathLike) -> str:
  r"""Returns a text, with "\n" at the end of every line.

  Raises:
    ValueError: it cannot be opened, or is in another encoding; names the file
      and the first such line.
  """
  try:
    content = Path(path).read_bytes()
  except OSError as error:
    raise ValueError(
      f"{path} must be a file that can be read: {error.strerror or error}."
    ) from error
  known = [each for each in _ENCODINGS if content.startswith(each[0])]
  mark, encoding = known[0]
  try:
    text = content[len(mark) :].decode(encoding)
  except UnicodeDecodeError as error:
    start = len(mark) + error.start
    line = _line_behind(content[len(mark) : start].decode(encoding))
    found = " ".join(f"{byte:02X}" for byte in content[start : start + 4])
    raise ValueError(
      f"{path}, line {line} must be {encoding}, and from byte {start:,} of the "
      f"file on it is {found}. {_SAVE_AS}"
    ) from error
  before, nul, _ = text.partition("\0")
  if nul:
    raise ValueError(
      f"{path}, line {_line_behind(before)} must be text in UTF-8, or in "
      "UTF-16 with a byte order mark, and holds a NUL, as UTF-16 without one "
      f"and UTF-32 do. {_SAVE_AS}"
    )
  return _newlines(text)


def _newlines(text: str) -> str:
  return text.replace("\r\n", "\n").replace("\r", "\n")


def _line_behind(text: str) -> int:
  return _newlines(text).count("\n") + 1


def read(
  path: str | os.PathLike,
  columns: Sequence[str],
  optional: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, str] | Problem]]:
  """Reads a table that starts with a line of column names, in any case.

  Cells are separated by commas, semicolons or tabs, whichever gives a header
  that has the columns; spaces around them do not count. Rows whose cells are
  all empty are passed over.

  Args:
    path: the file.
    columns: those it must have. It may have others, which are read too.
    optional: those that are "" in every row where the file has none.

  Returns:
    The line a row starts in, as an editor counts, and the row by the names of
    its columns, or its `Problem`.
  """
  lines = read_text(path).split("\n")
  separator, first, header = _header(path, lines, columns)
  known = {name.casefold(): name for name in (*columns, *optional)}
  names = [known.get(name.casefold(), name) for name in header]
  twice = [name for name in names if name and names.count(name) > 1]
  if twice:
    raise ValueError(
      f"{path}, line {first} must name each column once, and names "
      f"{twice[0]!r} {names.count(twice[0])} times. Rename or remove one."
    )
  return _rows(path, lines, separator, first, names, optional)


def _header(
  path: str | os.PathLike, lines: Sequence[str], columns: Sequence[str]
) -> tuple[str, int, list[str]]:
  """Returns the separator, and the header's line and cells."""
  headers, missing = {}, {}
  first, broken = 1, ""
  for separator in SEPARATORS:
    first, cells = next(_records(lines, separator), (1, []))
    if isinstance(cells, str):
      broken, cells = cells, []
    present = {name.casefold() for name in cells}
    headers[separator] = cells
    missing[separator] = [c for c in columns if c.casefold() not in present]
  best = min(headers, key=lambda s: (len(missing[s]), -len(headers[s])))
  header = headers[best]
  if missing[best]:
    if broken and not any(headers.values()):
      raise ValueError(f"{path}, line {first}: {broken}.")
    raise ValueError(
      f"{path} must start with a line that names its columns, "
      f"{','.join(columns)}; {', '.join(missing[best])} is missing from "
      f"{clipped(','.join(header)) or 'an empty file'!r}."
    )
  fit = [s for s in headers if not missing[s] and len(headers[s]) > 1]
  if len(fit) > 1:
    raise ValueError(
      f"{path}, line {first} names {','.join(columns)} with "
      f"{' and with '.join(SEPARATORS[s] for s in fit)} between its cells. "
      "Keep one of the separators."
    )
  return best, first, header


def _rows(
  path: str | os.PathLike,
  lines: Sequence[str],
  separator: str,
  header_line: int,
  names: Sequence[str],
  optional: Sequence[str],
) -> Iterator[tuple[int, dict[str, str] | Problem]]:
  # Spreadsheets write a header as wide as the widest row, without a name where
  # there is none; the first without a name is the index of pandas.
  nameless = [i for i, name in enumerate(names) if i and not name]
  for line, cells in _records(lines, separator, len(names)):
    if line <= header_line:
      continue
    if isinstance(cells, str):
      wrong = cells
    elif len(cells) != len(names):
      mark = SEPARATORS[separator]
      advice = f"Put {mark} before an empty cell, too"
      if len(cells) > len(names):
        advice = f"Enclose a cell that holds {mark} in quotation marks"
      wrong = (
        f"a row must have {len(names)} cells, as the header has, and this has "
        f"{len(cells)}: {clipped(separator.join(cells))!r}. {advice}"
      )
    elif lost := [cells[i] for i in nameless if cells[i]]:
      wrong = (
        f"{clipped(lost[0])!r} stands in a column that has no name in line "
        f"{header_line}. Name the column, or move what stands there"
      )
    else:
      row = dict.fromkeys(optional, "")
      yield line, row | dict(zip(names, cells, strict=True))
      continue
    yield line, Problem(f"{path}, line {line}: {wrong}.")


def _records(
  lines: Sequence[str], separator: str, width: int = 0
) -> Iterator[tuple[int, list[str] | str]]:
  """Yields (line, cells) of each filled record, or what is wrong with its line.

  A line with an odd number of quotation marks opens a cell that the next such
  line closes. If the record cannot be read, only its first line is wrong. The
  same holds if it spans several lines and has not `width` cells (0 = any
  number): then the marks are two mistakes with good rows between them.
  """
  odd = [number for number, line in enumerate(lines) if line.count('"') % 2]
  closing = dict(itertools.pairwise([*odd, -1]))
  number = 0
  while number < len(lines):
    last = closing.get(number, number)
    cells = _cells(lines[number : last + 1], separator) if last >= 0 else _OPEN
    swallows = last > number and width and len(cells) != width
    if last > number and (swallows or isinstance(cells, str)):
      cells = f"{_OPEN}: the next one, in line {last + 1}, ends no cell"
    if isinstance(cells, str) or any(cells):
      yield number + 1, cells
    number = number + 1 if isinstance(cells, str) else last + 1


def _cells(lines: Sequence[str], separator: str) -> list[str] | str:
  """Returns the cells of the one record that lines hold, or what is wrong."""
  ended = [f"{line}\n" for line in lines]
  settings = {"delimiter": separator, "skipinitialspace": True, "strict": True}
  try:
    records = list(csv.reader(ended, **settings))
  except csv.Error as error:
    if sum(map(len, lines)) > csv.field_size_limit():
      return f"a cell must have at most {csv.field_size_limit():,} characters"
    return (
      f"quotation marks must enclose whole cells ({error}); inside of a cell "
      "they are doubled"
    )
  if len(records) > 1:
    return _OPEN
  return [cell.strip() for cell in records[0]]


def boolean(text: str) -> bool:
  """Returns yes or no, as programs, spreadsheets and people write them."""
  word = text.strip().casefold()
  if word in (*_TRUE, *_FALSE):
    return word in _TRUE
  if _NUMBER.fullmatch(word) and float(word) in (0, 1):
    return float(word) == 1
  raise ValueError(
    f"{clipped(text)!r} must be true, yes, t, y or 1; or false, no, f, n, 0 or "
    "empty"
  )


def number(text: str) -> float:
  """Returns a finite number, written in digits with a decimal point."""
  word = text.strip()
  if _NUMBER.fullmatch(word) and math.isfinite(float(word)):
    return float(word)
  reason = ""
  if _NUMBER.fullmatch(word.replace(",", ".", 1)):
    # 1,234 may be either of two numbers.
    reason = "; decimals are written with a point, and thousands with nothing"
  elif re.fullmatch(rf"{_NUMBER.pattern}e\+?\d+", word, re.ASCII | re.I):
    reason = "; with an exponent it has been rounded: write all of its digits"
  raise ValueError(
    f"{clipped(text)!r} must be a number such as 12 or 12.5{reason}"
  )
