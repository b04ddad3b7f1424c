"""Looking into a run's checkpoints without a trace. Saving: loop_test.py."""

import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.runtime import checkpoint
from gc_jax.runtime.checkpoint import FOLDER, CheckpointError, Checkpoints
from gc_jax.training.step import TrainState


def state(step):
  return TrainState(
    step=jnp.asarray(step),
    params=nnx.State({"w": jnp.full(3, step, jnp.float32)}),
    batch_stats=nnx.State({"mean": jnp.full(2, -step, jnp.float32)}),
    opt_state={"momentum": jnp.full(3, 100.0)},
  )


def save(workdir, *steps):
  checkpoints = Checkpoints(workdir, keep=2)
  for step in steps:
    checkpoints.save(state(step), {"told": step}, best=0.0)
  checkpoints.close()


@pytest.fixture
def workdir(tmp_path):
  save(tmp_path, 1, 2)
  return tmp_path


def contents(folder):
  return {
    path.relative_to(folder): (path.stat().st_mtime_ns, path.is_dir())
    for path in folder.rglob("*")
  }


def truncate(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_last_checkpoint_is_read_without_the_optimizer(workdir):
  saved = checkpoint.read_variables(workdir)
  assert saved.step == 2
  assert saved.meta == {"told": 2}
  assert set(saved.arrays) == {"params.w", "batch_stats.mean"}
  np.testing.assert_array_equal(saved.arrays["params.w"], [2, 2, 2])
  np.testing.assert_array_equal(saved.arrays["batch_stats.mean"], [-2, -2])
  assert all(type(array) is np.ndarray for array in saved.arrays.values())


def test_reading_leaves_no_trace_even_of_a_save_in_progress(workdir):
  # What Orbax makes while it saves, and clears away when training opens it.
  (workdir / FOLDER / "3.orbax-checkpoint-tmp").mkdir()
  before = contents(workdir)
  assert checkpoint.read_variables(workdir).step == 2
  assert contents(workdir) == before


def test_reading_is_possible_while_training_holds_the_checkpoints(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=1)
  for step in (1, 2, 3):
    checkpoints.save(state(step), {}, best=float(step))
    checkpoints.wait()
    assert checkpoint.read_variables(tmp_path).step == step
  restored, _ = checkpoints.restore(state(0))
  checkpoints.close()
  assert restored.step == 3


def test_a_checkpoint_that_training_deletes_meanwhile_is_skipped(
  workdir, monkeypatch, caplog
):
  read = checkpoint._read_variables

  def read_late(folder, step):
    if step == 2:
      shutil.rmtree(folder / "2")
      save(workdir, 3)
    return read(folder, step)

  monkeypatch.setattr(checkpoint, "_read_variables", read_late)
  assert checkpoint.read_variables(workdir).step == 3
  assert not caplog.records


def test_a_corrupt_last_checkpoint_is_left_and_the_one_before_it_read(
  workdir, caplog
):
  truncate(workdir / FOLDER / "2")
  before = contents(workdir)
  with caplog.at_level(logging.WARNING):
    saved = checkpoint.read_variables(workdir)
  assert saved.step == 1
  np.testing.assert_array_equal(saved.arrays["params.w"], [1, 1, 1])
  assert "The checkpoint of step 2 in" in caplog.text
  assert "The one before it is tried" in caplog.text
  assert contents(workdir) == before


def test_nobody_starts_over_beside_corrupt_checkpoints_or_moves_them(workdir):
  """Were they moved away, a second start would be from scratch."""
  truncate(workdir / FOLDER)
  before = contents(workdir)
  restore = lambda folder: Checkpoints(folder, keep=2).restore(state(0))
  for read in (checkpoint.read_variables, restore, restore):
    with pytest.raises(
      CheckpointError,
      match=r"None of the checkpoints \[1, 2\] of .* could be read.*Nothing "
      "was touched. Restore the folder from a copy",
    ):
      read(workdir)
    assert contents(workdir) == before


def test_unreadable_checkpoints_moved_aside_do_not_collide(workdir):
  truncate(workdir / FOLDER / "2")
  (workdir / "unreadable_checkpoint_2").mkdir()
  checkpoints = Checkpoints(workdir, keep=2)
  restored, meta = checkpoints.restore(state(0))
  checkpoints.close()
  assert restored.step == 1 and meta == {"told": 1}
  assert (workdir / "unreadable_checkpoint_2_2" / "state").is_dir()


def test_broken_metrics_of_an_older_checkpoint_do_not_stop_a_save(workdir):
  (workdir / FOLDER / "1" / "metrics" / "metrics").write_text("{")
  checkpoints = Checkpoints(workdir, keep=2)
  restored, _ = checkpoints.restore(state(0))
  assert restored.step == 2
  checkpoints.save(state(3), {}, best=0.0)
  checkpoints.close()
  assert (workdir / "unreadable_checkpoint_1").is_dir()
  assert checkpoint.read_variables(workdir).step == 3


def test_the_meta_of_the_last_checkpoint_is_read_without_its_arrays(workdir):
  assert checkpoint.read_meta(workdir) == {"told": 2}
  shutil.rmtree(workdir / FOLDER / "2" / "state")
  assert checkpoint.read_meta(workdir) == {"told": 2}
  # Training would move this one aside and go on from the one before.
  truncate(workdir / FOLDER / "2")
  assert checkpoint.read_meta(workdir) == {"told": 1}
  truncate(workdir / FOLDER / "1")
  assert checkpoint.read_meta(workdir) == {}


def test_looking_where_nothing_was_saved_makes_no_files(tmp_path):
  assert checkpoint.read_meta(tmp_path) == {}
  checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.restore(state(0))
  checkpoints.close()
  with pytest.raises(CheckpointError, match=r"has none yet\. Wait for the fir"):
    checkpoint.read_variables(tmp_path)
  assert not list(tmp_path.iterdir())


def test_in_a_bucket_a_checkpoint_counts_once_it_is_marked_finished(bucket):
  step = bucket / FOLDER / "3"
  (step / "meta").mkdir(parents=True)
  (step / "meta" / "metadata").write_text("{}")
  assert not checkpoint.has_checkpoint(bucket)
  (step / "commit_success.txt").write_text("done")
  assert checkpoint.has_checkpoint(bucket)
  # An absolute path would be one on the disk.
  assert str(checkpoint._folder(bucket)) == "gs://bucket/run/checkpoints"
