"""Curves: which charts there are, and that they suit any page."""

import re

from gc_jax.report import figures
from tests.report import workdirs


def test_a_run_with_the_consistency_loss_has_its_curves():
  lines = workdirs.metrics()
  lines[0]["train/consistency_weight"] = 5.0  # the ramp
  titles = [chart.title for chart in figures.curves(lines)]
  assert titles == [
    "Loss",
    "Parts of the training loss",
    "Top-1",
    "Weight of the consistency loss",
    "Gradient at the features",
  ]


def test_charts_without_numbers_are_left_out():
  lines = workdirs.metrics(consistency=False)
  titles = [chart.title for chart in figures.curves(lines)]
  assert titles == ["Loss", "Parts of the training loss", "Top-1"]
  assert figures.curves([]) == []


def test_a_constant_weight_needs_no_chart():
  titles = [chart.title for chart in figures.curves(workdirs.metrics())]
  assert "Weight of the consistency loss" not in titles


def test_charts_take_the_colours_of_the_page():
  for chart in figures.curves(workdirs.metrics()):
    assert "currentColor" in chart.svg
    assert "var(--series-1)" in chart.svg
    assert not re.search(r"#[0-9a-f]{6}\b", chart.svg)
    assert "http" not in chart.svg


def test_ids_of_different_charts_do_not_clash():
  ids = [
    name
    for chart in figures.curves(workdirs.metrics())
    for name in set(re.findall(r'\bid="([^"]*)"', chart.svg))
  ]
  assert len(ids) == len(set(ids))


def test_a_chart_says_its_numbers_to_those_who_do_not_see_it():
  lines = [{"step": 1, "train/loss": 2.5}, {"step": 9, "train/loss": 0.75}]
  (chart,) = figures.curves(lines)
  assert 'aria-label="Loss (nats): training from 2.5 to 0.75 at step 9."' in (
    chart.svg
  )


def test_numbers_that_are_not_finite_break_the_line_and_are_counted():
  lines = workdirs.metrics()
  lines[4]["train/loss"] = None
  lines[4]["train/consistency_loss"] = None
  assert figures.count_not_finite(lines) == 1
  assert "nan" not in figures.curves(lines)[0].svg.lower()
