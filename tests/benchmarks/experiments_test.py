"""Runs are made once, go on when stopped, and compare as before when small."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gc_jax.method.metrics import Key
from gc_jax.report import artefact, describe, differences
from gc_jax.report.differences import Side
from tests.benchmarks import experiments
from tests.benchmarks.experiments import Experiment
from tests.report import evaluations

# A run of a moment: its folder as a finished run leaves it.
PROGRAM = """\
import pathlib, sys
from tests.report import evaluations
workdir = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
if "fails" in sys.argv:
  sys.exit(2)
evaluations.write_run(workdir)
(workdir / "checkpoints").mkdir()
(workdir / "report.html").touch()
"""
# One that ends when it is asked to, as a run that saved.
ASKED = """\
import pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
workdir.mkdir()
signal.signal(signal.SIGTERM, lambda *_: ((workdir / "saved").touch(), exit()))
(workdir / "begun").touch()
time.sleep(60)
"""


def test_what_is_finished_stays_and_what_fails_is_named(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(
    experiments._started, "__defaults__", (("-c", PROGRAM), None)
  )
  made = [Experiment("a", ()), Experiment("b", ("fails",)), Experiment("c", ())]
  assert "0 of 3 are done" in experiments.listed(made, tmp_path)
  assert experiments.make_all(made, tmp_path, small=True) == ["b"]
  told = experiments.listed(made, tmp_path)
  assert "a " in told and told.count("done in 2m 58s") == 2
  assert "2 of 3 are done, in 5m 56s; the others take about 2m 58s" in told
  files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
  names = {path.name for path in files}
  assert {"rows.npz", "results.json", "config.json"} <= names
  assert not {"checkpoints", "report.html", "gallery.npz"} & names
  experiments.make_all(made[::2], tmp_path, small=True)
  assert files == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*")}
  capsys.readouterr()


def test_jobs_share_the_cores_and_leave_logs_of_failures_alone(
  tmp_path, monkeypatch, capsys
):
  program = f"import os; print(os.sched_getaffinity(0))\n{PROGRAM}"
  monkeypatch.setattr(
    experiments._started, "__defaults__", (("-c", program), None)
  )
  made = [Experiment(name, ("fails",) * (name == "b")) for name in "abc"]
  out = tmp_path / "of_mine/runs"  # not there yet
  assert experiments.make_all(made, out, small=True, jobs=2) == ["b"]
  assert "b.log" in capsys.readouterr().err
  assert [path.name for path in out.glob("*.log")] == ["b.log"]
  shares = experiments._shares(2)
  assert (out / "b.log").read_text().strip() in map(str, shares)
  assert set.union(*shares) == os.sched_getaffinity(0)


def test_a_stopped_runner_waits_until_its_run_has_saved(tmp_path):
  code = (
    "import pathlib; from tests.benchmarks import experiments as e;"
    f"e.trained(pathlib.Path({str(tmp_path / 'a')!r}), [], ('-c', {ASKED!r}))"
  )
  with subprocess.Popen([sys.executable, "-c", code]) as runner:
    while not (tmp_path / "a/begun").exists():
      assert runner.poll() is None
      time.sleep(0.1)
    os.kill(runner.pid, signal.SIGTERM)
    assert runner.wait() == 143
  assert (tmp_path / "a/saved").exists()


def test_a_small_run_compares_as_a_whole_one(tmp_path):
  folders = [
    evaluations.write_run(tmp_path / f"{name}{seed}", ch, seed=seed, **own)
    for seed in (0, 1)
    for name, ch, own in (
      ("gc", 20.0, {}),
      ("ce", 15.0, {"loss__consistency_weight": 0.0}),
    )
  ]
  key = Key("content_heatmap", "gradcam")

  def difference():
    models = describe.group([artefact.load_finished(one) for one in folders])
    gc, ce = models
    sides = Side(gc, key), Side(ce, key)
    found, whys = differences.paired(models, [sides])
    assert not whys
    return found[sides]

  before = difference()
  for folder in folders:
    (folder / "checkpoints").mkdir()
    experiments.keep_small(folder, with_pictures=folder == folders[0])
    assert str(tmp_path) not in (folder / artefact.ABOUT).read_text()
  # Half a unit in the eleventh bit, of fractions below 1, in percentage points.
  np.testing.assert_allclose(difference()[:3], before[:3], atol=100 / 2**11)
  kinds = [one.kind for one in artefact.load(folders[0]).examples]
  assert kinds == ["fixed"] * 2
  assert artefact.load(folders[1]).examples == []


@pytest.mark.parametrize("values", [[1.0, 2.0, 6.0], [5.0]])
def test_the_spread_is_the_samples(values):
  std = np.std(values, ddof=1) if len(values) > 1 else 0.0
  assert experiments.spread(values) == pytest.approx(
    {"mean": np.mean(values), "std": std, "n": len(values)}
  )
