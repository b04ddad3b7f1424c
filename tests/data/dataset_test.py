"""What a loaded split tells of itself."""

import pytest

from gc_jax.data import Dataset
from gc_jax.data import dataset as datasets


def located(label, labels=(1,)):
  return {"labels": list(labels), "objects": {"label": [label]}}


BARE = {"labels": [1]}


def has_objects(source):
  return Dataset(source, ("a", "b", "c"), True, "hand-made").has_objects()


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
def test_a_split_has_objects_if_one_picture_says_where_its_class_is(
  source, has
):
  assert has_objects(source) == has


class Torn(list):
  """Records of which the first is gone from the disk."""

  def __getitem__(self, index):
    if index == 0:
      raise FileNotFoundError("gone")
    return super().__getitem__(index)


def test_a_record_that_cannot_be_read_is_passed_over():
  assert has_objects(Torn([BARE, located(1)]))
  assert not has_objects(Torn([located(1), BARE]))


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


def test_a_large_split_is_not_read_whole():
  some, none = Many(True), Many(False)
  assert has_objects(some) and not has_objects(none)
  assert len(some.read) <= 3
  assert len(none.read) == datasets._MOST_LOOKED_AT
  assert max(none.read) > 990_000


def test_known_labels_are_not_read_again():
  known = Dataset(None, ("a", "b"), False, "hand-made", labels=[[0], [1]])
  assert known.all_labels() is known.labels
  assert Dataset([BARE], ("a", "b"), False, "hand-made").all_labels() == [[1]]
