"""Classes by the names that people and folders give them."""

import pytest

from gc_jax.data.sets import imagenet_files
from gc_jax.inference import classes


def test_the_nearest_folder_that_one_class_alone_is_called_tells_it():
  class_of = classes.by_folder(("cat", "café", "crane", "crane", "val"))
  assert class_of(("cat", "val")) == 0
  assert class_of(("old", "cafe\u0301", "val")) == 1  # the accent by itself
  assert class_of(("crane", "val")) == 4  # two classes are called so
  assert class_of(("Cat", "n02123045")) is None
  assert classes.by_folder(())(("cat",)) is None


def test_imagenets_classes_are_known_by_their_wnids_too():
  names = imagenet_files.published_names()
  class_of = classes.by_folder(names)
  assert class_of(("n01443537", "val")) == names.index("goldfish") == 1
  assert class_of(("goldfish",)) == 1
  assert class_of(("n99999999",)) is None
  others = (*names[:-1], "something else")  # not ImageNet's
  assert classes.by_folder(others)(("n01443537",)) is None


@pytest.mark.parametrize(
  "asked, target",
  [("predicted", None), ("cat", 0), ("2", 2), ("3", 1), ("cafe\u0301", 3)],
)
def test_a_target_is_a_name_before_it_is_an_id(asked, target):
  found, remark = classes.target_of(asked, ("cat", "3", "fox", "café"), 4)
  assert found == target
  assert bool(remark) == (asked == "3")


def test_a_name_of_two_classes_is_no_target():
  with pytest.raises(ValueError, match=r"--target must name one .* ids: 0, 1"):
    classes.target_of("crane", ("crane", "crane"), 2)
