"""The page of a run or an evaluation: complete, self-contained, tolerant."""

import csv
import dataclasses
import html.parser
import re

import numpy as np
import pytest

from gc_jax.attribution import title_of
from gc_jax.method.metrics import Key
from gc_jax.report import artefact, page, paper, tables
from gc_jax.report.page import write_report
from tests.report import evaluations

_EMBEDDED = ("data:image/png;base64,", "data:image/jpeg;base64,")
_VOID = {"meta", "img", "br", "link", "input", "hr"}
ELEMENTWISE = "gradcam_elementwise"


class Page(html.parser.HTMLParser):
  """A page as a browser reads it; its tags close in order."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text(encoding="utf-8")
    self.open, self.tags, self.text = [], [], ""
    self.feed(self.source)
    self.close()
    assert self.open == []
    self.text = re.sub(r"\s+", " ", self.text)
    self.images = [attrs for tag, attrs in self.tags if tag == "img"]

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.text += data

  def __contains__(self, words):
    return words in self.text


def _read(path):
  """Returns a page, which needs no other file and names its images."""
  found = Page(path)
  for tag, attrs in found.tags:
    assert tag not in ("link", "iframe", "object")
    for name in ("src", "href", "xlink:href", "srcset", "poster"):
      value = attrs.get(name) or "#"
      assert value.startswith(("#", *_EMBEDDED)), (tag, value)
  assert "url(http" not in found.source and "@import" not in found.source
  for image in found.images:
    assert image["src"].startswith(_EMBEDDED) and image["alt"]
    # Known before it is drawn, so that nothing moves.
    assert int(image["width"]) > 0 and int(image["height"]) > 0
  ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
  assert len(ids) == len(set(ids))
  for _, attrs in found.tags:
    for name in ("href", "aria-labelledby"):
      aim = attrs.get(name, "").removeprefix("#")
      assert not aim or aim in ids, f"{name} leads nowhere: {aim}"
  return found


def _holds(found, *words):
  assert [one for one in words if one not in found] == []


@pytest.fixture
def gc(tmp_path):
  return evaluations.write_run(tmp_path / "gc", ch=21.4, top1=86.1)


@pytest.fixture
def baseline(tmp_path):
  return evaluations.write_run(
    tmp_path / "base", ch=13.0, loss__consistency_weight=0.0
  )


def test_a_runs_page_holds_its_numbers_to_one_decimal_and_its_examples(gc):
  found = _read(write_report(gc))
  assert len(found.images) == 5 * 4  # examples times pictures
  assert [path.name for path in gc.glob("*.tmp")] == []
  _holds(
    found,
    *("86.1", "21.4", "20.4", "40.0", "41.0", "61.6", "60.6"),
    *("41.9 ± 0.1", "40.9 ± 0.1", "75.0", "8.0", "12.5%", "4,903,242"),
    "86.1% of the 1,000 evaluation images",
    "Ranked by content heatmap (CH), of Grad-CAM, element",
    "The maps with the most mass on the object.",
    "A uniform map scores 8.0",
    "packed composites, seed 0. Evaluated on 1,000 images",
    "loss.consistency_weight",
    "--config.loss.consistency_weight=0",  # how to get a baseline
    "✗ predicted two <&>",
    "✓ predicted so",
  )
  places = [found.text.index(w) for w in ("Best", "Typical", "Worst")]
  assert places == sorted(places)
  assert "What changed" not in found


def test_a_baseline_adds_its_row_the_changes_and_its_maps(gc, baseline):
  found = _read(write_report(gc, baseline))
  _holds(
    found,
    "+8.4 (95% interval +6.3 to +7.5) against ResNet18 Baseline: better",
    "against ResNet18 Baseline: no difference shown",  # top-1
    "+0.0 against ResNet18 Baseline: not tested",  # NQH is in no rows
    "Before: 16.0%",  # 13.0 + index 3
    "This run: 24.4%",
    "+8.4 points",
  )
  assert '<strong class="best">21.4</strong>' in found.source
  assert len(found.images) == 3 * 4 + 2 * 3


def test_a_change_without_pairs_is_not_called_better(gc, baseline):
  (baseline / "rows.npz").unlink()
  found = _read(write_report(gc, baseline))
  _holds(
    found,
    "+8.4 against ResNet18 Baseline: not tested",
    "has no rows.npz, as an older version wrote it. Evaluate it again.",
  )
  assert "Baseline: better" not in found
  assert '<strong class="best">' not in found.source


def test_a_baseline_of_the_same_configuration_is_told_apart(tmp_path, gc):
  other = evaluations.write_run(tmp_path / "other", seed=1)
  _holds(_read(write_report(gc, other)), "GC, seed 0", "GC, seed 1")


def test_a_baseline_on_other_data_is_refused(tmp_path, gc):
  other = evaluations.write_run(tmp_path / "other", data__name="imagenet")
  with pytest.raises(ValueError, match="evaluated on the same data"):
    write_report(gc, other)


def test_a_run_without_the_loss_points_to_it(baseline):
  _holds(
    _read(write_report(baseline)),
    "without the consistency loss, seed 0.",
    "--config.loss.consistency_weight=25",
  )


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
  found = _read(write_report(path))
  assert ("No final evaluation yet" in found) == ("results" not in parts)
  assert "nan" not in found.text.lower()
  assert "None" not in found.text.partition("All final numbers")[0]


@pytest.mark.parametrize(
  "write, changes",
  [
    (evaluations.write_old_run, {}),
    (evaluations.write_old, {"methods": (ELEMENTWISE,)}),
  ],
)
def test_old_folders_have_their_page(tmp_path, write, changes):
  found = _read(write_report(write(tmp_path / "x", **changes)))
  assert "GC on context digits" in found and len(found.images) > 4


def test_empty_maps_are_counted_and_make_no_trouble(tmp_path):
  results = evaluations.run_results(
    **{f"val/{ELEMENTWISE}/zero_map_frac": 0.0325}
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
  found = _read(write_report(path))
  _holds(found, "3.2% of the maps of Grad-CAM, element-wise were zero")
  assert len(found.images) == 4


def _without_objects(results):
  needing = ("pointing_game", "content_heatmap", "max_box_acc")
  return {
    key: value
    for key, value in results.items()
    if not any(name in key for name in needing)
  }


@pytest.mark.parametrize("is_old", [False, True])
def test_without_objects_their_metrics_are_absent_and_a_sentence_says_why(
  tmp_path, is_old
):
  """Also where an older version wrote 0.0, of no pair."""
  results = evaluations.run_results(**{"val/num_pairs": 0})
  if is_old:
    needing = results.keys() - _without_objects(results).keys()
    results |= dict.fromkeys(needing, 0.0)
  else:
    results = _without_objects(results)
  examples = [
    dataclasses.replace(
      evaluations.run_example(number, kind),
      object_mask=np.zeros((16, 16), bool),
      scores={"negative_quadrants_heatmap": {ELEMENTWISE: 12.5}},
    )
    for number, kind in ((3, "best"), (4, "worst"))
  ]
  path = evaluations.write_run(
    tmp_path / "run",
    results=results,
    examples=examples,
    per_class={"zero": {"gradcam/content_heatmap": 0.0, "top1": 50.0}},
  )
  found = _read(write_report(path))
  _holds(found, "No picture of this split has a mask or a box.", "NQH")
  where = found.text.index("No picture of this split")
  sentence = found.text[where : found.text.index(".", where + 60) + 1]
  rest = found.text.replace(sentence, "")
  for word in ("PG", "SPG", "CH", "On the object", "outlined", "0.0%"):
    assert not re.search(rf"\b{word}\b", rest), word
  assert "Best" not in found  # nothing is known to have ranked them
  loaded = artefact.load(path)
  models = {"model": [loaded]}
  for table in [*paper.make_layouts(models), *tables.measured(models)]:
    metrics = {column.metric for column in table.columns}
    assert not any("pointing" in m or "content" in m for m in metrics)


def test_the_head_says_what_the_numbers_are_not(tmp_path):
  lines = evaluations.metrics()[:-10]
  lines[-1]["train/loss"] = None
  run = evaluations.write_unfinished(
    tmp_path / "a", evaluations.config(), lines
  )
  _holds(
    _read(write_report(run)),
    f"This run is unfinished: step {lines[-1]['step']} of 320.",
    "1 logged line holds a number that was not finite",
  )
  finished = evaluations.write_run(
    tmp_path / "b",
    results=evaluations.run_results(
      **{"data/skipped_eval": 3, "data/dropped_train": 1}
    ),
    data__val_split="test",
  )
  _holds(
    _read(write_report(finished)),
    "These pictures (split test) are the validation split of training",
    "3 pictures could not be read and do not count; 1 annotation of training",
  )
  lines = [
    line | {"train/masked_pairs_frac": 0.3 + 0.2 * (i % 2)}
    for i, line in enumerate(evaluations.metrics())
  ]
  masked = evaluations.write_run(tmp_path / "m", training=lines)
  _holds(
    _read(write_report(masked)),
    "40% of the pairs of picture and class are masked",
    "Use --config.compose.mode=packed_by_class",
  )
  early = evaluations.bare(tmp_path / "c", step=1500, total_steps=3000)
  page.write_evaluation(early)
  words = "This run is unfinished: step 1,500 of 3,000."
  _holds(_read(tmp_path / "c" / "report.html"), words)
  clean = _read(write_report(evaluations.write_run(tmp_path / "d")))
  assert "notices" not in clean.source.partition("<body>")[2]
  assert "looks at nothing" not in clean


def test_maps_below_those_that_look_at_nothing_are_named(tmp_path):
  results = evaluations.run_results(
    **{"val/gradcam/content_heatmap": 7.9},
    **{"val/gradcam/negative_quadrants_heatmap": 76.0},
  )
  path = evaluations.write_run(tmp_path / "run", results=results)
  _holds(
    _read(write_report(path)),
    "Uniform map, a map that looks at nothing, does better: in CH (8.0), "
    "NQH (75.0) than Grad-CAM.",
  )


# Of an evaluation, with the files beside it.


@pytest.fixture
def made(tmp_path):
  """An evaluation of two methods and the controls: small pages are quick."""
  return evaluations.make(
    tmp_path / "eval",
    methods=(ELEMENTWISE, "smoothgrad"),
    costly_methods=("smoothgrad",),
    settings={"eval.sanity_rows": 8},
  )


@pytest.fixture
def without_curves(made):
  """The same with nothing to draw."""
  return dataclasses.replace(made, curves=artefact.Curves())


def _write(evaluation):
  paths = page.write_evaluation(evaluation)
  assert all(path.is_file() for path in paths)
  return _read(evaluation.folder / "report.html")


def test_every_file_is_written_and_named_on_the_page(made):
  found = _write(made)
  names = {path.name for path in made.folder.iterdir()}
  assert names == set(page.FILENAMES)
  _holds(found, *names, *artefact.FILENAMES)
  for name in ("tables.md", "tables.tex"):
    assert "At a glance" in (made.folder / name).read_text(encoding="utf-8")
  with (made.folder / "tables.csv").open(encoding="utf-8") as file:
    kinds = {line["kind"] for line in csv.DictReader(file)}
  assert kinds == {"model", "control"}


def test_every_method_is_named_with_its_maps(tmp_path):
  made = evaluations.make(tmp_path / "eval")
  found = _write(dataclasses.replace(made, curves=artefact.Curves()))
  alts = " ".join(image["alt"] for image in found.images)
  methods = (*evaluations.METHODS, *evaluations.CONTROLS)
  for method in methods:
    title = title_of(method)
    assert title != method
    assert title in found and f" by {title}: " in alts
  assert len(found.images) == 3 * (1 + len(methods)) + 1  # and the strip


def test_an_evaluations_page_says_what_was_measured_how(made):
  found = _write(made)
  _holds(
    found,
    "ResNet18 GC on context digits",
    "Evaluated on 1,000 images of context digits, split test.",
    "86.5% of the 1,000 evaluation images",
    "95% interval 84.4 to 88.4",
    "A uniform map scores 8.0",
    "Protocol “paper”",
    "within 15 pixels of it (at 224×224)",
    *("At a glance", "Accuracy under attack", "All methods, all metrics"),
    "Measured on 100 of the 1,200 (image, class) pairs, as they take many "
    "passes each: SmoothGrad, Insertion, Deletion, MaxBoxAcc 0.5, MaxBoxAccV2, "
    "PGD.",
    "PGD was measured on the images of 100 of the 1,200",
    "sanity check are means over 8 pairs at most",
    "programs compiled14",  # a term and its description
    "model.name",
    *(
      "Robustness",
      "Sanity check",
      "3 classes of context digits; maps of Grad-CAM, element",
    ),
  )
  _holds(found, "those of methods that take many passes are over fewer.")
  assert "need an object" not in found.text  # every pair has one
  row = re.search(r'<tr id="class-2".*?</tr>', found.source, re.S)[0]
  assert "two &lt;&amp;&gt;" in row
  assert 'data-column="0">86.5</td>' in row and ">30.0</td>" in row


def test_the_page_says_what_only_pairs_with_an_object_count_in(without_curves):
  without_curves.results["val/num_pairs"] = 70
  _holds(
    _write(without_curves),
    "those that need an object are over the pairs that have one; those of",
    "100 of the 1,200 (image, class) pairs (70 of all have an object)",
    *("pairs1,200", "pairs with an object70"),
  )


def test_the_page_says_which_class_stands_out_and_where_it_looks_first(
  without_curves,
):
  made = without_curves
  found = _write(made)
  _holds(found, "No class does", "test 1", "Taken for")
  words = ("What stands out", "Where it looks", "By class", "At a glance")
  places = [found.text.index(one) for one in words]
  assert places == sorted(places)
  key = Key("pointing_game", ELEMENTWISE)
  points = np.float32(np.arange(80) % 10 > 0)
  points[made.rows.target == 2] = 0
  columns = {**made.rows.columns, key: points}
  rows = made.rows._replace(columns=columns)
  found = _write(dataclasses.replace(made, rows=rows))
  _holds(found, "PG 0.0 against", "Over 26 pairs of picture and class")
  assert "No class does" not in found
  assert "#class-2" in [attrs.get("href") for _, attrs in found.tags]


def test_an_error_shows_the_map_of_what_was_predicted_and_how_sure(
  without_curves,
):
  made = without_curves
  example = dataclasses.replace(
    made.examples[0],
    name="cats/7.jpg",
    probability=0.125,
    predicted_probability=0.75,
    predicted_maps={ELEMENTWISE: made.examples[0].maps[ELEMENTWISE]},
  )
  artefact.save(dataclasses.replace(made, examples=[example]))
  (loaded,) = artefact.load(made.folder).examples
  assert (loaded.name, loaded.probability) == ("cats/7.jpg", 0.125)
  found = _write(dataclasses.replace(made, examples=[loaded]))
  _holds(
    found,
    *("p(one)12.5%", "p(two <&>)75.0%", "cats/7.jpg"),
    "Grad-CAM, element-wise, of two <&>",
  )


def test_the_sanity_check_names_the_methods_that_fail(made):
  curves = artefact.Curves(
    stages=made.curves.stages, randomization=made.curves.randomization
  )
  made = dataclasses.replace(made, curves=curves, examples=[])
  assert "SmoothGrad: still 0.5 or more" in _write(made)
  made.curves.randomization["smoothgrad"][-1] = 0.1
  found = _write(made)
  assert "Every method's maps change" in found
  assert "still 0.5 or more" not in found
  made.curves.randomization["smoothgrad"][-1] = None  # empty maps
  found = _write(made)
  assert "Not measured of SmoothGrad: with all weights random" in found
  assert "Every method's maps change" not in found


def test_the_share_below_a_map_is_that_on_the_object(without_curves):
  made = without_curves
  cam = np.zeros((16, 16), np.float32)
  cam[2:4, 3] = 0.375  # on the object
  cam[10, 10] = 0.25
  maps = {ELEMENTWISE: cam, "smoothgrad": cam * 0}
  only = [dataclasses.replace(made.examples[0], maps=maps)]
  found = _write(dataclasses.replace(made, examples=only))
  _holds(found, "Grad-CAM, element-wise: 75.0%", "SmoothGrad: empty")


def test_an_evaluation_of_accuracy_alone_leaves_the_rest_out(tmp_path):
  bare = evaluations.bare(tmp_path)
  for name in page.FILENAMES:  # of an earlier evaluation
    (tmp_path / name).touch()
  found = _write(bare)
  _holds(found, "80.0% of the 1,000 evaluation images")
  left_out = ("Robustness", "Sanity check", "By class", "What the maps look at")
  for words in ("Measured on", *left_out):
    assert words not in found
  assert "nan" not in found.text.lower()
  # What the earlier evaluation left is gone: it is another model's.
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    *("report.html", "tables.csv", "tables.md", "tables.tex")
  ]
  for results in ({}, {"val/unknown": 1.0}):
    found = _write(dataclasses.replace(bare, results=results))
    _holds(found, "No number was measured")
    assert "Measured" not in found.text.partition("The paper's tables")[0]


def test_the_page_knows_several_classes_a_picture_and_the_release_protocol(
  tmp_path,
):
  made = evaluations.make(
    tmp_path / "e",
    multi_label=True,
    methods=("gradcam",),
    protocol="release",
    ranked_by="negative_quadrants_heatmap",
  )
  made.results["val/a/new/kind"] = {"of": ["result"]}
  found = _write(made)
  _holds(
    found,
    *("scored highest: two <&>", "F1-Overall ↑", "86.5"),
    *("Map numbers above are of Grad-CAM, of the", "Protocol “release”"),
    "Ranked by negative quadrants heatmap (NQH), as no mask or box says",
  )
  for words in ("✗", "Top-1", "at 224×224"):
    assert words not in found
