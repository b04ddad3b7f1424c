"""What is kept of a run beside its state."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gc_jax.report.logs import read_metrics
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
