"""What messages say of many names."""

import pytest

from gc_jax.runtime.messages import listed, nearest_fields, unknown_name_message

CLASSES = [f"class_number_{i:04}" for i in range(1500)]


def test_a_list_ends_with_how_many_more_there_are():
  assert listed(["a", "b"]) == "a, b"
  assert listed(list("abcdef"), most=2) == "a, b, and 4 more"
  assert listed({"a": 1}, most=1) == "a"
  assert (
    listed(CLASSES, most=1, between="\n") == f"{CLASSES[0]}\nand 1,499 more"
  )


@pytest.mark.parametrize(
  ("name", "first"),
  [
    ("class_number_0777x", "class_number_0777"),
    ("Class_Number_0777", "class_number_0777"),
    ("Class3", "class_number_0003"),
    ("dog", "class_number_0000"),
  ],
)
def test_ten_of_many_names_are_listed_the_nearest_first(name, first):
  message = unknown_name_message("class", name, CLASSES)
  assert message.startswith(f"Unknown class={name!r}. Known: {first}, ")
  assert "and 1,490 more." in message and message.count("class_number") <= 12
  assert len(message) < 400
  assert ("Did you mean" in message) == ("_" in name)


def test_few_names_are_all_listed_in_their_order_and_long_ones_cut():
  message = unknown_name_message("split", "TRAIN", ["test", "train"])
  assert message == (
    "Unknown split='TRAIN'. Known: test, train. Did you mean 'train'?"
  )
  message = unknown_name_message("class", "x" * 9_999, ["y" * 9_999] * 30)
  assert len(message) < 400


@pytest.mark.parametrize(
  ("name", "nearest"),
  [
    ("size", ["data.image_size"]),  # by its last part
    ("data.imagesize", ["data.image_size"]),  # nearly as it is spelled
    ("folder", ["data.path", "report.baseline"]),  # by what is said of it
    ("report.folder", ["report.baseline"]),  # and where
    ("model.epochs", ["num_epochs"]),
    ("xyzzy", []),
    ("", []),
  ],
)
def test_fields_are_near_by_spelling_and_by_meaning(name, nearest):
  meanings = {
    "data.path": "folder of the pictures",
    "data.image_size": "pixels, square",
    "report.baseline": "folder of a run",
    "num_epochs": "",
  }
  assert nearest_fields(name, meanings) == nearest
