"""What is kept of a run beside its state."""

import contextlib
import io
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import quickstart
from gc_jax.report.logs import read_metrics
from gc_jax.runtime import speaking
from gc_jax.runtime.config import get_config
from gc_jax.training import recording
from gc_jax.training.step import TrainState


@pytest.mark.parametrize(
  ("asked", "first", "traced"),
  [
    ((0, 0), 1, []),
    ((2, 3), 1, [2, 3]),
    ((2, 4), 3, [3, 4]),  # a run that goes on within them
    ((4, 9), 1, [4, 5]),  # and one that ends within them
  ],
)
def test_the_steps_that_are_asked_for_are_traced(
  tmp_path, monkeypatch, asked, first, traced
):
  open_traces, seen = [], []
  start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
  patch = lambda name, call: monkeypatch.setattr(jax.profiler, name, call)
  patch("start_trace", lambda folder: (open_traces.append(1), start(folder)))
  patch("stop_trace", lambda: (open_traces.clear(), stop()))
  with contextlib.closing(recording.Profile(asked, tmp_path)) as profile:
    for step in range(first, 6):
      profile.before(step)
      if open_traces:
        seen.append(step)
      state = TrainState(jnp.asarray(step), nnx.State({}), nnx.State({}), ())
      profile.after(step, state)
  assert seen == traced and not open_traces
  written = [path.name for path in (tmp_path / "profile").rglob("*.*")]
  assert bool(written) == bool(traced)
  if traced:
    # What xprof reads, and what Perfetto does.
    assert any(name.endswith(".xplane.pb") for name in written)
    assert any(name.endswith(".trace.json.gz") for name in written)


@pytest.mark.parametrize(("masked", "warned"), [(6, 1), (2, 0)])
def test_many_masked_pairs_are_told_once_with_what_to_do(
  tmp_path, capsys, masked, warned
):
  config = get_config()
  config.log.every_steps = 2
  run = recording.Run(config, tmp_path, 10, total_steps=10, start_step=0)
  with contextlib.closing(run):
    for step in range(1, 7):
      pairs = jnp.asarray(masked / 2 + step % 2), jnp.asarray(8.0)
      run.add(step, {"train/masked_pairs_frac": pairs})
  told = capsys.readouterr().err
  assert told.count("of the pairs of picture and class are masked") == warned
  assert told.count("--config.compose.mode=packed_by_class") == warned
  (first, *_) = read_metrics(tmp_path / "metrics.jsonl")
  assert first["train/masked_pairs_frac"] == (masked / 2 + 1) / 8


@pytest.fixture
def said(monkeypatch):
  """What is written to stderr."""
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  return sys.stderr


@pytest.fixture
def run(tmp_path, said):
  """A run of 100 steps that writes its numbers every 50."""
  config = quickstart.get_config()
  config.log.every_steps = 50
  with contextlib.closing(recording.Run(config, tmp_path, 10, 100, 0)) as run:
    yield run


def metrics(loss=2.0):
  of = lambda *value: tuple(map(jnp.asarray, value))
  return {"train/loss": of(loss, 1.0), "train/masked_pairs_frac": of(3.0, 4.0)}


def test_the_first_step_is_shown_at_once_and_writes_no_line(run, said):
  run.add(1, metrics())
  assert said.getvalue() == ""  # it is still computed
  run.add(2, metrics())
  line = "  1%  step 1/100  loss 2  masked pairs 75%\n"
  assert said.getvalue() == line
  run.add(3, metrics())
  assert said.getvalue() == line, "others in their time"
  assert read_metrics(run.workdir / "metrics.jsonl") == []


def test_only_the_first_evaluation_is_left_out_of_the_time_left(
  run, monkeypatch
):
  rests = []
  monkeypatch.setattr(run._progress, "rest", lambda: rests.append(1))
  for _ in range(3):
    with run.paused():
      pass
  assert rests == [1]


def test_the_first_step_alone_is_said_to_be_compiled(run):
  said = []
  for step in (1, 2):
    with run.compiling(step):
      said.append(speaking._voice.tasks[-1].text)
  assert said == [
    "compiling the train step",
    "training, step 0 of 100 done",
  ]
