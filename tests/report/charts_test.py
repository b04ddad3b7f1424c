"""An evaluation's pictures: curves, all methods side by side, sanity."""

import dataclasses
import re

import numpy as np
import pytest

from gc_jax.attribution import METHODS
from gc_jax.report import artefact, charts, lines, plots
from tests.report import evaluations


@pytest.fixture
def made(tmp_path):
  return evaluations.make(tmp_path / "e")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  """The charts of such an evaluation: drawing takes seconds."""
  return charts.charts(evaluations.make(tmp_path_factory.mktemp("e")))


def _svg(chart):
  """Returns all panels of a chart."""
  return " ".join(chart.svgs)


def _with_example(made, **changes):
  """Returns the evaluation with its first example alone, changed."""
  example = dataclasses.replace(made.examples[0], **changes)
  return dataclasses.replace(made, examples=[example])


def _strip_size(columns, rows, letters):
  """Returns height and width of a figure, in pixels."""
  width = (1.7 * columns + 0.065 * letters) * 160
  return pytest.approx((160 * (1.62 * rows + 0.35), width), abs=2)


def test_every_curve_becomes_a_chart_for_page_and_file(drawn):
  names = ["robustness", "insertion", "deletion", "randomization"]
  assert list(drawn) == names
  widths = [plots.read_png(chart.png).shape[1] for chart in drawn.values()]
  assert min(widths) > 700
  ids = []
  training = charts.training_charts(evaluations.metrics())
  for chart in (*drawn.values(), *training):
    assert "currentColor" in _svg(chart) and "var(--series-1)" in _svg(chart)
    assert not re.search(r"#[0-9a-f]{6}\b", _svg(chart))
    assert "http" not in _svg(chart)
    ids += sorted(set(re.findall(r'\bid="([^"]*)"', _svg(chart))))
  assert len(ids) == len(set(ids))


def test_all_curves_stand_below_each_other_pixel_for_pixel(drawn):
  stacked = plots.read_png(plots.stack(list(drawn.values())))
  pictures = [plots.read_png(chart.png) for chart in drawn.values()]
  gap_px = 90  # a title and what is left free, of each
  height = sum(len(picture) + gap_px for picture in pictures)
  width = max(picture.shape[1] for picture in pictures)
  assert stacked.shape[:2] == pytest.approx((height, width), abs=2)
  top = 0
  for picture in pictures:
    assert stacked[top : top + 50].min() < 128  # the title
    own = stacked[top + 50 :][: len(picture), : picture.shape[1]]
    # Within a pixel: a figure is as high as floats of inches say.
    errors = [
      np.abs(np.roll(own, shift, 0).astype(int) - picture).mean()
      for shift in (-1, 0, 1)
    ]
    assert min(errors) < 1.0
    top += len(picture) + gap_px


def test_curves_say_their_numbers(drawn):
  robustness = _svg(drawn["robustness"])
  assert "FGSM from 86.5 to 35 at ε in 1/255 64" in robustness
  assert "FGSM, any step up to ε from 86.5 to 5 at" in robustness
  assert "PGD from 86.5 to 0 at ε in 1/255 64" in robustness
  assert ">Uniform map<" in _svg(drawn["insertion"])  # the legend, as real text
  assert "var(--muted)" in _svg(drawn["insertion"])
  assert "cMWP from 1 to -0.02" in _svg(drawn["randomization"])
  assert ">layer3/1<" in _svg(drawn["randomization"])


def test_methods_stand_in_one_order_at_most_six_lines_together(made):
  # As its file has them, by name.
  curves = dataclasses.replace(
    made.curves, insertion=dict(sorted(made.curves.insertion.items()))
  )
  drawn = charts.charts(dataclasses.replace(made, curves=curves))
  titles = [METHODS[m].title for m in evaluations.METHODS]
  controls = {"Uniform map", "Centred Gaussian"}
  for name, most in (("insertion", 4), ("randomization", 6)):
    shown = []
    for svg in drawn[name].svgs:
      words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
      named = [word for word in words if word in titles]
      shown.append(named)
      assert (controls <= set(words)) == (name == "insertion")
    assert all(0 < len(named) <= most for named in shown)
    assert [word for named in shown for word in named] == titles
  assert len(drawn["robustness"].svgs) == 1


def test_names_stand_apart_beside_the_ends_of_their_lines():
  x = np.array([0.0, 1.0])
  near = [0.5, 0.501, 0.502, 0.9, 0.98, 1.0]
  drawn = [lines.Line(f"name {y}", x, np.array([0.0, y])) for y in near]
  chart = lines.line_chart("title", "unit", drawn, "x", y_limits=(0.0, 1.0))
  (svg,) = chart.svgs
  found = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>name ([\d.]+)', svg)
  assert len(found) == 6
  heights = {float(name): float(place) for place, name in found}
  ordered = [heights[y] for y in sorted(heights, reverse=True)]
  assert ordered == sorted(ordered)  # the highest line's name is the highest
  assert min(np.diff(ordered)) > 9.0  # points: the size of a letter
  alone = lines.line_chart("title", "unit", drawn[:1], "x")
  assert "name 0.5" not in re.sub(r'aria-label="[^"]*"', "", alone.svgs[0])


def test_lines_of_a_panel_look_different():
  x = np.array([0.0, 1.0])
  many = [lines.Line(str(n), x, x * n) for n in range(12)]
  svgs = lines.line_chart("title", "unit", many, "x").svgs
  assert len(svgs) == 2
  for svg in svgs:
    looks = re.findall(
      r'style="fill: none; (stroke-dasharray: [^;]*; )?[^"]*'
      r"(?:stroke: (var\(--series-\d\)))",
      svg,
    )
    assert len(looks) == 6 and len(set(looks)) == 6


def test_numbers_that_are_not_finite_break_a_line(made):
  values = made.curves.insertion
  values["cmwp"][3] = float("nan")
  values["gradcam"] = [float("nan")] * len(values["gradcam"])
  only = artefact.Curves(fractions=made.curves.fractions, insertion=values)
  made = dataclasses.replace(made, curves=only)
  svg = _svg(charts.charts(made)["insertion"])
  assert "nan" not in svg.lower()
  assert ">cMWP<" in svg and ">Grad-CAM<" not in svg


def test_methods_that_ignore_the_weights_are_flagged(made):
  found = charts.sanity(made)
  assert [one.title for one in found if one.verdict == "stays high"] == [
    found[0].title  # the worst first
  ]
  assert found[0].title == METHODS[[*METHODS][-1]].title
  made.curves.randomization["cmwp"][-1] = -0.8  # the same map upside down
  made.curves.randomization["gradcam"][-1] = float("nan")
  _, second, *_, last = charts.sanity(made)
  assert (second.title, second.verdict) == ("cMWP", "stays high")
  assert (last.title, last.verdict) == ("Grad-CAM", "not measured")


def test_the_figure_has_a_row_an_image_and_a_column_a_method(made):
  columns = 1 + len(evaluations.METHODS) + len(evaluations.CONTROLS)
  one = plots.read_png(charts.methods_figure(_with_example(made)))
  three = plots.read_png(charts.methods_figure(made))
  assert one.shape[1] == three.shape[1]
  assert one.shape[1] == pytest.approx(1.7 * columns * 160, rel=0.03)
  assert len(three) - len(one) == pytest.approx(2 * 1.62 * 160, abs=2)


def test_the_sanity_strip_has_the_trained_map_and_every_stage(made):
  strip = plots.read_png(charts.sanity_figure(made))
  columns = 1 + len(evaluations.STAGES)
  assert strip.shape[:2] == _strip_size(columns, 3, letters=22)


def test_stages_without_a_map_leave_gaps_in_the_strip(made):
  cam = made.examples[0].maps["cmwp"]
  randomized = {"gradcam": {"layer4": cam}, "cmwp": {"stem": cam}}
  only = _with_example(made, randomized=randomized)
  strip = plots.read_png(charts.sanity_figure(only))
  # trained, layer4, stem
  assert strip.shape[:2] == _strip_size(3, 2, letters=8)


def test_many_stages_are_thinned_in_the_strip_and_turned_in_the_chart(made):
  stages = [f"trunk.{n}" for n in range(17, 0, -1)]
  cam = made.examples[0].maps["gradcam"]
  many = dataclasses.replace(
    _with_example(made, randomized={"gradcam": dict.fromkeys(stages, cam)}),
    curves=artefact.Curves(
      stages=stages,
      randomization={"gradcam": [n / 20 for n in range(17, 0, -1)]},
    ),
  )
  strip = plots.read_png(charts.sanity_figure(many))
  assert strip.shape[:2] == _strip_size(9, 1, letters=8)
  svg = _svg(charts.charts(many)["randomization"])
  for stage in stages:
    turned = rf"<text[^>]*rotate\(-90[^>]*>{re.escape(stage)}</text>"
    assert re.search(turned, svg), stage
  few = artefact.Curves(
    stages=["head", "stem"], randomization={"gradcam": [0.5, 0.1]}
  )
  few = charts.charts(dataclasses.replace(made, curves=few))
  assert "rotate(-90" not in _svg(few["randomization"])


# Of training.


def _titles(lines):
  return [chart.title for chart in charts.training_charts(lines)]


def test_a_run_has_the_curves_of_what_it_logged():
  lines = evaluations.metrics()
  titles = ["Loss", "Parts of the training loss", "Top-1"]
  assert _titles(evaluations.metrics(consistency=False)) == titles
  assert _titles([]) == []
  # A constant weight needs no chart.
  assert _titles(lines) == [*titles, "Gradient at the features"]
  lines[0]["train/consistency_weight"] = 5.0  # the ramp
  assert _titles(lines) == [
    *titles,
    "Weight of the consistency loss",
    "Gradient at the features",
  ]


def test_any_guidance_term_has_its_curves():
  lines = [
    {
      "step": step,
      "train/classification_loss": 1.0,
      "train/energy_loss": 0.5 / step,
      "train/energy_weight": 2.0 * step,
      "train/grad_norm_features/energy": 0.25,
    }
    for step in (1, 2)
  ]
  parts, weight, norms = charts.training_charts(lines)
  assert "λ × energy from 1 to 1 at step 2" in _svg(parts)
  assert weight.title == "Weight of the energy loss"
  assert "λ from 2 to 4" in _svg(weight)
  assert "energy from 0.25 to 0.25" in _svg(norms)


def test_a_chart_says_its_numbers_to_those_who_do_not_see_it():
  lines = [{"step": 1, "train/loss": 2.5}, {"step": 9, "train/loss": 0.75}]
  (chart,) = charts.training_charts(lines)
  assert 'aria-label="Loss (nats): training from 2.5 to 0.75 at step 9."' in (
    _svg(chart)
  )


def test_numbers_of_training_that_are_not_finite_are_counted():
  lines = evaluations.metrics()
  lines[4]["train/loss"] = lines[4]["train/consistency_loss"] = None
  assert charts.count_not_finite(lines) == 1
  assert "nan" not in _svg(charts.training_charts(lines)[0]).lower()
