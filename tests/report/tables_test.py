"""Tables: values, seeds, the best, what is not measured."""

import csv
import io

import pytest

from gc_jax.report import table_formats, tables
from tests.report import workdirs


def _row(table, label, method="gradcam_elementwise"):
  (row,) = [r for r in table.rows if (r.label, r.method) == (label, method)]
  return row


def test_a_row_holds_the_numbers_of_its_run():
  table = tables.make_table({"GC": [workdirs.results(ch=15.0)]})
  cells = _row(table, "GC").cells
  texts = [table_formats.format_cell(cells[c.key]) for c in table.columns]
  assert texts == ["86.5", "63.5", "42.2 ± 0.3", "42.0", "15.0", "30.1"]


def test_seeds_become_mean_and_sample_standard_deviation():
  runs = [workdirs.results(ch=ch) for ch in (10.0, 14.0, 18.0)]
  table = tables.make_table({"GC": runs})
  cell = _row(table, "GC").cells["content_heatmap"]
  assert (cell.mean, cell.std, cell.num_runs) == (14.0, 4.0, 3)
  text = table_formats.to_markdown(table)
  assert "| GC | Grad-CAM, element-wise | 3 | " in text
  assert "| 14.0 ± 4.0 |" in text


def test_the_best_of_each_method_is_bold_and_controls_never():
  worse = workdirs.results(ch=13.0)
  worse["val/gradcam_elementwise/negative_quadrants_heatmap"] = 44.0
  table = tables.make_table(
    {"Baseline": [worse], "GC": [workdirs.results(ch=21.0)]}
  )
  lines = table_formats.to_markdown(table).splitlines()
  assert lines[0].endswith("| CH ↑ | NQH ↓ |")
  assert lines[2].endswith("| 13.0 | 44.0 |")
  assert lines[3].endswith("| **21.0** | **30.1** |")
  assert lines[5].endswith(
    "| **20.0** | 36.9 |"
  )  # NQH equal: nothing to choose
  assert "**" not in lines[6] + lines[7]
  assert lines[6].startswith("| Uniform map | control |")


def test_numbers_that_print_the_same_are_both_best():
  runs = {
    "A": [workdirs.results(ch=21.01)],
    "B": [workdirs.results(ch=20.99)],
    "C": [workdirs.results(ch=13.0)],
  }
  text = table_formats.to_markdown(tables.make_table(runs))
  assert text.count("**21.0**") == 2


@pytest.mark.parametrize("missing", [None, float("nan"), "absent"])
def test_what_is_not_measured_stays_empty(missing):
  results = workdirs.results()
  if missing == "absent":
    del results["val/gradcam/content_heatmap"]
  else:
    results["val/gradcam/content_heatmap"] = missing
  table = tables.make_table({"GC": [results]})
  texts = (
    table_formats.to_markdown(table),
    table_formats.to_html(table),
    table_formats.to_csv(table),
  )
  assert "|  | 36.9 |" in texts[0]
  assert "<td></td><td>36.9</td>" in texts[1]
  assert all("nan" not in text.lower() for text in texts)
  line = list(csv.DictReader(io.StringIO(texts[2])))[1]
  assert (line["method"], line["content_heatmap"]) == ("gradcam", "")


def test_csv_keeps_four_decimals_and_tells_the_spreads_apart():
  runs = [workdirs.results(ch=ch) for ch in (10.0, 14.0)]
  lines = csv.DictReader(
    io.StringIO(table_formats.to_csv(tables.make_table({"GC, λ=5": runs})))
  )
  first = next(lines)
  assert first["model"] == "GC, λ=5"
  assert first["content_heatmap_std"] == "2.8284"
  assert first["stochastic_pointing_game_std"] == "0.0000"
  assert first["stochastic_pointing_game_sampling_std"] == "0.3000"


def test_multi_label_columns_take_the_place_of_top1():
  results = workdirs.results(
    **{"val/f1_per_class": 55.5, "val/f1_overall": 66.6, "val/map": 70.1}
  )
  del results["val/top1"]
  table = tables.make_table({"GC": [results]})
  titles = [column.title for column in table.columns]
  assert titles[:4] == ["F1-PerClass", "F1-Overall", "mAP", "PG"]


def test_unknown_keys_are_left_out_and_unknown_methods_kept():
  results = workdirs.results(
    **{"val/per_class/ap": [1, 2], "val/fullgrad/content_heatmap": 9.5}
  )
  table = tables.make_table({"GC": [results]})
  methods = [row.method for row in table.rows]
  assert methods == [
    "gradcam_elementwise",
    "gradcam",
    "fullgrad",
    "uniform",
    "center",
  ]


def test_classification_alone_still_makes_a_table():
  table = tables.make_table({"Baseline": [{"val/top1": 80.0}]})
  assert "| Baseline |  | 80.0 |" in table_formats.to_markdown(table)


def test_labels_are_escaped():
  table = tables.make_table({"a|<b>": [workdirs.results()]})
  assert "a\\|<b>" in table_formats.to_markdown(table)
  assert "a|&lt;b&gt;" in table_formats.to_html(table)
