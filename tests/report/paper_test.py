"""The paper's numbers, against values read off its pages."""

import pytest

from gc_jax.report import paper
from gc_jax.report.paper import TABLES

SPG = "stochastic_pointing_game"
NQH = "negative_quadrants_heatmap"


@pytest.mark.parametrize(
  "number, architecture, model, metric, mean, std",
  [
    (3, "resnet18", "GMP", SPG, 51.21, 0.01),
    (3, "resnet18", "GC", NQH, 74.90, None),
    (4, "resnet18", "GMP+GC", "pointing_game", 68.70, None),
    (4, "resnet18", "Baseline", SPG, 18.99, 0.0),
    (6, "resnet50", "Baseline", "64", 1.06, None),
    (6, "resnet50", "GMP", "8", 6.23, None),
    (6, "resnet50", "GMP+GC", "1", 8.08, None),
  ],
)
def test_spot_values(number, architecture, model, metric, mean, std):
  """Those of Tables 1 and 2 are held to the recipes' docstrings."""
  cell = TABLES[number].rows()[architecture, model][metric]
  assert (cell.mean, cell.sampling_std) == (mean, std)


def test_every_table_is_complete():
  sizes = {n: (len(t.rows()), len(t.columns)) for n, t in TABLES.items()}
  shapes = [(10, 5), (4, 6), (4, 4), (4, 4), (2, 4), (3, 6)]
  assert sizes == dict(enumerate(shapes, start=1))
  for table in TABLES.values():
    for (_, model), cells in table.rows().items():
      assert model in ("Baseline", "GC", "GMP", "GMP+GC")
      assert all(0 <= cell.mean <= 100 for cell in cells.values())


def test_the_standard_columns_of_table_5_are_alexnets_row_of_table_1():
  for model in ("Baseline", "GC"):
    first = TABLES[1].rows()["alexnet", model]
    fifth = TABLES[5].rows()["alexnet", model]
    for metric in ("pointing_game", "content_heatmap"):
      assert fifth[f"{metric} gradcam"] == first[metric]


def test_only_average_pooling_leaves_the_variant_without_doubt():
  assert TABLES[1].method("resnet18", "GC") == paper.EITHER
  assert TABLES[1].method("resnet18", "GMP+GC") == paper.UNKNOWN
  assert TABLES[1].method("alexnet", "Baseline") == paper.UNKNOWN
