"""The paper's numbers, against values read off its pages."""

import pytest

from gc_jax.report import paper_tables
from gc_jax.report.paper_tables import TABLES

SPG = "stochastic_pointing_game"
NQH = "negative_quadrants_heatmap"
PG_PLAIN = paper_tables.variant("pointing_game", "gradcam")
CH_PLAIN = paper_tables.variant("content_heatmap", "gradcam")
CH_BY_CELL = paper_tables.variant("content_heatmap", "gradcam_elementwise")


def rows_of(number, *model):
  rows = TABLES[number].rows
  return [row for row in rows if (row.architecture, row.model) == model]


@pytest.mark.parametrize(
  "number, architecture, model, metric, mean, std",
  [
    (1, "alexnet", "Baseline", "top1", 56.51, None),
    (1, "alexnet", "GC", SPG, 61.15, 0.01),
    (1, "resnet18", "Baseline", NQH, 24.35, None),
    (1, "resnet18", "GMP+GC", "content_heatmap", 65.35, None),
    (1, "resnet50", "GMP", "content_heatmap", 54.23, None),
    (1, "resnet50", "GC", "pointing_game", 80.30, None),
    (1, "resnet50", "GMP+GC", SPG, 69.51, 0.0),
    (2, "resnet18", "GMP+GC", "f1_per_class", 61.99, None),
    (2, "resnet18", "GC", "f1_overall", 68.59, None),
    (2, "resnet18", "GMP", NQH, 41.09, None),
    (3, "resnet18", "GMP", SPG, 51.21, 0.01),
    (3, "resnet18", "GC", NQH, 74.90, None),
    (4, "resnet18", "GMP+GC", "pointing_game", 68.70, None),
    (4, "resnet18", "Baseline", SPG, 18.99, 0.0),
    (
      5,
      "alexnet",
      "GC",
      PG_PLAIN,
      73.7,
      None,
    ),
    (
      5,
      "alexnet",
      "GC",
      CH_BY_CELL,
      55.2,
      None,
    ),
    (
      5,
      "alexnet",
      "Baseline",
      CH_PLAIN,
      45.78,
      None,
    ),
    (6, "resnet50", "Baseline", "64", 1.06, None),
    (6, "resnet50", "GMP", "8", 6.23, None),
    (6, "resnet50", "GMP+GC", "1", 8.08, None),
  ],
)
def test_spot_values(number, architecture, model, metric, mean, std):
  (row,) = rows_of(number, architecture, model)
  cell = row.cells[metric]
  assert (cell.mean, cell.sampling_std) == (mean, std)


def test_every_table_is_complete():
  sizes = {n: (len(t.rows), len(t.rows[0].cells)) for n, t in TABLES.items()}
  assert sizes == {
    1: (10, 5),
    2: (4, 6),
    3: (4, 4),
    4: (4, 4),
    5: (2, 4),
    6: (3, 6),
  }
  for number, table in TABLES.items():
    assert table.number == number
    assert len({(r.architecture, r.model) for r in table.rows}) == len(
      table.rows
    )
    for row in table.rows:
      assert row.model in paper_tables.MODELS
      assert list(row.cells) == list(table.rows[0].cells)
      assert all(0 <= cell.mean <= 100 for cell in row.cells.values())


def test_the_standard_columns_of_table_5_are_alexnets_row_of_table_1():
  for model in ("Baseline", "GC"):
    (first,) = rows_of(1, "alexnet", model)
    (fifth,) = rows_of(5, "alexnet", model)
    for metric in ("pointing_game", "content_heatmap"):
      plain = paper_tables.variant(metric, "gradcam")
      assert fifth.cells[plain] == first.cells[metric]


def test_only_average_pooling_leaves_the_variant_without_doubt():
  methods = {(r.architecture, r.model): r.method for r in TABLES[1].rows}
  assert methods["resnet18", "GC"] == paper_tables.EITHER
  assert methods["resnet18", "GMP+GC"] == paper_tables.UNKNOWN
  assert methods["alexnet", "Baseline"] == paper_tables.UNKNOWN
