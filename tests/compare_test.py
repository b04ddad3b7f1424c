"""python -m gc_jax.compare, end to end."""

import csv
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

from gc_jax import compare
from tests.report import evaluations

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
  "comparison.csv",
  "comparison.html",
  "comparison.md",
  "figure.png",
  "pareto.csv",
  "pareto.png",
  "tables.csv",
  "tables.md",
  "tables.tex",
]
ALL_FILES = sorted([*FILES, "robustness.png"])


def _compare(*args):
  return subprocess.run(
    [sys.executable, "-W", "error", "-m", "gc_jax.compare", *map(str, args)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def _links(page):
  # With their colon: a picture in base64 may spell the rest by chance.
  return re.findall("https?:", page)


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


def test_runs_become_a_table_and_a_figure(tmp_path, runs):
  out = tmp_path / "out"
  done = _compare(*runs, f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert sorted(path.name for path in out.iterdir()) == FILES
  assert all(f"wrote {out / name}" in done.stdout for name in FILES)
  markdown = (out / "comparison.md").read_text()
  assert "| ResNet18 GC | Grad-CAM, element-wise | 2 | " in markdown
  assert "**21.0 ± 1.4**" in markdown
  text = (out / "comparison.csv").read_text()
  lines = list(csv.DictReader(text.splitlines()))
  assert [line["model"] for line in lines[:3]] == [
    "ResNet18 Baseline",
    "ResNet18 GC",
    "ResNet18 GMP",
  ]
  page = (out / "comparison.html").read_text()
  assert "3 models on context digits" in page
  assert 'src="data:image/png;base64,' in page and not _links(page)
  assert "seeds 0 and 1." in page
  with Image.open(out / "figure.png") as figure:
    width, height = figure.size
  assert width / height == pytest.approx(4 / 2, rel=0.15)  # 1 + 3 by 2 images

  points = list(csv.DictReader((out / "pareto.csv").read_text().splitlines()))
  element_wise = [p for p in points if p["method"] == "gradcam_elementwise"]
  assert [
    (p["model"], p["content_heatmap"], p["num_runs"], p["on_front"])
    for p in element_wise
  ] == [
    ("ResNet18 Baseline", "13.0000", "1", "0"),
    ("ResNet18 GC", "21.0000", "2", "1"),
    ("ResNet18 GMP", "17.0000", "1", "0"),
  ]
  with Image.open(out / "pareto.png") as chart:
    assert chart.size[0] == pytest.approx(1440, rel=0.1)

  again = _compare(*runs[:2], f"--out={out}")  # over an earlier comparison
  assert again.returncode == 0, again.stderr
  assert "2 models" in (out / "comparison.html").read_text()


def test_help_says_what_is_written():
  done = _compare("--help")
  assert done.returncode == 0
  for word in ["RUN", "--out DIR", *ALL_FILES]:
    assert word in done.stdout


def test_a_folder_of_another_kind_is_not_overwritten(tmp_path, runs):
  done = _compare(*runs, f"--out={runs[0]}")
  assert done.returncode == 2
  assert "--out must be a new folder" in done.stderr
  assert "holds config.json, curves.json, evaluation.json" in done.stderr
  assert "Traceback" not in done.stderr
  assert not (runs[0] / "comparison.md").exists()


def test_an_unfinished_run_writes_nothing_and_says_what_to_do(tmp_path, runs):
  for name in ("results.json", "evaluation.json"):
    (runs[1] / name).unlink()
  done = _compare(*runs, f"--out={tmp_path / 'out'}")
  assert done.returncode == 2
  assert "gc' has no results.json. Give its training command again" in (
    done.stderr
  )
  assert not (tmp_path / "out").exists()


def test_runs_on_different_data_are_refused(tmp_path, runs, capsys):
  other = evaluations.write_run(tmp_path / "coco", data__name="coco")
  status = compare.main(
    [str(arg) for arg in [runs[0], other, f"--out={tmp_path / 'out'}"]]
  )
  assert status == 2
  assert (
    "must share the data set, --config.data.name" in capsys.readouterr().err
  )


def test_runs_without_galleries_are_compared_without_a_figure(
  tmp_path, runs, capsys
):
  for run in runs:
    (run / "gallery.npz").unlink()
  out = tmp_path / "out"
  status = compare.main([str(arg) for arg in [*runs, f"--out={out}"]])
  assert status == 0
  printed = capsys.readouterr().out
  assert "note: ResNet18 Baseline is not in the figure" in printed
  assert "No figure" in printed
  assert sorted(path.name for path in out.iterdir()) == [
    name for name in FILES if name != "figure.png"
  ]


def test_runs_that_share_a_seed_are_pointed_out(tmp_path, runs, capsys):
  twin = evaluations.write_run(tmp_path / "twin")
  compare.main(
    [str(arg) for arg in [runs[1], twin, f"--out={tmp_path / 'out'}"]]
  )
  printed = capsys.readouterr().out
  assert "note: Runs of ResNet18 GC share a seed" in printed


def test_one_model_has_no_pareto_plot(tmp_path, runs):
  out = tmp_path / "out"
  assert compare.main([str(runs[1]), str(runs[2]), f"--out={out}"]) == 0
  names = sorted(path.name for path in out.iterdir())
  assert names == [name for name in FILES if not name.startswith("pareto")]


@pytest.fixture
def evaluated(tmp_path):
  return [
    evaluations.write(tmp_path / "eval-base", consistency=False, ch=20.0),
    evaluations.write(tmp_path / "eval-gc", accuracy=80.0),
  ]


def test_evaluations_become_the_papers_tables(tmp_path, evaluated, capsys):
  out = tmp_path / "out"
  assert compare.main([*map(str, evaluated), f"--out={out}"]) == 0
  assert sorted(path.name for path in out.iterdir()) == ALL_FILES
  printed = capsys.readouterr().out
  assert all(f"wrote {out / name}" in printed for name in ALL_FILES)
  markdown = (out / "tables.md").read_text()
  for number in (1, 3, 4, 5, 6):
    assert f"## Table {number}: " in markdown
  line = "| ResNet18 GC | Grad-CAM, element-wise | 80.00 | **70.25** |"
  assert line in markdown
  assert "| ResNet18 Baseline | PGD | **86.50** | **43.25** |" in markdown
  assert r"\begin{tabular}" in (out / "tables.tex").read_text()
  points = (out / "pareto.csv").read_text().splitlines()
  assert points[1:3] == [
    "ResNet18 Baseline,gradcam_elementwise,top1,86.5000,20.0000,1,1",
    "ResNet18 GC,gradcam_elementwise,top1,80.0000,30.0000,1,1",
  ]
  page = (out / "comparison.html").read_text()
  assert "2 models on context digits" in page and not _links(page)
  assert page.count('src="data:image/png;base64,') == 1
  assert "Robustness" in page and "Accuracy against content heatmap" in page
  with Image.open(out / "figure.png") as figure:
    width, height = figure.size
  assert width / height == pytest.approx(3 / 3, rel=0.15)  # 1 + 2 by 3 images


def test_a_comparison_of_fewer_questions_leaves_nothing_behind(
  tmp_path, runs, evaluated
):
  out = tmp_path / "out"
  assert compare.main([*map(str, evaluated), f"--out={out}"]) == 0
  assert compare.main([*map(str, runs), f"--out={out}"]) == 0
  assert sorted(path.name for path in out.iterdir()) == FILES


def test_runs_and_evaluations_stand_in_one_table(tmp_path, runs, evaluated):
  out = tmp_path / "out"
  assert compare.main([str(runs[0]), str(evaluated[1]), f"--out={out}"]) == 0
  markdown = (out / "comparison.md").read_text()
  assert "| ResNet18 Baseline | Grad-CAM, element-wise | **86.5** |" in markdown
  assert "| ResNet18 GC | SmoothGrad | 80.0 |" in markdown
  # What the run was not asked is empty.
  assert "ResNet18 Baseline | SmoothGrad |  |" not in markdown
  written = {path.name for path in out.iterdir()}
  assert written == set(ALL_FILES) - {"figure.png"}  # of other images


def test_folders_of_before_still_compare(tmp_path, runs, evaluated):
  """A run without evaluation.json, an evaluation with examples.npz."""
  out = tmp_path / "out"
  before = [
    evaluations.write_old_run(
      tmp_path / "run", ch=19.0, model__name="alexnet"
    ),
    evaluations.write_old(tmp_path / "evaluation", ch=22.0),
  ]
  folders = [*map(str, before), str(runs[0]), str(evaluated[0])]
  assert compare.main([*folders, f"--out={out}"]) == 0
  markdown = (out / "comparison.md").read_text()
  for label, ch in (("AlexNet GC", "19.0"), ("ResNet18 GC", "22.0")):
    assert re.search(rf"\| {label} .*\*?{re.escape(ch)}\*?", markdown)


def test_evaluations_of_different_settings_are_refused(
  tmp_path, evaluated, capsys
):
  other = evaluations.write(
    tmp_path / "other", config=evaluations.config(eval__tolerance_px=9.0)
  )
  out = tmp_path / "out"
  assert compare.main([str(evaluated[0]), str(other), f"--out={out}"]) == 2
  error = capsys.readouterr().err
  assert "must share --config.eval.tolerance_px" in error
  assert "other: 9.0" in error
  assert not out.exists()


def test_repeated_evaluations_that_share_a_seed_are_pointed_out(
  tmp_path, evaluated, capsys
):
  twin = evaluations.write(tmp_path / "eval-twin", ch=32.0)
  out = tmp_path / "out"
  folders = [*map(str, evaluated), str(twin)]
  assert compare.main([*folders, f"--out={out}"]) == 0
  assert "note: Runs of ResNet18 GC share a seed" in capsys.readouterr().out
  assert "31.00 ± 1.41" in (out / "tables.md").read_text()


def test_an_evaluations_own_folder_is_not_overwritten(evaluated, capsys):
  (evaluated[0] / "tables.csv").write_text("mine")
  assert compare.main([*map(str, evaluated), f"--out={evaluated[0]}"]) == 2
  assert "--out must be a new folder" in capsys.readouterr().err
  assert (evaluated[0] / "tables.csv").read_text() == "mine"
