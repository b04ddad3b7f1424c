"""The command: a run or a file in, everything measured, written and resumed."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from gc_jax import data, torch_io
from gc_jax.attribution import CONTROLS
from gc_jax.attribution import METHODS as KNOWN
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation import checks
from gc_jax.evaluation import plan as passes
from gc_jax.evaluation import run as evaluating
from gc_jax.inference import trained
from gc_jax.method.metrics import ATTACKS, EPSILONS, METRICS
from gc_jax.report import artefact
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files
from tests import smoke
from tests.smoke import unlike_new

# Whole evaluations.
pytestmark = pytest.mark.slow

# A map of cells, one of pixels, and one that divides a score. All methods pass
# through the same lines, and each has its own tests; costly ones are in
# evaluation/plan_test.py.
METHODS = ("gradcam", "input_gradients", "fullgrad")


def settings(workdir, **fields):
  """The run's configuration, shrunk to few rows."""
  c = saved_config.completed(saved_config.read(workdir))
  few = {"costly_rows": 2, "sanity_rows": 2, "faithfulness_steps": 2}
  few |= {"epsilons": (8,), "num_resamples": 50}
  for name, value in (few | fields).items():
    c.update_from_flattened_dict({f"eval.{name}": value})
  return c


def evaluate(source, out, methods=METHODS, config=None):
  config = config or settings(source)
  return evaluating.evaluate(
    config, source=source, arch=None, methods=methods, out=out
  )


def test_rise_is_measured_only_if_it_or_all_is_asked_for():
  assert checks.methods_of(("all",)) == tuple(KNOWN)
  usual = checks.methods_of(("usual",))
  assert [name for name in KNOWN if name not in usual] == ["rise"]
  assert checks.methods_of(("rise",)) == ("rise",)
  done = subprocess.run(
    [sys.executable, "-m", "gc_jax.evaluate", "--helpshort"],
    capture_output=True,
    text=True,
    cwd=smoke.ROOT,
  )
  assert "(default: 'usual')" in done.stdout


@pytest.fixture(scope="module")
def finished(smoke_run, tmp_path_factory):
  """An evaluation by methods of every kind, and what it said."""
  out = tmp_path_factory.mktemp("evaluated") / "out"
  return out, list(evaluate(smoke_run, out))


@pytest.fixture
def interrupted(smoke_run, tmp_path, monkeypatch):
  """Leaves an evaluation in `tmp_path` after some batches."""

  def interrupted(batches):
    def run(*args):
      yield from itertools.islice(whole(*args), batches)
      raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      whole = passes.run
      patch.setattr(evaluating, "_SAVE_EVERY_SECS", 0.0)
      patch.setattr(passes, "run", run)
      with pytest.raises(KeyboardInterrupt):
        list(evaluate(smoke_run, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"partial.npz"}

  return interrupted


def test_every_metric_is_there(finished):
  out, lines = finished
  assert unlike_new(out) == []
  found = artefact.load(out)
  results = found.results
  maps = [
    key
    for key, metric in METRICS.items()
    if metric.is_of_maps and metric.needs != "sums"
  ]
  for method in (*METHODS, *CONTROLS):
    for metric in (*maps, "stochastic_pointing_game_std"):
      assert np.isfinite(results[f"val/{method}/{metric}"])
  assert found.curves.robustness.keys() == ATTACKS.keys()
  for attack in ATTACKS:
    assert 0 <= results[f"val/{attack}_8/top1"] <= 100
  assert results["val/fgsm-within_8/top1"] <= results["val/top1"]
  assert results["val/uniform/negative_quadrants_heatmap"] == pytest.approx(75)
  assert results["val/fullgrad/completeness_error"] < 0.01
  assert "val/gradcam/completeness_error" not in results
  page = (out / "report.html").read_text()
  assert METRICS["completeness_error"].meaning in page
  assert results["val/num_examples"] == 40
  content = "val/input_gradients/content_heatmap"
  for key in ("val/top1", "val/fgsm_8/top1", "val/pgd_8/top1", content):
    assert results[f"{key}_low"] <= results[key] <= results[f"{key}_high"]
  assert found.about.costly_methods == ()
  assert found.about.num_costly_images == 2
  compiled = int(re.match(r"(\d+) programs", lines[0])[1])
  assert compiled == found.about.num_compilations == 5
  for method in METHODS:
    assert len(found.curves.randomization[method]) == 4
    assert len(found.curves.deletion[method]) == 3
  assert sum(bool(example.randomized) for example in found.examples) == 2
  assert all(set(example.maps) == set(METHODS) for example in found.examples)
  for by_class in found.per_class.values():
    assert "gradcam/content_heatmap" in by_class
  with np.load(out / "rows.npz") as file:
    predicted, confidence = file["predicted"], file["confidence"]
  for example in found.examples:
    assert example.predicted == predicted[example.index]
    assert example.probability == pytest.approx(confidence[example.index])
    assert example.probability <= example.predicted_probability <= 1
    is_wrong = example.predicted != example.target
    assert set(example.predicted_maps) == (set(METHODS) if is_wrong else set())
    for method, cam in example.predicted_maps.items():
      assert cam.shape == example.maps[method].shape
  wrong = [e for e in found.examples if e.kind == "wrong"]
  assert len(wrong) == 4  # the net is hardly trained
  assert all(e.predicted_maps for e in wrong)
  assert any(
    np.abs(e.predicted_maps["gradcam"] - e.maps["gradcam"]).max() > 1e-3
    for e in wrong
  )


@pytest.mark.parametrize("ends", ["a run", "an evaluation"])
def test_the_rows_average_to_the_results(finished, smoke_run, ends):
  folder = smoke_run if ends == "a run" else finished[0]
  results = json.loads((folder / "results.json").read_text())
  with np.load(folder / "rows.npz") as file:
    rows = dict(file)
  index, target, names = (rows.pop(k) for k in ("index", "target", "name"))
  assert index.tolist() == list(range(40)) and set(names) == {""}
  assert 0 <= target.min() <= target.max() < 10
  predicted = rows.pop("predicted")  # a class, which has no mean
  np.testing.assert_array_equal(predicted == target, rows["top1"] == 1)
  asked = {"top1", "gradcam/pointing_game", "uniform/content_heatmap"}
  if ends == "an evaluation":
    asked |= {"fgsm_8/top1", "pgd_8/top1", "input_gradients/insertion_auc"}
    assert np.isnan(rows["pgd_8/top1"]).sum() == 38
  assert asked <= rows.keys()
  for name, column in rows.items():
    assert column.shape == (40,) and column.dtype == np.float32
    scale = 1 if name.endswith("_frac") else 100
    mean = scale * np.nanmean(column, dtype=np.float64)
    assert results[f"val/{name}"] == pytest.approx(mean, rel=1e-12)


def test_its_numbers_are_the_training_runs(finished, smoke_run):
  """The same rows, composites and methods, so the same results."""
  there = json.loads((smoke_run / "results.json").read_text())
  here = artefact.load(finished[0]).results
  metrics = "pointing_game", "content_heatmap", "negative_quadrants_heatmap"
  for method in ("gradcam", "uniform"):
    for metric in metrics:
      key = f"val/{method}/{metric}"
      assert here[key] == pytest.approx(there[key], abs=1e-3)
  assert here["val/top1"] == pytest.approx(there["val/top1"])


def test_a_finished_evaluation_is_kept(finished, smoke_run, monkeypatch):
  out, _ = finished
  tell = lambda: {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  before = tell()
  (line,) = evaluate(smoke_run, out)
  assert "finished; nothing to do" in line
  with pytest.raises(ValueError, match=r"no folder of a run.*_evaluated for"):
    list(evaluate(smoke_run, smoke_run))
  with pytest.raises(ValueError, match=r"something else.*methods"):
    list(evaluate(smoke_run, out, ("gradcam",)))
  monkeypatch.setattr(Dataset, "digest", lambda _: "of others")
  with pytest.raises(ValueError, match=r"something else.*differ.*pictures"):
    list(evaluate(smoke_run, out))
  assert tell() == before


def test_an_unfinished_evaluation_of_something_else_is_refused(
  interrupted, smoke_run, tmp_path, monkeypatch
):
  interrupted(1)
  before = (tmp_path / "partial.npz").read_bytes()
  other = settings(smoke_run, tolerance_px=10.0)
  with pytest.raises(ValueError, match=r"eval\.tolerance_px: 15\.0 there, 10"):
    list(evaluate(smoke_run, tmp_path, config=other))
  monkeypatch.setattr(Dataset, "digest", lambda _: "of others")
  with pytest.raises(ValueError, match=r"(?s)something else.*differ.*pictures"):
    list(evaluate(smoke_run, tmp_path))
  assert (tmp_path / "partial.npz").read_bytes() == before


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(
  finished, interrupted, smoke_run, tmp_path
):
  interrupted(5)
  lines = list(evaluate(smoke_run, tmp_path))
  (going_on,) = [line for line in lines if "going on from" in line]
  # Squares and the first composites: what was saved is not measured again.
  count, total = re.search(r": (\d+) of (\d+) are measured", going_on).groups()
  assert 0 < int(count) < int(total)
  assert artefact.load(tmp_path).results == artefact.load(finished[0]).results
  assert not (tmp_path / "partial.npz").exists()


def command(*flags):
  return [sys.executable, "-m", "gc_jax.evaluate", *flags]


def run_command(arguments, env):
  return subprocess.run(
    arguments, capture_output=True, text=True, cwd=smoke.ROOT, env=env
  )


# Its parts are above, and in evaluation/plan_test.py.
@pytest.mark.large
def test_a_killed_command_continues_under_the_release_protocol(
  smoke_run, tmp_path, compilation_cache
):
  """SIGKILL once something was saved; the same command then finishes."""
  out = tmp_path / "out"
  few = {"costly_rows": 2, "sanity_rows": 1, "faithfulness_steps": 2}
  few |= {"epsilons": "(8,)", "shorter_side_px": 64}
  arguments = command(
    *[f"--workdir={smoke_run}", f"--out={out}", "--methods=gradcam"],
    "--protocol=release",
    *[f"--config.eval.{name}={value}" for name, value in few.items()],
  )
  process = subprocess.Popen(arguments, cwd=smoke.ROOT, env=compilation_cache)
  deadline = time.monotonic() + 120
  while not (out / "partial.npz").exists() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.kill()
  process.wait()
  done = run_command(arguments, compilation_cache)
  assert done.returncode == 0, done.stderr
  about = artefact.load(out).about
  assert about.protocol == "release"
  assert about.methods == ("gradcam",)
  assert about.consistency is True
  written = {path.name for path in out.iterdir()}
  assert {"report.html", "tables.md", "tables.csv", "tables.tex"} <= written
  assert all(f"wrote {out / name}" in done.stdout for name in written)


# Two whole commands, minutes of training.
@pytest.mark.large
def test_the_quickstarts_accuracy_falls_under_attack(tmp_path):
  """At every epsilon, down to chance; beyond it, it stays below.

  One step of 64/255 leads past where a gradient says anything: pictures may be
  right again there. Where whoever attacks may take any shorter step as well,
  accuracy falls to the end.
  """
  run, out = tmp_path / "run", tmp_path / "out"
  training = smoke.command(run, "--config=configs/quickstart.py")
  evaluation = command(f"--workdir={run}", f"--out={out}", "--methods=gradcam")
  # The tests' flags compile soon, and what they compile is slow.
  env = {**os.environ, "XLA_FLAGS": ""}
  for arguments in (training, evaluation):
    done = run_command(arguments, env)
    assert done.returncode == 0, done.stderr
  found = artefact.load(out).results

  def curve(attack):
    return [found[f"val/{attack}_{epsilon}/top1"] for epsilon in EPSILONS]

  chance = 100 / 10
  step, budget = curve("fgsm"), curve("fgsm-within")
  for before, after in itertools.pairwise([found["val/top1"], *step]):
    assert after < before or max(before, after) < chance, step
  assert step[-1] < chance
  for before, after in itertools.pairwise([found["val/top1"], *budget]):
    assert after < before, budget
  for weaker, stronger in zip(curve("fgsm-few"), curve("pgd"), strict=True):
    assert stronger <= weaker


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--workdir=RUN", "--checkpoint=x.pth"], "one of the two"),
    (["--checkpoint=x.pth", "--arch=resnet18"], "needs a --config"),
    (["--workdir=RUN", "--methods=gradcam,cmvp"], "Did you mean 'cmwp'"),
  ],
)
def test_an_invalid_command_line_ends_with_a_line(
  smoke_run, tmp_path, flags, message
):
  flags = [flag.replace("RUN", str(smoke_run)) for flag in flags]
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = run_command(command(*flags, f"--out={tmp_path / 'out'}"), env)
  assert done.returncode == 2
  assert message in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("spg_runs", 0, r"spg_runs=0 must be"),
    ("epsilons", (300,), r"at most 255"),
    ("costly_rows", 0, r"costly_rows=0 must be"),
    ("num_resamples", -1, r"num_resamples=-1 must be"),
    ("methods", ("gradcam", "gradcam"), r"eval\.methods must name .* once"),
  ],
)
def test_an_invalid_setting_is_refused_before_work(
  smoke_run, tmp_path, field, value, message
):
  config = settings(smoke_run, **{field: value})
  with pytest.raises(ValueError, match=message):
    list(evaluate(smoke_run, tmp_path / "out", config=config))
  assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(smoke_run, tmp_path):
  (tmp_path / "thesis.txt").write_text("all of it")
  with pytest.raises(ValueError, match=r"holds thesis\.txt"):
    list(evaluate(smoke_run, tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_model_of_other_classes_is_refused(smoke_run):
  config = settings(smoke_run)
  loaded = trained.load_model(smoke_run)
  digits = data.load(config.data, config.data.eval_split)
  nameless = dataclasses.replace(loaded, class_names=())
  nine = digits.class_names[:9]
  renamed = dataclasses.replace(digits, class_names=(*nine, "ten"))
  fewer = dataclasses.replace(digits, class_names=nine)
  evaluating.check_fits(loaded, digits, config)
  # A file that names no classes is known by their number.
  evaluating.check_fits(nameless, renamed, config)
  for model, dataset, words in (
    (loaded, renamed, "class 9: '9' there, 'ten' now"),
    (nameless, fewer, r"'context_digits', 9; it has 10"),
  ):
    with pytest.raises(ValueError, match=words):
      evaluating.check_fits(model, dataset, config)


@pytest.mark.parametrize(
  "stated, told",
  [
    (None, "does not say what its outputs are; scored as the data has it: one"),
    (
      True,
      r"is for several classes a picture \(sigmoid, above 50% is yes\); s",
    ),
  ],
)
def test_a_model_for_other_outputs_than_the_datas_is_told_first(
  smoke_run, tmp_path, stated, told
):
  model = trained.load_model(smoke_run)
  path = tmp_path / "a.safetensors"
  metadata = torch_io.Metadata(model.name, multi_label=stated)
  torch_io.save_model(path, model.model, metadata)
  lines = evaluate(path, tmp_path / "out", config=settings(smoke_run))
  assert re.match(rf"note: .*a\.safetensors {told}", next(lines))


def test_a_second_evaluation_in_a_folder_that_is_written_to_is_refused(
  smoke_run, tmp_path
):
  message = rf"--out=.* written to by process {os.getpid()} on"
  with (
    files.held(tmp_path, "--out"),
    pytest.raises(ValueError, match=message),
  ):
    list(evaluate(smoke_run, tmp_path))
  assert not list(tmp_path.iterdir())
