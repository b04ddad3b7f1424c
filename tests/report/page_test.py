"""The report page: complete, self-contained, tolerant of missing parts."""

import dataclasses

import pytest

from gc_jax.report.page import write_report
from tests.report import pages, workdirs


@pytest.fixture
def gc(tmp_path):
  return workdirs.write_finished(tmp_path / "gc", ch=21.4, top1=86.1)


@pytest.fixture
def baseline(tmp_path):
  return workdirs.write_finished(
    tmp_path / "base", ch=13.0, loss__consistency_weight=0.0
  )


def test_the_page_needs_no_other_file(gc):
  page, source = pages.load(write_report(gc))
  pages.assert_self_contained(page, source)
  assert len(page.images()) == 5 * 4  # examples times pictures
  assert [p.name for p in gc.glob("*.tmp")] == []


def test_the_page_holds_the_numbers_to_one_decimal(gc):
  page, _ = pages.load(write_report(gc))
  for number in ("86.1", "21.4", "20.4", "30.1", "36.9", "63.5", "62.0"):
    assert number in page.text
  for number in ("42.2 ± 0.3", "41.2 ± 0.4", "75.0", "8.2", "12.5%"):
    assert number in page.text
  assert "86.1% of the 1,000 evaluation images" in page.text
  assert "A uniform map scores 8.2" in page.text
  assert "4,903,242" in page.text
  assert "λ = 25, packed composites, seed 0." in page.text
  assert "loss.consistency_weight" in page.text


def test_examples_stand_under_their_headings(gc):
  page, _ = pages.load(write_report(gc))
  places = [page.text.index(w) for w in ("Best", "Typical", "Worst")]
  assert places == sorted(places)
  assert "✗ predicted two <&>" in page.text
  assert "✓ predicted so" in page.text


def test_without_a_baseline_the_page_says_how_to_get_one(gc):
  page, _ = pages.load(write_report(gc))
  assert "--config.loss.consistency_weight=0" in page.text
  assert "What changed" not in page.text


def test_a_baseline_adds_its_row_the_changes_and_its_maps(gc, baseline):
  page, source = pages.load(write_report(gc, baseline))
  pages.assert_self_contained(page, source)
  assert "+8.4 against Baseline (better)" in page.text
  assert "−0.4 against Baseline (worse)" in page.text
  assert '<strong class="best">21.4</strong>' in source
  assert "Before: CH 16.0" in page.text  # 13.0 + index 3
  assert "This run: CH 24.4" in page.text
  assert "+8.4 points" in page.text
  assert len(page.images()) == 3 * 4 + 2 * 3


def test_a_baseline_of_the_same_configuration_is_told_apart(tmp_path, gc):
  other = workdirs.write_finished(tmp_path / "other", seed=1)
  page, _ = pages.load(write_report(gc, other))
  assert "GC, seed 0" in page.text and "GC, seed 1" in page.text


def test_a_baseline_on_other_data_is_refused(tmp_path, gc):
  other = workdirs.write_finished(tmp_path / "other", data__name="imagenet")
  with pytest.raises(ValueError, match="Compare runs on the same data"):
    write_report(gc, other)


def test_a_run_without_the_loss_points_to_it(baseline):
  page, _ = pages.load(write_report(baseline))
  assert "without the consistency loss, seed 0." in page.text
  assert "--config.loss.consistency_weight=25" in page.text


@pytest.mark.parametrize(
  "parts",
  [
    {},
    {"metrics": []},
    {"results": {"val/top1": 80.0}},
    {"results": workdirs.results(), "examples": []},
    {"metrics": [{"step": 1, "train/loss": None}]},
  ],
)
def test_missing_parts_leave_their_sections_out(tmp_path, parts):
  path = workdirs.write(tmp_path / "run", workdirs.config(), **parts)
  page, source = pages.load(write_report(path))
  pages.assert_self_contained(page, source)
  assert ("No final evaluation yet" in page.text) == ("results" not in parts)
  assert "nan" not in page.text.lower()
  assert "None" not in page.text


def test_numbers_that_were_not_finite_are_announced(tmp_path):
  lines = [
    *workdirs.metrics(),
    {"step": 321, "epoch": 10.1, "train/loss": None},
  ]
  path = workdirs.write(
    tmp_path / "run", workdirs.config(), workdirs.results(), lines
  )
  page, _ = pages.load(write_report(path))
  assert "1 logged line holds a number that was not finite" in page.text


def test_multi_label_results_show_f1(tmp_path):
  results = workdirs.results(
    **{"val/f1_per_class": 55.5, "val/f1_overall": 66.6, "val/map": 70.1}
  )
  del results["val/top1"]
  results["val/a/new/kind"] = {"of": ["result"]}
  examples = [workdirs.example(1, "worst")]
  path = workdirs.write(
    tmp_path / "run", workdirs.config(), results, [], examples
  )
  page, _ = pages.load(write_report(path))
  assert "scored highest: two <&>" in page.text
  assert "✗" not in page.text
  assert "F1-Overall ↑" in page.text and "66.6" in page.text
  assert "Top-1" not in page.text


def test_empty_maps_are_counted(tmp_path):
  results = workdirs.results(
    **{"val/gradcam_elementwise/zero_map_frac": 0.0325}
  )
  path = workdirs.write(tmp_path / "run", workdirs.config(), results)
  page, _ = pages.load(write_report(path))
  assert "3.2% of the element-wise maps were zero everywhere" in page.text


def test_an_empty_map_makes_no_trouble(tmp_path):
  example = workdirs.example(1, "worst")
  example = dataclasses.replace(
    example, cam=example.cam * 0, composite_cam=example.composite_cam * 0
  )
  path = workdirs.write(
    tmp_path / "run", workdirs.config(), workdirs.results(), [], [example]
  )
  page, _ = pages.load(write_report(path))
  assert len(page.images()) == 4
