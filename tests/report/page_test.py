"""The page of a run or an evaluation: complete, self-contained, tolerant."""

import csv
import dataclasses
import re

import numpy as np
import pytest

from gc_jax.attribution import title_of
from gc_jax.report import artefact, page
from gc_jax.report.page import write_report
from tests.report import evaluations, pages


@pytest.fixture
def gc(tmp_path):
  return evaluations.write_run(tmp_path / "gc", ch=21.4, top1=86.1)


@pytest.fixture
def baseline(tmp_path):
  return evaluations.write_run(
    tmp_path / "base", ch=13.0, loss__consistency_weight=0.0
  )


def test_the_page_needs_no_other_file(gc):
  html, source = pages.load(write_report(gc))
  pages.assert_self_contained(html, source)
  assert len(html.images()) == 5 * 4  # examples times pictures
  assert [p.name for p in gc.glob("*.tmp")] == []


def test_the_page_holds_the_numbers_to_one_decimal(gc):
  html, _ = pages.load(write_report(gc))
  for number in ("86.1", "21.4", "20.4", "40.0", "41.0", "61.6", "60.6"):
    assert number in html.text
  for number in ("41.9 ± 0.1", "40.9 ± 0.1", "75.0", "8.0", "12.5%"):
    assert number in html.text
  assert "86.1% of the 1,000 evaluation images" in html.text
  assert "A uniform map scores 8.0" in html.text
  assert "4,903,242" in html.text
  assert "packed composites, seed 0. Evaluated on 1,000 images" in html.text
  assert "loss.consistency_weight" in html.text


def test_examples_stand_under_their_headings(gc):
  html, _ = pages.load(write_report(gc))
  places = [html.text.index(w) for w in ("Best", "Typical", "Worst")]
  assert places == sorted(places)
  assert "✗ predicted two <&>" in html.text
  assert "✓ predicted so" in html.text


def test_without_a_baseline_the_page_says_how_to_get_one(gc):
  html, _ = pages.load(write_report(gc))
  assert "--config.loss.consistency_weight=0" in html.text
  assert "What changed" not in html.text


def test_a_baseline_adds_its_row_the_changes_and_its_maps(gc, baseline):
  html, source = pages.load(write_report(gc, baseline))
  pages.assert_self_contained(html, source)
  assert "+8.4 against ResNet18 Baseline (better)" in html.text
  assert "−0.4 against ResNet18 Baseline (worse)" in html.text
  assert '<strong class="best">21.4</strong>' in source
  assert "Before: 16.0%" in html.text  # 13.0 + index 3
  assert "This run: 24.4%" in html.text
  assert "+8.4 points" in html.text
  assert len(html.images()) == 3 * 4 + 2 * 3


def test_a_baseline_of_the_same_configuration_is_told_apart(tmp_path, gc):
  other = evaluations.write_run(tmp_path / "other", seed=1)
  html, _ = pages.load(write_report(gc, other))
  assert "GC, seed 0" in html.text and "GC, seed 1" in html.text


def test_a_baseline_on_other_data_is_refused(tmp_path, gc):
  other = evaluations.write_run(tmp_path / "other", data__name="imagenet")
  with pytest.raises(ValueError, match="evaluated on the same data"):
    write_report(gc, other)


def test_a_run_without_the_loss_points_to_it(baseline):
  html, _ = pages.load(write_report(baseline))
  assert "without the consistency loss, seed 0." in html.text
  assert "--config.loss.consistency_weight=25" in html.text


@pytest.mark.parametrize(
  "parts",
  [
    {},
    {"training": []},
    {"results": {"val/top1": 80.0}},
    {"results": evaluations.run_results(), "examples": []},
    {"training": [{"step": 1, "train/loss": None}]},
  ],
)
def test_missing_parts_leave_their_sections_out(tmp_path, parts):
  path = tmp_path / "run"
  if "results" in parts:
    evaluations.write_run(path, training=[], **parts)
  else:
    evaluations.write_unfinished(path, evaluations.config(), **parts)
  html, source = pages.load(write_report(path))
  pages.assert_self_contained(html, source)
  assert ("No final evaluation yet" in html.text) == ("results" not in parts)
  assert "nan" not in html.text.lower()
  assert "None" not in html.text.partition("All final numbers")[0]


@pytest.mark.parametrize("write", ["write_run_of_before", "write_of_before"])
def test_folders_of_before_have_their_page(tmp_path, write):
  path = getattr(evaluations, write)(tmp_path / "x")
  html, source = pages.load(write_report(path))
  pages.assert_self_contained(html, source)
  assert "GC on context digits" in html.text and len(html.images()) > 4


def test_numbers_that_were_not_finite_are_announced(tmp_path):
  lines = [
    *evaluations.metrics(),
    {"step": 321, "epoch": 10.1, "train/loss": None},
  ]
  path = evaluations.write_run(tmp_path / "run", training=lines)
  html, _ = pages.load(write_report(path))
  assert "1 logged line holds a number that was not finite" in html.text


def test_multi_label_results_show_f1(tmp_path):
  results = evaluations.run_results(
    **{"val/f1_per_class": 55.5, "val/f1_overall": 66.6}
  )
  for name in ("top1", "top1_low", "top1_high", "top5"):
    del results[f"val/{name}"]
  results["val/a/new/kind"] = {"of": ["result"]}
  examples = [evaluations.run_example(1, "worst")]
  path = evaluations.write_run(
    tmp_path / "run", results=results, examples=examples, training=[]
  )
  html, _ = pages.load(write_report(path))
  assert "scored highest: two <&>" in html.text
  assert "✗" not in html.text
  assert "F1-Overall ↑" in html.text and "66.6" in html.text
  assert "Top-1" not in html.text


def test_empty_maps_are_counted_and_make_no_trouble(tmp_path):
  results = evaluations.run_results(
    **{"val/gradcam_elementwise/zero_map_frac": 0.0325}
  )
  example = evaluations.run_example(1, "worst")
  empty = lambda maps: {method: cam * 0 for method, cam in maps.items()}
  example = dataclasses.replace(
    example,
    maps=empty(example.maps),
    composite_maps=empty(example.composite_maps),
  )
  path = evaluations.write_run(
    tmp_path / "run", results=results, examples=[example]
  )
  html, _ = pages.load(write_report(path))
  assert "3.2% of the maps of Grad-CAM, element-wise were zero" in html.text
  assert len(html.images()) == 4


# Of an evaluation, with the files beside it.


@pytest.fixture
def made(tmp_path):
  """An evaluation of two methods and the controls: small pages are quick."""
  return evaluations.make(
    tmp_path / "eval",
    methods=("gradcam_elementwise", "smoothgrad"),
    costly_methods=("smoothgrad",),
  )


def _write(evaluation):
  paths = page.write_evaluation(evaluation)
  assert all(path.is_file() for path in paths)
  return pages.load(evaluation.folder / "report.html")


def test_every_file_is_written_and_named_on_the_page(made):
  html, source = _write(made)
  pages.assert_self_contained(html, source)
  names = {path.name for path in made.folder.iterdir()}
  assert names == set(page.FILENAMES)
  for name in (*names, *artefact.FILENAMES):
    assert name in html.text
  for name in ("tables.md", "tables.tex"):
    assert "Table 1" in (made.folder / name).read_text(encoding="utf-8")
  with (made.folder / "tables.csv").open(encoding="utf-8") as file:
    assert {line["kind"] for line in csv.DictReader(file)} == {
      "model",
      "control",
    }


def test_every_method_is_named_with_its_maps(tmp_path):
  made = evaluations.make(tmp_path / "eval")
  html, source = _write(made)
  pages.assert_self_contained(html, source)
  alts = " ".join(image["alt"] for image in html.images())
  for method in (*evaluations.METHODS, *evaluations.CONTROLS):
    title = title_of(method)
    assert title != method
    assert title in html.text
    assert f" by {title}: " in alts
  maps = 1 + len(evaluations.METHODS) + len(evaluations.CONTROLS)
  assert len(html.images()) == 3 * maps + 1  # and the strip of stages


def test_the_page_says_what_was_measured_how(made):
  html, _ = _write(made)
  for words in (
    "ResNet18 GC on context digits",
    "Evaluated on 1,000 images of context digits, split test.",
    "86.5% of the 1,000 evaluation images",
    "95% interval 84.4 to 88.4",
    "A uniform map scores 8.0",
    "Protocol “paper”",
    "within 15 pixels of it (at 224×224)",
    "Table 1: Grad-CAM, context digits",
    "Table 6: accuracy under adversarial attack",
    "Measured on 100 of the 1,200 (image, class) pairs, as they take many "
    "passes each: SmoothGrad, Insertion, Deletion, MaxBoxAcc 0.5, MaxBoxAccV2, "
    "PGD.",
    "PGD was measured on the images of 100 of the 1,200",
    "programs compiled14",  # a term and its description
    "model.name",
  ):
    assert words in html.text, words
  for heading in ("Robustness", "Sanity check", "By class"):
    assert heading in html.text


def test_the_sanity_check_is_in_words_with_those_that_fail(made):
  html, _ = _write(made)
  assert "SmoothGrad: still 0.5 or more" in html.text
  made.curves.randomization["smoothgrad"][-1] = 0.1
  html, _ = _write(made)
  assert "Every method's maps change" in html.text
  assert "still 0.5 or more" not in html.text


def test_classes_have_their_rows(made):
  html, source = _write(made)
  assert "3 classes; maps of Grad-CAM, element-wise" in html.text
  row = re.search(
    r"<tr><th scope=\"row\">two &lt;&amp;&gt;</th>.*?</tr>", source, re.S
  )
  assert "<td>86.5</td>" in row[0] and "<td>30.0</td>" in row[0]


def test_the_share_below_a_map_is_that_on_the_object(made):
  example = made.examples[0]
  cam = np.zeros((16, 16), np.float32)
  cam[2:4, 3] = 0.375  # on the object
  cam[10, 10] = 0.25
  maps = {"gradcam_elementwise": cam, "smoothgrad": cam * 0}
  only = dataclasses.replace(
    made, examples=[dataclasses.replace(example, maps=maps)]
  )
  html, _ = _write(only)
  assert "Grad-CAM, element-wise: 75.0%" in html.text
  assert "SmoothGrad: empty" in html.text


def test_the_page_counts_the_pairs_of_the_sanity_check(tmp_path):
  made = evaluations.make(
    tmp_path / "e", methods=("gradcam",), settings={"eval.sanity_rows": 8}
  )
  html, _ = _write(made)
  assert "sanity check are means over 8 pairs at most" in html.text


def test_an_evaluation_of_accuracy_alone_leaves_the_rest_out(tmp_path, made):
  _write(made)
  bare = dataclasses.replace(
    evaluations.bare(tmp_path / "x"), folder=made.folder
  )
  html, source = _write(bare)
  pages.assert_self_contained(html, source)
  assert "80.0% of the 1,000 evaluation images" in html.text
  assert "Measured on" not in html.text
  for heading in (
    "Robustness",
    "Sanity check",
    "By class",
    "What the maps look at",
  ):
    assert heading not in html.text
  assert "nan" not in html.text.lower()
  # What the earlier evaluation left is gone: it is another model's.
  assert sorted(path.name for path in made.folder.iterdir()) == [
    "report.html",
    "tables.csv",
    "tables.md",
    "tables.tex",
  ]


def test_an_evaluation_without_any_number_still_has_a_page(tmp_path):
  empty = dataclasses.replace(evaluations.bare(tmp_path / "e"), results={})
  html, _ = _write(empty)
  assert "No number was measured" in html.text


def test_several_classes_a_picture_are_not_called_wrong(tmp_path):
  made = evaluations.make(
    tmp_path / "e", multi_label=True, methods=("gradcam",)
  )
  html, _ = _write(made)
  assert "scored highest: two <&>" in html.text and "✗" not in html.text
  assert "F1-Overall" in html.text and "Table 2: Grad-CAM" in html.text
  assert "Map numbers above are of Grad-CAM, of the" in html.text


def test_the_release_protocol_is_told_apart(tmp_path):
  made = evaluations.make(tmp_path / "e", protocol="release", methods=())
  html, _ = _write(made)
  assert "Protocol “release”" in html.text and "at 224×224" not in html.text
