"""python -m gc_jax.compare, end to end."""

import csv
import io
import json
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

from gc_jax import compare
from tests.report import evaluations
from tests.smoke import unlike_new

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
  *("comparison.csv", "comparison.html", "comparison.md"),
  *("differences.json", "figure.png"),
  *("pareto.csv", "pareto.png", "tables.csv", "tables.md", "tables.tex"),
]
ALL_FILES = sorted([*FILES, "robustness.png"])


@pytest.fixture
def runs(tmp_path):
  off = {"loss__consistency_weight": 0.0}
  return [
    evaluations.write_run(tmp_path / "base", ch=13.0, **off),
    evaluations.write_run(tmp_path / "gc", ch=20.0),
    evaluations.write_run(tmp_path / "gc-1", ch=22.0, seed=1),
    evaluations.write_run(
      tmp_path / "gmp", ch=17.0, model__name="resnet18-gmp", **off
    ),
  ]


@pytest.fixture
def evaluated(tmp_path):
  return [
    evaluations.write(tmp_path / "eval-base", consistency=False, ch=20.0),
    evaluations.write(tmp_path / "eval-gc", accuracy=80.0),
  ]


@pytest.fixture
def out(tmp_path):
  return tmp_path / "out"


def _main(*folders, out):
  return compare.main([*map(str, folders), f"--out={out}"])


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _csv(path):
  return list(csv.DictReader(io.StringIO(path.read_text())))


def _check_page(path, *words):
  page = path.read_text()
  # With their colon: a picture in base64 may spell the rest by chance.
  assert not re.findall("https?:", page)
  assert [one for one in words if one not in page] == []


def _check_figure(path, columns, rows):
  with Image.open(path) as figure:
    width, height = figure.size
  assert width / height == pytest.approx(columns / rows, rel=0.15)


def test_runs_become_a_table_and_a_figure(out, runs):
  # In a process of its own, where a warning is an error.
  command = [sys.executable, "-W", "error", "-m", "gc_jax.compare"]
  done = subprocess.run(
    [*command, *map(str, runs), f"--out={out}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert unlike_new(out) == []
  assert _names(out) == FILES
  assert all(f"wrote {out / name}" in done.stdout for name in FILES)
  markdown = (out / "comparison.md").read_text()
  assert "| ResNet18 GC | Grad-CAM, element-wise | 2 | " in markdown
  # Two seeds apart by 2 show nothing of 4 points.
  assert "| 21.0 ± 1.4 |" in markdown
  labels = ["ResNet18 Baseline", "ResNet18 GC", "ResNet18 GMP"]
  lines = _csv(out / "comparison.csv")
  assert [line["model"] for line in lines[:3]] == labels
  _check_page(
    out / "comparison.html",
    "3 models on context digits",
    *('src="data:image/', "figcaption>ResNet18 GMP: "),
    *("seeds 0 and 1.", "Difference from ResNet18 Baseline"),
  )
  _check_figure(out / "figure.png", columns=1 + 3, rows=2)
  names = ("model", "content_heatmap", "num_runs", "on_front")
  assert [
    tuple(point[name] for name in names)
    for point in _csv(out / "pareto.csv")
    if point["method"] == "gradcam_elementwise"
  ] == [
    ("ResNet18 Baseline", "13.0000", "1", "0"),
    ("ResNet18 GC", "21.0000", "2", "1"),
    ("ResNet18 GMP", "17.0000", "1", "0"),
  ]
  _, _, table = markdown.partition("## Difference from ResNet18 Baseline")
  of_seeds, single = table.strip().splitlines()[2:4]
  assert re.search(
    r"ResNet18 GC \| .*\+6\.\d\d \[-.*\] no difference", of_seeds
  )
  assert re.search(r"ResNet18 GMP \| .*\+\d\.\d\d \[\+.*\] better", single)
  assert "All numbers in percentage points." in table
  told = json.loads((out / "differences.json").read_text())
  assert list(told) == ["ResNet18 GC", "ResNet18 GMP"]
  ch = told["ResNet18 GC"]["gradcam_elementwise/content_heatmap"]
  line = (
    "Difference from ResNet18 Baseline,model,ResNet18 GC,gradcam_elementwise"
  )
  line += f",2,content_heatmap,{ch['value']:.4f},,,{ch['low']:.4f},"
  assert line in (out / "tables.csv").read_text()
  with Image.open(out / "pareto.png") as chart:
    assert chart.size[0] == pytest.approx(1440, rel=0.1)
  # Over an earlier comparison.
  assert _main(*runs[:2], out=out) == 0
  assert "2 models" in (out / "comparison.html").read_text()


def test_help_says_what_is_written(capsys):
  with pytest.raises(SystemExit, match=r"^0$"):
    compare.main(["--help"])
  printed = capsys.readouterr().out
  for word in ["RUN", "--out DIR", *ALL_FILES]:
    assert word in printed


def test_evaluations_become_tables(out, evaluated, capsys):
  assert _main(*evaluated, out=out) == 0
  assert _names(out) == ALL_FILES
  printed = capsys.readouterr().out
  assert all(f"wrote {out / name}" in printed for name in ALL_FILES)
  markdown = (out / "tables.md").read_text()
  for title in ("At a glance", "Accuracy", "All methods, all metrics"):
    assert f"## {title}\n" in markdown
  assert "## Table" not in markdown  # the paper's, of other data
  line = "| ResNet18 GC | Grad-CAM, element-wise | 80.0 | **70.2** |"
  assert line in markdown
  assert "| ResNet18 Baseline | PGD | **86.5** [84.4, 88.4] |" in markdown
  assert r"\begin{tabular}" in (out / "tables.tex").read_text()
  assert (out / "pareto.csv").read_text().splitlines()[1:4] == [
    "ResNet18 Baseline,gradcam_elementwise,top1,86.5000,20.0000,1,1",
    "ResNet18 GC,gradcam_elementwise,top1,80.0000,30.0000,1,1",
    "ResNet18 Baseline,gradcam,top1,86.5000,19.0000,1,1",
  ]
  _check_page(
    out / "comparison.html",
    *("2 models on context digits", "Robustness"),
    "Accuracy against content heatmap",
  )
  _check_figure(out / "figure.png", columns=1 + 2, rows=3)


def test_runs_and_evaluations_stand_in_one_table(out, runs, evaluated):
  assert _main(runs[0], evaluated[1], out=out) == 0
  markdown = (out / "comparison.md").read_text()
  assert "| ResNet18 Baseline | Grad-CAM, element-wise | **86.5** |" in markdown
  assert "| ResNet18 GC | SmoothGrad | 80.0 |" in markdown
  # What the run was not asked is empty.
  assert "ResNet18 Baseline | SmoothGrad |  |" not in markdown
  assert set(_names(out)) == set(ALL_FILES) - {"figure.png"}  # other images


def test_old_folders_still_compare(tmp_path, out, runs, evaluated, capsys):
  """A run without evaluation.json, an evaluation with examples.npz."""
  run = evaluations.write_old_run(
    tmp_path / "run", ch=19.0, model__name="alexnet"
  )
  evaluation = evaluations.write_old(tmp_path / "evaluation", ch=22.0)
  assert _main(run, evaluation, runs[0], evaluated[0], out=out) == 0
  assert f"AlexNet GC: {run} has no rows.npz, as" in capsys.readouterr().out
  markdown = (out / "comparison.md").read_text()
  assert "Difference" not in markdown
  for label, ch in (("AlexNet GC", "19.0"), ("ResNet18 GC", "22.0")):
    assert re.search(rf"\| {label} .*\*?{re.escape(ch)}\*?", markdown)


def test_seeds_are_averaged_and_a_shared_one_is_pointed_out(
  tmp_path, out, evaluated, capsys
):
  twin = evaluations.write(tmp_path / "eval-twin", ch=32.0)
  assert _main(*evaluated, twin, out=out) == 0
  assert "note: Runs of ResNet18 GC share a seed" in capsys.readouterr().out
  assert "31.0 ± 1.4" in (out / "tables.md").read_text()


def test_a_comparison_of_fewer_questions_leaves_nothing_behind(
  out, runs, evaluated
):
  assert _main(*evaluated, out=out) == 0
  assert _main(*runs, out=out) == 0
  assert _names(out) == FILES
  assert _main(runs[1], runs[2], out=out) == 0  # one model has no front
  of_several = ("differences.json", "pareto.csv", "pareto.png")
  assert _names(out) == [name for name in FILES if name not in of_several]


def test_runs_without_galleries_are_compared_without_a_figure(
  out, runs, capsys
):
  for run in runs:
    (run / "gallery.npz").unlink()
  assert _main(*runs, out=out) == 0
  printed = capsys.readouterr().out
  assert "note: ResNet18 Baseline is not in the figure" in printed
  assert "No figure" in printed
  assert _names(out) == [name for name in FILES if name != "figure.png"]


def test_one_old_folder_leaves_the_others_paired(out, runs, capsys):
  (runs[3] / "rows.npz").unlink()
  assert _main(*runs, out=out) == 0
  (note,) = re.findall("note: (No paired.*)", capsys.readouterr().out)
  assert note.startswith(
    f"No paired differences of ResNet18 GMP: {runs[3]} has"
  )
  assert note in (out / "comparison.html").read_text()
  told = json.loads((out / "differences.json").read_text())
  assert list(told) == ["ResNet18 GC"]


def test_the_release_and_its_correction_stand_in_one_table_unpaired(
  tmp_path, out, capsys
):
  both = [
    evaluations.write(
      tmp_path / name,
      protocol=name,
      config=evaluations.config(eval__border="", eval__protocol=name),
    )
    for name in ("release", "corrected")
  ]
  assert _main(*both, out=out) == 0
  assert "by another protocol" in capsys.readouterr().out
  table = (out / "comparison.md").read_text()
  for name in ("release", "corrected"):
    assert f"GC by “{name}”" in table
    assert f"Uniform map by “{name}”" in table


# What is refused, with nothing written.


def test_what_was_evaluated_otherwise_is_refused(
  tmp_path, out, evaluated, capsys
):
  config = evaluations.config(eval__tolerance_px=9.0)
  other = evaluations.write(tmp_path / "other", config=config)
  assert _main(evaluated[0], other, out=out) == 2
  words = r"must share --config\.eval\.tolerance_px .*other: 9\.0"
  assert re.search(words, capsys.readouterr().err)
  assert not out.exists()


def test_a_folder_of_another_kind_is_not_overwritten(runs, evaluated, capsys):
  assert _main(*runs, out=runs[0]) == 2
  error = capsys.readouterr().err
  assert "--out must be a new folder" in error
  assert "holds config.json, curves.json, evaluation.json" in error
  assert not (runs[0] / "comparison.md").exists()
  (evaluated[0] / "tables.csv").write_text("mine")
  assert _main(*evaluated, out=evaluated[0]) == 2
  assert (evaluated[0] / "tables.csv").read_text() == "mine"


def test_an_unfinished_run_is_refused_with_what_to_do(out, runs, capsys):
  for name in ("results.json", "evaluation.json"):
    (runs[1] / name).unlink()
  assert _main(*runs, out=out) == 2
  error = capsys.readouterr().err
  assert "gc' has no results.json. Give its training command again" in error
  assert not out.exists()


def test_runs_of_ones_own_network_are_compared_by_its_name(out, tmp_path):
  own = {"model__name": "my_nets:tiny"}
  off = {"loss__consistency_weight": 0.0}
  runs = [
    evaluations.write_run(tmp_path / "plain", ch=13.0, **own, **off),
    evaluations.write_run(tmp_path / "gc", ch=20.0, **own),
    evaluations.write_run(tmp_path / "gc-1", ch=22.0, seed=1, **own),
  ]
  assert _main(*runs, out=out) in (None, 0)
  points = _csv(out / "pareto.csv")
  assert {(one["model"], one["num_runs"]) for one in points} == {
    ("my_nets:tiny Baseline", "1"),
    ("my_nets:tiny GC", "2"),
  }
