"""Batches on their way to the devices while others are used."""

import contextlib
import threading

import numpy as np
import pytest

from gc_jax import parallel


def numbered(count, loaded, error=None):
  for i in range(count):
    loaded.release()
    yield {"image": np.full((4, 2), i)}
  if error is not None:
    raise error


def test_batches_arrive_whole_in_order_and_divided_over_the_devices():
  mesh = parallel.make_mesh()
  batches = list(
    parallel.to_devices_ahead(numbered(5, threading.Semaphore(0)), mesh)
  )
  assert [int(batch["image"][0, 0]) for batch in batches] == list(range(5))
  assert len(batches[0]["image"].sharding.device_set) == 4


def test_the_next_batch_is_loaded_while_one_is_used_and_no_more():
  loaded = threading.Semaphore(0)
  ahead = parallel.to_devices_ahead(numbered(9, loaded), parallel.make_mesh())
  with contextlib.closing(ahead):
    for _ in range(3):
      next(ahead)
      assert loaded.acquire(timeout=60), "the one that is used"
    assert loaded.acquire(timeout=60), "the one after it, without being asked"
    assert not loaded.acquire(timeout=0.2)
  assert not [t for t in threading.enumerate() if "to_devices" in t.name]


def test_an_error_arrives_when_its_batch_is_due():
  broken = numbered(2, threading.Semaphore(0), ValueError("a broken picture"))
  ahead = parallel.to_devices_ahead(broken, parallel.make_mesh())
  assert int(next(ahead)["image"][0, 0]) == 0
  assert int(next(ahead)["image"][0, 0]) == 1
  with pytest.raises(ValueError, match="a broken picture"):
    next(ahead)
