"""Tables as programs, spreadsheets and people save them.

Broken and random tables: tests/data/fuzz_test.py.
"""

import codecs
import csv
import io
import re

import pytest

from gc_jax.data.sets import tables

COLUMNS = ("image", "labels")


def write(tmp_path, content):
  path = tmp_path / "table.csv"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def read(tmp_path, content, columns=COLUMNS, optional=()):
  """Returns [(line, row)], a row with a problem as what it says."""
  rows = tables.read(write(tmp_path, content), columns, optional)
  return [(n, str(r) if isinstance(r, tables.Problem) else r) for n, r in rows]


def cells(tmp_path, content):
  return [tuple(row[c] for c in COLUMNS) for _, row in read(tmp_path, content)]


# Texts.

WORDS = "é 犬 ß\nzwei"


@pytest.mark.parametrize(
  "content",
  [
    WORDS.encode(),
    codecs.BOM_UTF8 + WORDS.encode(),
    codecs.BOM_UTF16_LE + WORDS.encode("utf-16-le"),
    codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"),
    WORDS.replace("\n", "\r\n").encode(),
    WORDS.replace("\n", "\r").encode(),
  ],
)
def test_a_text_is_read_in_the_encoding_it_is_in(tmp_path, content):
  assert tables.read_text(write(tmp_path, content)) == WORDS


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      "a\r\nb\rfête".encode("latin-1"),
      r"line 3 must be UTF-8, and from byte 6 .* is EA 74 65\. Save it as U",
    ),
    ("狗".encode("gbk"), r"line 1 must be UTF-8"),
    (b"\xed\xb3\xa9", r"line 1 must be UTF-8"),  # a lone surrogate
    ("a\n".encode("utf-16") + b"b", r"line 2 must be UTF-16-LE"),
    ("a\nb".encode("utf-16-le"), r"line 1 .* holds a NUL, as UTF-16 without"),
    ("a\nb".encode("utf-32"), r"line 1 .* holds a NUL"),
    (b"a\nb\0c", r"line 2 must be text .* holds a NUL"),
  ],
)
def test_another_encoding_is_told_by_file_and_line(tmp_path, content, message):
  with pytest.raises(ValueError, match=rf"table\.csv, {message}"):
    tables.read_text(write(tmp_path, content))
  with pytest.raises(ValueError, match=rf"table\.csv, {message}"):
    tables.read(tmp_path / "table.csv", COLUMNS)


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
  with pytest.raises(ValueError, match=r"none must be .* read: No such file"):
    tables.read_text(tmp_path / "none")
  with pytest.raises(ValueError, match=r"must be a file .*: Is a directory"):
    tables.read_text(tmp_path)


# Tables.


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_line_ends_are_told_from_the_file(
  tmp_path, separator, end
):
  text = end.join(["image|labels", "a.png|cat", "b.png|", ""])
  content = text.replace("|", separator)
  assert read(tmp_path, content) == [
    (2, {"image": "a.png", "labels": "cat"}),
    (3, {"image": "b.png", "labels": ""}),
  ]


def test_what_csv_writes_is_what_is_read(tmp_path):
  rows = [
    ('a "b", c', "x;y"),
    ("two\nlines", '"'),
    ("d\te", "plain"),
    ("", "."),
  ]
  for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
    for separator in tables.SEPARATORS:
      buffer = io.StringIO()
      writer = csv.writer(buffer, delimiter=separator, quoting=quoting)
      writer.writerows([COLUMNS, *rows])
      assert cells(tmp_path, buffer.getvalue()) == rows


def test_columns_are_known_in_any_case_and_order_and_among_others(tmp_path):
  content = ",LABELS, Image ,XMin\n0,cat,a.png,1\n"
  (found,) = read(tmp_path, content, COLUMNS, ("xmin", "difficult"))
  expected = {"image": "a.png", "labels": "cat", "xmin": "1", "difficult": ""}
  assert found == (2, expected | {"": "0"})


def test_rows_without_content_are_passed_over_and_lines_still_count(tmp_path):
  content = '\nimage,labels\n\n,\n  \n,,,\n"",""\na.png,cat\n\n'
  assert read(tmp_path, content) == [(8, {"image": "a.png", "labels": "cat"})]


def test_a_row_is_in_the_line_it_starts_in(tmp_path):
  content = 'image,labels\n"a\nb.png",cat\nc.png,dog\n'
  assert [line for line, _ in read(tmp_path, content)] == [2, 4]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("\n\n", r"image, labels is missing from 'an empty file'"),
    ("image,label\n", r"labels is missing from 'image,label'"),
    ("image|labels\n", r"image, labels is missing from 'image|labels'"),
    ("image,labels,Image\n", r"line 1 must name each column once"),
    ("image,labels,x,x\n", r"names 'x' 2 times"),
    ('\nimage,"labels\na,b\n', r"line 2: a quotation mark is opened and never"),
    (
      "image;x,image,x;labels;y,labels\n",
      r"with a comma and with a semicolon between its cells",
    ),
    ("\n" * 3 + "x" * 10_000, r"missing from 'x{77}\.\.\.'"),
  ],
)
def test_a_header_that_cannot_be_read_is_told_at_once(
  tmp_path, content, message
):
  path = write(tmp_path, content)
  with pytest.raises(ValueError, match=rf"table\.csv.*{message}"):
    tables.read(path, COLUMNS)  # before a row is asked for


OPEN = "a quotation mark is opened and never closed"


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ("a.png,cat,animal", r"must have 2 cells.* has 3: 'a.png,cat,an"),
    ("a.png", r"must have 2 cells, as the header has, and this has 1"),
    ("a.png,cat,", r"must have 2 cells.*in quotation marks"),
    ('a.png,"cat', OPEN),
    ('"a.png,cat', OPEN),
    ('a.png,5" pipe', OPEN),
    ('a.png,"cat"x', r"must enclose whole cells.*expected after"),
    ("a.png," + "x" * 200_000, r"at most 131,072 characters"),
    (f'a.png,"{"x" * 200_000}"', r"at most 131,072 characters"),
  ],
)
def test_a_wrong_row_is_told_and_costs_no_other(tmp_path, row, message):
  good = [f"{i}.png,cat" for i in range(4)]
  lines = ["image,labels", *good[:2], row, *good[2:], '"x\ny.png","dog"']
  found = read(tmp_path, "\n".join(lines))
  ((line, problem),) = [r for r in found if isinstance(r[1], str)]
  assert line == 4
  assert problem.startswith(f"{tmp_path / 'table.csv'}, line 4: ")
  assert re.search(message, problem)
  names = [r["image"] for _, r in found if not isinstance(r, str)]
  assert names == ["0.png", "1.png", "2.png", "3.png", "x\ny.png"]


def test_two_marks_around_good_rows_are_two_mistakes(tmp_path):
  content = 'image,labels\n"a.png\nb.png,cat\nc.png"\nd.png,dog\n'
  rows = dict(read(tmp_path, content))
  assert OPEN in rows[2] and OPEN in rows[4]
  assert (rows[3]["image"], rows[5]["image"]) == ("b.png", "d.png")


def test_a_cell_under_no_name_is_not_lost(tmp_path):
  content = "image,labels,,\na.png,cat,,\nb.png,cat,animal,\n"
  (_, good), (line, problem) = read(tmp_path, content)
  assert good["labels"] == "cat" and line == 3
  assert "line 3: 'animal' stands in a column that has no name" in problem


def test_every_row_of_a_large_file_is_read_or_told(tmp_path):
  """Quotation marks that never close, all over it: no row is lost."""
  lines = [
    f'{i}.png,"cat' if i % 7 == 3 else f'"{i}.png","c""t"'
    for i in range(20_000)
  ]
  found = read(tmp_path, "\n".join(["image,labels", *lines]))
  assert [line for line, _ in found] == list(range(2, 20_002))
  assert sum(isinstance(row, str) for _, row in found) == len(
    range(3, 20_000, 7)
  )


# Cells.


NO = ("false", "False", "FALSE", "no", "N", "f", "0", "0.0", "0.00", "", " ")
YES = ("true", "True", "TRUE", "yes", "Y", "t", "1", "1.0", " 1 ")


def test_yes_and_no_are_read_however_they_are_written():
  assert not any(map(tables.boolean, NO))
  assert all(map(tables.boolean, YES))


@pytest.mark.parametrize(
  "text", ["2", "-1", "nan", "None", "maybe", "0,0", "x", "1e-400x", "wahr"]
)
def test_what_is_neither_yes_nor_no_is_told(text):
  with pytest.raises(
    ValueError, match=rf"'{text}' must be true, yes, t, y or 1"
  ):
    tables.boolean(text)


@pytest.mark.parametrize(
  ("text", "value"),
  [("12", 12), (" 1.5 ", 1.5), ("-.5", -0.5), ("+3.", 3), ("5.6e-14", 5.6e-14)],
)
def test_a_number_is_read(text, value):
  assert tables.number(text) == value


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1,5", "decimals are written with a point"),
    ("1,234", "thousands with nothing"),
    ("1.2E+05", "has been rounded"),
    ("1e3", "has been rounded"),
    ("12px", "must be a number such as 12 or 12.5$"),
    ("", "'' must be a number"),
    ("nan", "must be a number"),
    ("1_000", "must be a number"),
    ("١٢", "must be a number"),
    ("0x10", "must be a number"),
    ("9" * 400, r"'9{77}\.\.\.' must be a number"),
    ("1 2", "must be a number"),
  ],
)
def test_what_is_no_number_is_told(text, message):
  with pytest.raises(ValueError, match=message):
    tables.number(text)
