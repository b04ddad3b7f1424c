"""Numbers of pairs: their file, and means of them."""

import numpy as np
import pytest

from gc_jax.method.metrics import Key
from gc_jax.report import rows
from gc_jax.report.rows import Rows
from tests.report import evaluations
from tests.report.differences_test import CH, PG, TOP1, made


def test_the_release_counts_no_class_0_because_few_pairs_were_measured():
  """Of 100 classes with a picture each, 20 pairs; two classes have none."""
  values = np.full(98, np.nan)
  values[:20] = 1.0
  pairs = Rows(np.arange(98), np.arange(98), np.array([""] * 98), {})
  one = rows.sample("pointing_game", values, pairs, "release", 100)
  assert rows.mean(one) == pytest.approx(0.98)
  resampled = rows.resampled({"a": one}, pairs.index, 50)["a"]
  np.testing.assert_allclose(resampled, 0.98)


def test_the_file_holds_arrays_of_one_length_by_name(tmp_path):
  one = made()
  rows.save(tmp_path, one)
  with np.load(tmp_path / "rows.npz") as file:
    there = dict(file)
  assert {"index", "target", "name", "top1", "gradcam/pointing_game"} < set(
    there
  )
  assert all(len(values) == 200 for values in there.values())
  read = rows.load(tmp_path, [PG, Key("content_heatmap", "nothing")])
  assert list(read.columns) == [PG]
  np.testing.assert_array_equal(read.columns[PG], one.columns[PG])
  assert rows.load(tmp_path / "older", [PG]) is None
  (tmp_path / "rows.npz").write_bytes(b"{")
  with pytest.raises(ValueError, match=r"rows\.npz must be .*Evaluate again"):
    rows.load(tmp_path, [PG])


def test_seeds_are_of_the_same_pairs_or_it_is_said_which_are_not(tmp_path):
  seeds = [made(seed=seed) for seed in (1, 2)]
  folders = [tmp_path / "a", tmp_path / "b"]
  for folder, one in zip(folders, seeds, strict=True):
    rows.save(folder, one)
  evaluated = [evaluations.bare(folder) for folder in folders]
  found, why = rows.of_seeds(evaluated, [CH, TOP1])
  assert why == ""
  for own, expected in zip(found, seeds, strict=True):
    np.testing.assert_array_equal(own.columns[CH], expected.columns[CH])
  others = seeds[0]._replace(target=seeds[0].target[::-1])
  rows.save(folders[1], others)
  for like, among in ((None, evaluated), (seeds[0], evaluated[1:])):
    none, why = rows.of_seeds(among, [CH], like)
    assert none is None and "b is of other images or classes" in why
