"""Accuracy against content heatmap: who is on the front."""

import pathlib

from gc_jax.report import comparison, plots
from tests.report import evaluations


def _results(accuracy, ch, metric="top1", method="gradcam_elementwise"):
  return {f"val/{metric}": accuracy, f"val/{method}/content_heatmap": ch}


def _points(models):
  """Label -> results.json of repetitions, as evaluations."""
  about = evaluations.about()
  return comparison.pareto_points(
    {
      label: [
        evaluations.artefact.Evaluated(pathlib.Path(label), about, results)
        for results in runs
      ]
      for label, runs in models.items()
    }
  )


def test_the_front_holds_those_that_no_other_beats():
  models = {
    "a": [_results(80.0, 10.0)],
    "b": [_results(75.0, 20.0)],
    "worse than b": [_results(75.0, 19.0)],
    "worse than all": [_results(60.0, 5.0)],
    "as good as a": [_results(80.0, 10.0)],
  }
  points = _points(models)
  front = [point.label for point in points if point.is_on_front]
  assert front == ["a", "b", "as good as a"]


def test_seeds_are_averaged_over_those_that_have_both_numbers():
  runs = [_results(80.0, 10.0), _results(82.0, 20.0), {"val/top1": 1.0}]
  (point,) = _points({"a": runs})
  assert (point.accuracy, point.content_heatmap, point.num_runs) == (81, 15, 2)


def test_several_classes_a_picture_take_f1():
  (point,) = _points({"a": [_results(66.0, 10.0, "f1_overall")]})
  assert (point.metric, point.accuracy) == ("f1_overall", 66.0)


def test_the_chart_needs_two_models_and_says_their_numbers():
  models = {"a_$1$": [_results(80.0, 10.0)]}
  assert comparison.pareto_chart(_points(models)) is None
  models["b"] = [_results(70.0, 5.0)]
  chart = comparison.pareto_chart(_points(models))
  assert "a_$1$: Top-1 80.0, CH 10.0, on the front" in chart.svg
  assert "b: Top-1 70.0, CH 5.0." in chart.svg
  assert ">a_$1$<" in chart.svg
  assert chart.png.startswith(b"\x89PNG")


def test_long_names_end_within_the_chart():
  models = {
    f"{name} with a name that is rather long, for a model": [_results(*place)]
    for name, place in {"a": (80.0, 10.0), "b": (70.0, 50.0)}.items()
  }
  png = comparison.pareto_chart(_points(models)).png
  picture = plots.read_png(png)
  # The file grows with what sticks out of the chart's 7.2 inches.
  assert picture.shape[1] <= 7.2 * 200


def test_models_with_the_standard_map_alone_are_drawn_by_it():
  models = {
    name: [_results(80.0, ch, method="gradcam")]
    for name, ch in (("a", 1.0), ("b", 2.0))
  }
  assert "maps of Grad-CAM" in comparison.pareto_chart(_points(models)).unit


def test_the_csv_has_every_method():
  both = _results(80.0, 10.0) | _results(80.0, 9.0, method="gradcam")
  lines = comparison.pareto_csv(_points({"a, b": [both]})).splitlines()
  assert lines[1] == '"a, b",gradcam_elementwise,top1,80.0000,10.0000,1,1'
  assert lines[2].startswith('"a, b",gradcam,top1,80.0000,9.0000')
