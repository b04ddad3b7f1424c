"""On stamps in Tux Paint's layout, and on Debian's where they are."""

import io
import itertools
import pathlib

import numpy as np
import PIL.Image
import pytest

from gc_jax.data.sets import context_objects, photographs
from gc_jax.data.sets.context_objects import CLASSES, ContextObjectsConfig
from tests.data import real_things

OF_CLASS = 6  # in the written folder


def write_stamps(folder):
  """Writes six things a class, in its first folder, and what is no thing."""
  things = real_things.things()
  for k, below in enumerate(CLASSES.values()):
    part = folder / below[-1]
    part.mkdir(parents=True)
    for i in range(OF_CLASS):
      thing = things[-1 - (k + i) % 8]  # the larger ones
      flipped = thing[:: (-1) ** (i // 2), :: (-1) ** i]
      PIL.Image.fromarray(np.ascontiguousarray(flipped)).save(
        part / f"{'abcdef'[i]}-{k}.png"
      )
  # Not to be taken: a drawing's folder, a drawing's export, a mirror image, a
  # silhouette, a miniature; and folders of no class.
  part, thing = folder / CLASSES["bird"][0], PIL.Image.fromarray(things[-1])
  for name in ("cartoon/toon.png", "drawn.png", "a-0_mirror.png"):
    (part / name).parent.mkdir(exist_ok=True)
    thing.save(part / name)
  (part / "drawn.svg").write_text("<svg/>")
  black = things[-1] * np.array([0, 0, 0, 1], np.uint8)
  PIL.Image.fromarray(black).save(part / "silhouette.png")
  thing.resize((40, 30)).save(part / "miniature.png")
  (folder / "symbols").mkdir()
  thing.save(folder / "symbols" / "letter.png")
  return str(folder)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
  return write_stamps(tmp_path_factory.mktemp("stamps"))


INSTALLED = pathlib.Path(context_objects.FOLDER).is_dir()


@pytest.fixture(params=["written", "installed"] if INSTALLED else ["written"])
def folder(request, written):
  return written if request.param == "written" else context_objects.FOLDER


def examples(folder, split, count, **config):
  config = ContextObjectsConfig(folder=folder, image_size=32, **config)
  return [
    context_objects.draw_example(config, split, index) for index in range(count)
  ]


def test_only_photographed_things_of_the_classes_are_taken(written):
  found = context_objects.find_stamps(written)
  assert [[path.name for path in paths] for paths in found] == [
    [f"{letter}-{k}.png" for letter in "abcdef"] for k in range(10)
  ]


def test_every_class_has_things_for_every_split(folder):
  source = context_objects.source(folder)
  assert len(source.class_names) == 10
  for label in range(10):
    splits = [source.usable(label, split) for split in photographs.SPLITS]
    assert all(splits)
    numbers = sorted(itertools.chain(*splits))
    assert numbers == list(range(len(numbers))), "each in exactly one"
    assert len(splits[0]) >= 0.6 * len(numbers)


def test_a_stamp_keeps_its_colors_and_its_alpha(folder):
  source = context_objects.source(folder)
  for label, paths in enumerate(context_objects.find_stamps(folder)):
    with PIL.Image.open(paths[0]) as image:
      stamp = np.asarray(image.convert("RGBA"))
    rows, columns = np.nonzero(stamp[..., 3])
    stamp = stamp[
      rows.min() : rows.max() + 1, columns.min() : columns.max() + 1
    ]
    cutout = source.cutout(label, 0)
    np.testing.assert_array_equal(cutout.alpha, stamp[..., 3])
    np.testing.assert_array_equal(cutout.colors, stamp[..., :3])
    assert (cutout.alpha >= 128).sum() > 100


def test_grey_and_palette_stamps_are_read_as_they_look(tmp_path):
  thing = PIL.Image.fromarray(real_things.things()[-1])
  thing.convert("LA").save(tmp_path / "grey.png")
  grey = context_objects.read_stamp(tmp_path / "grey.png")
  np.testing.assert_array_equal(grey.alpha, np.asarray(thing)[..., 3])
  assert np.ptp(grey.colors, axis=-1).max() == 0
  palette = thing.convert("RGB").quantize(255)
  palette.save(tmp_path / "palette.png", transparency=7)
  stamp = context_objects.read_stamp(tmp_path / "palette.png")
  np.testing.assert_array_equal(stamp.alpha == 0, np.asarray(palette) == 7)


def test_no_thing_is_in_two_splits(folder):
  source = context_objects.source(folder)
  used = {
    split: {
      source.cutout(label, number).colors.tobytes()
      for e in examples(folder, split, 60, multi_label=True)
      for label, number in zip(e.labels, e.numbers, strict=True)
    }
    for split in photographs.SPLITS
  }
  if folder == context_objects.FOLDER:
    for a, b in itertools.combinations(used.values(), 2):
      assert not a & b
  # The written folder shows a thing in several classes.
  pairs = [
    {
      which
      for e in examples(folder, split, 60, multi_label=True)
      for which in zip(e.labels, e.numbers, strict=True)
    }
    for split in photographs.SPLITS
  ]
  for a, b in itertools.combinations(pairs, 2):
    assert not a & b


def test_backgrounds_of_two_splits_share_no_pixel(folder):
  for split in photographs.SPLITS:
    for example in examples(folder, split, 40):
      box = photographs.region(example.photograph, split)
      left, top, right, bottom = example.crop
      assert box[0] <= left < right <= box[2]
      assert box[1] <= top < bottom <= box[3]


def test_records_hold_what_was_drawn(written, tmp_path):
  config = {
    "image_size": 32,
    "multi_label": True,
    "folder": written,
    "num_examples": (24, 10, 11),
  }
  dataset = context_objects.load("test", data_dir=tmp_path, **config)
  assert dataset.class_names == tuple(CLASSES)
  assert dataset.name.startswith("context_objects/multi-32px")
  for index in range(11):
    record = dataset.source[index]
    example = context_objects.draw_example(
      ContextObjectsConfig(**config), "test", index
    )
    image = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
    np.testing.assert_array_equal(image, example.picture.image)
    assert tuple(record["labels"]) == example.labels
    for encoded, mask in zip(
      record["objects"]["mask"], example.picture.masks, strict=True
    ):
      pixels = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
      np.testing.assert_array_equal(pixels > 127, mask)
  again = context_objects.load(
    "train", data_dir=tmp_path, **{**config, "folder": "/nowhere"}
  )
  assert len(again.source) == 24, "drawn data needs the stamps no more"


def test_a_missing_package_is_named_with_the_command(tmp_path):
  with pytest.raises(
    ValueError,
    match=r"context_objects' must find Tux Paint's stamps in .*absent, which "
    r"does not exist. .*: sudo apt-get install tuxpaint-stamps-default",
  ):
    context_objects.load(
      "train", data_dir=tmp_path, folder=str(tmp_path / "absent")
    )


def test_a_folder_of_something_else_is_told_by_the_class_it_lacks(tmp_path):
  with pytest.raises(
    ValueError,
    match=r"at least 5 photographed stamps of class 'bird' in animals/birds; "
    r"it holds 0. Install the Debian package: .*tuxpaint-stamps-default",
  ):
    context_objects.load("train", data_dir=tmp_path, folder=str(tmp_path))
