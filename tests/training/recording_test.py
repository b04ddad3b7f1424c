"""What is kept of a run beside its state."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

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
