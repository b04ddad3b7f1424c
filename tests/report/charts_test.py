"""An evaluation's pictures: curves, all methods side by side, sanity."""

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from gc_jax.attribution import METHODS
from gc_jax.report import charts, pictures, plots, tables
from tests.report import evaluations


@pytest.fixture
def made(tmp_path):
  return evaluations.make(tmp_path / "e")


def _open(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_curve_becomes_a_chart_for_page_and_file(made):
  drawn = charts.charts(made)
  assert list(drawn) == [
    "robustness",
    "insertion",
    "deletion",
    "randomization",
  ]
  assert all(_open(chart.png).shape[1] > 700 for chart in drawn.values())
  ids = []
  training = charts.training_charts(evaluations.metrics())
  for chart in (*drawn.values(), *training):
    assert "currentColor" in chart.svg and "var(--series-1)" in chart.svg
    assert not re.search(r"#[0-9a-f]{6}\b", chart.svg)
    assert "http" not in chart.svg
    ids += sorted(set(re.findall(r'\bid="([^"]*)"', chart.svg)))
  assert len(ids) == len(set(ids))


def test_all_curves_stand_below_each_other_pixel_for_pixel(made):
  drawn = list(charts.charts(made).values())
  stacked = _open(plots.stack(drawn))
  shapes = [_open(chart.png).shape for chart in drawn]
  gap_px = 90  # a title and what is left free, of each
  assert stacked.shape[0] == pytest.approx(
    sum(shape[0] + gap_px for shape in shapes), abs=2
  )
  assert stacked.shape[1] == pytest.approx(max(s[1] for s in shapes), abs=1)
  top = 0
  for chart, (height, width, _) in zip(drawn, shapes, strict=True):
    title = stacked[top : top + 50]
    assert title.min() < 128 and title.shape[0] == 50
    own = stacked[top + 50 : top + 50 + height, :width]
    # Within a pixel: a figure is as high as floats of inches say.
    errors = [
      np.abs(np.roll(own, shift, 0).astype(int) - _open(chart.png)).mean()
      for shift in (-1, 0, 1)
    ]
    assert min(errors) < 1.0
    top += height + gap_px


def test_curves_say_their_numbers(made):
  drawn = charts.charts(made)
  robustness = drawn["robustness"].svg
  assert "FGSM from 86.5 to 35 at ε in 1/255 64" in robustness
  assert "FGSM, any step up to ε from 86.5 to 5 at" in robustness
  assert "PGD from 86.5 to 0 at ε in 1/255 64" in robustness
  for chart in ("insertion", "deletion", "randomization"):
    for word in ("Grad-CAM, element-wise", "cMWP", "SmoothGrad"):
      assert f">{word}<" in drawn[chart].svg  # the legend, as real text
  assert ">Uniform map<" in drawn["insertion"].svg
  assert "var(--muted)" in drawn["insertion"].svg
  assert "cMWP from 1 to -0.02" in drawn["randomization"].svg
  assert ">layer3/1<" in drawn["randomization"].svg


def test_a_method_has_the_same_place_in_every_chart(made):
  # As its file has them, by name.
  curves = dataclasses.replace(
    made.curves, insertion=dict(sorted(made.curves.insertion.items()))
  )
  drawn = charts.charts(dataclasses.replace(made, curves=curves))
  titles = [METHODS[m].title for m in evaluations.METHODS]
  for name in ("insertion", "randomization"):
    words = re.findall(r"<text[^>]*>([^<]*)</text>", drawn[name].svg)
    assert [word for word in words if word in titles] == titles


def test_lines_of_many_methods_look_different():
  x = np.array([0.0, 1.0])
  lines = [plots.Line(str(n), x, x) for n in range(12)]
  looks = plots._looks(lines, plots._PAPER)
  assert len(set(looks)) == 12


def test_without_curves_there_are_no_charts(tmp_path):
  bare = evaluations.bare(tmp_path / "e")
  assert charts.charts(bare) == {}
  assert charts.methods_figure(bare) is None
  assert charts.sanity_figure(bare) is None
  assert charts.sanity(bare) == []


def test_numbers_that_are_not_finite_break_a_line(made):
  values = made.curves.insertion
  values["cmwp"][3] = float("nan")
  values["gradcam"] = [float("nan")] * len(values["gradcam"])
  svg = charts.charts(made)["insertion"].svg
  assert "nan" not in svg.lower()
  assert ">cMWP<" in svg and ">Grad-CAM<" not in svg


def test_methods_that_ignore_the_weights_are_flagged(made):
  found = charts.sanity(made)
  assert [s.title for s in found if s.verdict == "stays high"] == ["SmoothGrad"]
  assert found[0].title == "SmoothGrad"  # the worst first
  made.curves.randomization["cmwp"][-1] = -0.8  # the same map upside down
  assert charts.sanity(made)[1].verdict == "stays high"
  made.curves.randomization["gradcam"][-1] = float("nan")
  last = charts.sanity(made)[-1]
  assert (last.title, last.verdict) == ("Grad-CAM", "not measured")


def test_the_figure_has_a_row_an_image_and_a_column_a_method(made):
  small = dataclasses.replace(made, examples=made.examples[:1])
  one = _open(charts.methods_figure(small))
  all_rows = _open(charts.methods_figure(made))
  columns = 1 + len(evaluations.METHODS) + len(evaluations.CONTROLS)
  assert one.shape[1] == all_rows.shape[1]
  assert one.shape[1] == pytest.approx(1.7 * columns * 160, rel=0.03)
  assert all_rows.shape[0] - one.shape[0] == pytest.approx(
    2 * 1.62 * 160, abs=2
  )


def test_the_controls_stand_last_and_unknown_methods_before_them(made):
  example = made.examples[0]
  maps = {"uniform": example.maps["uniform"], "new": example.maps["gradcam"]}
  maps |= {"gradcam": example.maps["gradcam"]}
  assert tables.in_order(maps) == ["gradcam", "new", "uniform"]


def test_the_sanity_strip_has_the_trained_map_and_every_stage(made):
  strip = _open(charts.sanity_figure(made))
  assert strip.shape[1] == pytest.approx(
    (1.7 * (1 + len(evaluations.STAGES)) + 0.065 * 22) * 160, abs=2
  )
  assert strip.shape[0] == pytest.approx((3 * 1.62 + 0.35) * 160, abs=2)


def test_stages_without_a_map_leave_gaps(made):
  example = made.examples[0]
  randomized = {"gradcam": {"layer4": example.randomized["gradcam"]["layer4"]}}
  randomized["cmwp"] = {"stem": example.maps["cmwp"]}
  only = dataclasses.replace(
    made, examples=[dataclasses.replace(example, randomized=randomized)]
  )
  strip = _open(charts.sanity_figure(only))
  assert strip.shape[1] == pytest.approx(
    (1.7 * 3 + 0.065 * 8) * 160, abs=2
  )  # trained, layer4, stem


def test_many_stages_are_thinned_in_the_strip_and_turned_in_the_chart(made):
  stages = [f"trunk.{n}" for n in range(17, 0, -1)]
  cam = made.examples[0].maps["gradcam"]
  example = dataclasses.replace(
    made.examples[0], randomized={"gradcam": dict.fromkeys(stages, cam)}
  )
  curves = dataclasses.replace(
    made.curves,
    stages=stages,
    randomization={"gradcam": [n / 20 for n in range(17, 0, -1)]},
  )
  many = dataclasses.replace(made, curves=curves, examples=[example])
  strip = _open(charts.sanity_figure(many))
  assert strip.shape[1] == pytest.approx((1.7 * 9 + 0.065 * 8) * 160, abs=2)
  svg = charts.charts(many)["randomization"].svg
  for stage in stages:
    turned = rf"<text[^>]*rotate\(-90[^>]*>{re.escape(stage)}</text>"
    assert re.search(turned, svg), stage
  assert "rotate(-90" not in charts.charts(made)["randomization"].svg


def test_photographs_are_embedded_small_and_pixel_art_crisp():
  rng = np.random.default_rng(0)
  photograph = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
  assert pictures.compact_uri(photograph).startswith("data:image/jpeg;base64,")
  enlarged = pictures.enlarge_image(photograph[:16, :16], 16)
  assert pictures.compact_uri(enlarged) == pictures.as_data_uri(
    pictures.png_bytes(enlarged)
  )


# Of training.


def test_a_run_with_the_consistency_loss_has_its_curves():
  lines = evaluations.metrics()
  lines[0]["train/consistency_weight"] = 5.0  # the ramp
  titles = [chart.title for chart in charts.training_charts(lines)]
  assert titles == [
    "Loss",
    "Parts of the training loss",
    "Top-1",
    "Weight of the consistency loss",
    "Gradient at the features",
  ]


def test_charts_without_numbers_are_left_out():
  lines = evaluations.metrics(consistency=False)
  titles = [chart.title for chart in charts.training_charts(lines)]
  assert titles == ["Loss", "Parts of the training loss", "Top-1"]
  assert charts.training_charts([]) == []


def test_a_constant_weight_needs_no_chart():
  titles = [
    chart.title for chart in charts.training_charts(evaluations.metrics())
  ]
  assert "Weight of the consistency loss" not in titles


def test_a_chart_says_its_numbers_to_those_who_do_not_see_it():
  lines = [{"step": 1, "train/loss": 2.5}, {"step": 9, "train/loss": 0.75}]
  (chart,) = charts.training_charts(lines)
  assert 'aria-label="Loss (nats): training from 2.5 to 0.75 at step 9."' in (
    chart.svg
  )


def test_numbers_that_are_not_finite_break_the_line_and_are_counted():
  lines = evaluations.metrics()
  lines[4]["train/loss"] = None
  lines[4]["train/consistency_loss"] = None
  assert charts.count_not_finite(lines) == 1
  assert "nan" not in charts.training_charts(lines)[0].svg.lower()
