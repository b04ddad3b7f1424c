"""The page of an evaluation, and the files beside it."""

import csv
import dataclasses
import re

import numpy as np
import pytest

from gc_jax.report import evaluated, evaluation_page, tables
from tests.report import evaluations, pages


@pytest.fixture
def made(tmp_path):
  """An evaluation of two methods and the controls: small pages are quick."""
  return evaluations.make(
    tmp_path / "eval",
    methods=("gradcam_elementwise", "smoothgrad"),
    costly_methods=("smoothgrad",),
  )


def _write(evaluation):
  paths = evaluation_page.write_evaluation(evaluation)
  assert all(path.is_file() for path in paths)
  return pages.load(evaluation.folder / "report.html")


def test_every_file_is_written_and_named_on_the_page(made):
  page, source = _write(made)
  pages.assert_self_contained(page, source)
  names = {path.name for path in made.folder.iterdir()}
  assert names == set(evaluation_page.FILENAMES)
  for name in (*names, *evaluated.FILENAMES):
    assert name in page.text
  for name in ("tables.md", "tables.tex"):
    assert "Table 1" in (made.folder / name).read_text(encoding="utf-8")
  with (made.folder / "tables.csv").open(encoding="utf-8") as file:
    assert {line["kind"] for line in csv.DictReader(file)} == {
      "model",
      "control",
    }


def test_every_method_is_named_with_its_maps(tmp_path):
  made = evaluations.make(tmp_path / "eval")
  page, source = _write(made)
  pages.assert_self_contained(page, source)
  alts = " ".join(image["alt"] for image in page.images())
  for method in (*evaluations.METHODS, *evaluations.CONTROLS):
    title = tables.METHOD_TITLES[method]
    assert title != method
    assert title in page.text
    assert f"map by {title}: " in alts
  maps = 1 + len(evaluations.METHODS) + len(evaluations.CONTROLS)
  assert len(page.images()) == 3 * maps + 1  # and the strip of stages


def test_the_page_says_what_was_measured_how(made):
  page, _ = _write(made)
  for words in (
    "ResNet18 GC on context digits",
    "evaluated on 1,000 images of context digits, split test.",
    "86.5% of the 1,000 evaluation images",
    "95% interval 84.4 to 88.4",
    "A uniform map scores 8.0",
    "Protocol “paper”",
    "within 15 pixels of it (at 224×224)",
    "Table 1: Grad-CAM, context digits",
    "Table 6: accuracy under adversarial attack",
    "Measured on 100 of the 1,200 (image, class) pairs, as they take many "
    "passes each: SmoothGrad, insertion, deletion, boxes, PGD.",
    "PGD was measured on the images of 100 of the 1,200",
    "programs compiled14",  # a term and its description
    "tolerance_px",
    "model.name",
  ):
    assert words in page.text, words
  for heading in ("Robustness", "Sanity check", "By class"):
    assert heading in page.text


def test_the_sanity_check_is_in_words_with_those_that_fail(made):
  page, _ = _write(made)
  assert "SmoothGrad: still 0.5 or more" in page.text
  made.curves.randomization["smoothgrad"][-1] = 0.1
  page, _ = _write(made)
  assert "Every method's maps change" in page.text
  assert "still 0.5 or more" not in page.text


def test_classes_have_their_rows(made):
  page, source = _write(made)
  assert "3 classes; maps of Grad-CAM, element-wise" in page.text
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
  page, _ = _write(only)
  assert "Grad-CAM, element-wise: 75%" in page.text
  assert "SmoothGrad: empty" in page.text


def test_the_page_counts_the_pairs_of_the_sanity_check(tmp_path):
  made = evaluations.make(
    tmp_path / "e", methods=("gradcam",), settings={"sanity_rows": 8}
  )
  page, _ = _write(made)
  assert "sanity check are means over 8 pairs at most" in page.text


def test_an_evaluation_of_accuracy_alone_leaves_the_rest_out(tmp_path, made):
  _write(made)
  bare = dataclasses.replace(
    evaluations.bare(tmp_path / "x"), folder=made.folder
  )
  page, source = _write(bare)
  pages.assert_self_contained(page, source)
  assert "80.0% of the 1,000 evaluation images" in page.text
  assert "Measured on" not in page.text
  for heading in ("Robustness", "Sanity check", "By class", "every method"):
    assert heading not in page.text
  assert "None" not in page.text and "nan" not in page.text.lower()
  # What the earlier evaluation left is gone: it is another model's.
  assert sorted(path.name for path in made.folder.iterdir()) == [
    "report.html",
    "tables.csv",
    "tables.md",
    "tables.tex",
  ]


def test_an_evaluation_without_any_number_still_has_a_page(tmp_path):
  empty = dataclasses.replace(evaluations.bare(tmp_path / "e"), results={})
  page, _ = _write(empty)
  assert "No number was measured" in page.text


def test_several_classes_a_picture_are_not_called_wrong(tmp_path):
  made = evaluations.make(
    tmp_path / "e", multi_label=True, methods=("gradcam",)
  )
  page, _ = _write(made)
  assert "scored highest: two <&>" in page.text and "✗" not in page.text
  assert "F1-Overall" in page.text and "Table 2: Grad-CAM" in page.text
  assert "Map numbers above are of Grad-CAM, of the" in page.text


def test_a_file_that_does_not_say_its_loss_is_not_given_one(tmp_path):
  made = evaluations.make(
    tmp_path / "e", consistency=None, source="x/best.pth", methods=()
  )
  page, _ = _write(made)
  assert "ResNet18 (best.pth) on context digits" in page.text
  assert "whether with the consistency loss, its file does not say" in page.text


def test_the_release_protocol_is_told_apart(tmp_path):
  made = evaluations.make(tmp_path / "e", protocol="release", methods=())
  page, _ = _write(made)
  assert "Protocol “release”" in page.text and "at 224×224" not in page.text
