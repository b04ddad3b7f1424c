"""Accuracy against content heatmap: which models are on the front."""

import pathlib

import pytest

from gc_jax.report import pareto, plots
from gc_jax.report.artefact import Evaluated
from tests.report import evaluations


def _results(accuracy, ch, metric="top1", method="gradcam_elementwise"):
  return {f"val/{metric}": accuracy, f"val/{method}/content_heatmap": ch}


def _points(**models):
  """Label -> results.json of repetitions, as points."""
  about = evaluations.about()
  made = {
    label: [Evaluated(pathlib.Path(label), about, one) for one in runs]
    for label, runs in models.items()
  }
  return pareto.points(made)


def test_the_front_holds_those_that_no_other_beats():
  points = _points(
    a=[_results(80.0, 10.0)],
    b=[_results(75.0, 20.0)],
    worse_than_b=[_results(75.0, 19.0)],
    worse_than_all=[_results(60.0, 5.0)],
    as_good_as_a=[_results(80.0, 10.0)],
  )
  front = [point.label for point in points if point.is_on_front]
  assert front == ["a", "b", "as_good_as_a"]


def test_a_point_is_the_mean_over_seeds_that_have_both_numbers():
  runs = [_results(80.0, 10.0), _results(82.0, 20.0), {"val/top1": 1.0}]
  (point,) = _points(a=runs)
  assert (point.accuracy, point.content_heatmap, point.num_runs) == (81, 15, 2)
  (point,) = _points(a=[_results(66.0, 10.0, "f1_overall")])
  assert (point.metric, point.accuracy) == ("f1_overall", 66.0)


def test_the_chart_needs_two_models_and_says_their_numbers():
  models = {"a_$1$": [_results(80.0, 10.0)]}
  assert pareto.chart(_points(**models)) is None
  chart = pareto.chart(_points(**models, b=[_results(70.0, 5.0)]))
  assert "a_$1$: Top-1 80.0, CH 10.0, on the front" in chart.svgs[0]
  assert "b: Top-1 70.0, CH 5.0." in chart.svgs[0]
  assert ">a_$1$<" in chart.svgs[0]


@pytest.mark.parametrize("method", ["gradcam_elementwise", "gradcam"])
def test_long_names_end_within_the_chart_of_either_map(method):
  name = "a model with a name that is rather long"
  places = {f"{name}, 1": (80.0, 10.0), f"{name}, 2": (70.0, 50.0)}
  points = _points(
    **{name: [_results(*at, method=method)] for name, at in places.items()}
  )
  chart = pareto.chart(points)
  assert chart.unit.partition(", maps of ")[2].startswith("Grad-CAM")
  # The file grows with what sticks out of the chart's 7.2 inches.
  assert plots.read_png(chart.png).shape[1] <= 7.2 * 200
