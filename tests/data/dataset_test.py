"""What a loaded split tells of itself."""

import pytest

from gc_jax.data import Dataset
from gc_jax.data import dataset as datasets


def located(label, labels=(1,)):
  return {"labels": list(labels), "objects": {"label": [label]}}


BARE = {"labels": [1]}


def make(source):
  return Dataset(
    source=source,
    class_names=("a", "b", "c"),
    multi_label=True,
    name="hand-made",
  )


@pytest.mark.parametrize(
  ("source", "has"),
  [
    ([], False),
    ([BARE] * 3, False),
    ([BARE, {"labels": [1], "objects": None}], False),
    ([{"labels": [1], "objects": {"label": []}}], False),
    ([located(2)], False),  # of a class that the picture is not of
    ([BARE, BARE, located(1)], True),
    ([located(2, labels=[1, 2])], True),
  ],
)
def test_a_split_has_objects_where_one_picture_tells_where_its_class_is(
  source, has
):
  assert make(source).has_objects() == has


class Torn(list):
  """Records of which the first is gone from the disk."""

  def __getitem__(self, index):
    if index == 0:
      raise FileNotFoundError("gone")
    return super().__getitem__(index)


def test_a_record_that_cannot_be_read_tells_nothing():
  assert make(Torn([BARE, located(1)])).has_objects()
  assert not make(Torn([located(1), BARE])).has_objects()


class Many:
  """A split of a million, of which every third picture tells, or none."""

  def __init__(self, tells):
    self.tells = tells
    self.read = []

  def __len__(self):
    return 1_000_000

  def __getitem__(self, index):
    self.read.append(index)
    return located(1) if self.tells and index % 3 == 2 else BARE


def test_of_a_large_split_no_more_is_read_than_tells():
  some, none = Many(True), Many(False)
  assert make(some).has_objects()
  assert len(some.read) <= 3
  assert not make(none).has_objects()
  assert len(none.read) == datasets._MOST_LOOKED_AT
  assert max(none.read) > 990_000
