"""On files in Fashion-MNIST's format, and on Debian's where they are."""

import gzip
import io
import itertools
import pathlib

import numpy as np
import PIL.Image
import pytest

from gc_jax.data.sets import context_fashion, photographs
from gc_jax.data.sets.context_fashion import ContextFashionConfig, cut_out
from tests.data import real_things

TRAIN, TEST = 24, 4  # of each class, in the written files


def write_idx(path, pixels):
  header = bytes([0, 0, 8, pixels.ndim])
  header += b"".join(n.to_bytes(4, "big") for n in pixels.shape)
  path.write_bytes(gzip.compress(header + pixels.tobytes()))


def write_fashion(folder):
  """Writes the four files, of things in all four attitudes, 280 different."""
  folder.mkdir()
  things, generator = real_things.things(), np.random.default_rng(0)
  pictures = [
    np.ascontiguousarray(real_things.negative(things[k][::y, ::x], 28))
    for k in range(10)
    for y, x in itertools.product((1, -1), (1, -1))
  ]
  shifted = [
    np.roll(picture, (dy, dx), (0, 1))
    for picture in pictures
    for dy, dx in [(0, 0), (1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, 1)]
  ]
  images = np.stack(shifted).reshape(10, TRAIN + TEST, 28, 28)
  labels = np.arange(10, dtype=np.uint8)[:, None].repeat(TRAIN + TEST, 1)
  for part, which in (
    ("train", np.s_[:, :TRAIN]),
    ("t10k", np.s_[:, TRAIN:]),
  ):
    count = labels[which].size
    order = generator.permutation(count)  # classes come mixed
    write_idx(
      folder / f"{part}-images-idx3-ubyte.gz",
      images[which].reshape(count, 28, 28)[order],
    )
    write_idx(
      folder / f"{part}-labels-idx1-ubyte.gz", labels[which].reshape(-1)[order]
    )
  return str(folder)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
  return write_fashion(tmp_path_factory.mktemp("fashion") / "files")


INSTALLED = pathlib.Path(context_fashion.FOLDER).is_dir()


@pytest.fixture(params=["written", "installed"] if INSTALLED else ["written"])
def folder(request, written):
  return written if request.param == "written" else context_fashion.FOLDER


def read(folder, part):
  """Reads images and labels in a way of its own."""
  found = []
  for name, header in (("images-idx3", 16), ("labels-idx1", 8)):
    path = pathlib.Path(folder, f"{part}-{name}-ubyte.gz")
    found.append(
      np.frombuffer(gzip.decompress(path.read_bytes())[header:], "B")
    )
  return found[0].reshape(-1, 28, 28), found[1]


def examples(folder, split, count, **config):
  config = ContextFashionConfig(folder=folder, image_size=32, **config)
  return [
    context_fashion.draw_example(config, split, index) for index in range(count)
  ]


def test_products_are_those_of_the_files_class_by_class(folder):
  source = context_fashion.source(folder)
  train, test = read(folder, "train"), read(folder, "t10k")
  for label in range(10):
    of_class = train[0][train[1] == label], test[0][test[1] == label]
    splits = {s: source.usable(label, s) for s in photographs.SPLITS}
    assert [*splits["train"], *splits["validation"]] == list(
      range(len(of_class[0]))
    )
    assert len(splits["validation"]) == round(len(of_class[0]) / 12)
    assert len(splits["test"]) == len(of_class[1])
    joined = np.concatenate(of_class)
    for numbers in splits.values():
      for number in (numbers[0], numbers[-1]):
        colors = source.cutout(label, number).colors
        assert np.ptp(colors, axis=-1).max() == 0, "grey"
        np.testing.assert_array_equal(255 - colors[..., 0], joined[number])


def test_the_installed_files_are_all_of_fashion_mnist(folder):
  counts = {
    len(context_fashion.source(folder).usable(label, split))
    for label in range(10)
    for split in photographs.SPLITS
  }
  of_a_class = {5_500, 500, 1_000}
  written = {TRAIN - 2, 2, TEST}
  assert counts == (of_a_class if folder.startswith("/usr") else written)


def test_every_product_has_a_mask(folder):
  source = context_fashion.source(folder)
  for label in range(10):
    for split in photographs.SPLITS:
      for number in source.usable(label, split)[:50]:
        alpha = source.cutout(label, number).alpha
        # A belt of the installed files is the least: 29 pixels.
        assert (alpha >= 128).sum() >= 25


def test_what_a_product_encloses_is_its_own_and_specks_are_not():
  negative = np.zeros((28, 28), np.uint8)
  negative[4:24, 6:20] = 200
  negative[10:14, 10:14] = 0  # a white print on the chest
  negative[0, 27] = 90  # a speck
  cutout = cut_out(negative)
  expected = np.zeros((28, 28), np.uint8)
  expected[4:24, 6:20] = 255
  np.testing.assert_array_equal(cutout.alpha, expected)
  assert (cutout.colors[10:14, 10:14] == 255).all(), "the print is white again"


def test_the_outline_lets_through_what_was_white_around_it():
  negative = np.full((9, 9), 0, np.uint8)
  negative[2:7, 2:7] = 40
  negative[3:6, 3:6] = 200
  alpha = cut_out(negative).alpha
  assert set(alpha[2:7, 2]) == {160} and (alpha[3:6, 3:6] == 255).all()
  assert not alpha[:2].any()


def test_a_product_as_white_as_its_background_is_still_a_cutout():
  negative = np.zeros((28, 28), np.uint8)
  negative[14, 3:25] = 5  # a thin strap
  assert (cut_out(negative).alpha >= 128).sum() == 22


def test_no_product_is_in_two_splits(folder):
  source = context_fashion.source(folder)
  used = {
    split: {
      source.cutout(label, number).colors.tobytes()
      for e in examples(folder, split, 60, multi_label=True)
      for label, number in zip(e.labels, e.numbers, strict=True)
    }
    for split in photographs.SPLITS
  }
  for a, b in itertools.combinations(used.values(), 2):
    assert not a & b


def test_backgrounds_of_two_splits_share_no_pixel(folder):
  for split in photographs.SPLITS:
    for example in examples(folder, split, 40):
      box = photographs.region(example.photograph, split)
      left, top, right, bottom = example.crop
      assert box[0] <= left < right <= box[2]
      assert box[1] <= top < bottom <= box[3]


@pytest.fixture(scope="session")
def load_small(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("tfds")

  def load(split, **config):
    return context_fashion.load(
      split, data_dir=data_dir, num_examples=(24, 10, 11), **config
    )

  return load


@pytest.mark.parametrize("multi_label", [False, True])
def test_records_hold_what_was_drawn(load_small, written, multi_label):
  config = {"image_size": 32, "multi_label": multi_label, "folder": written}
  dataset = load_small("test", **config)
  assert dataset.class_names == context_fashion.CLASS_NAMES
  assert dataset.name.startswith("context_fashion/")
  assert len(dataset.source) == 11
  drawn = ContextFashionConfig(num_examples=(24, 10, 11), **config)
  for index in range(11):
    record = dataset.source[index]
    example = context_fashion.draw_example(drawn, "test", index)
    image = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
    np.testing.assert_array_equal(image, example.picture.image)
    assert tuple(record["labels"]) == example.labels
    for encoded, mask in zip(
      record["objects"]["mask"], example.picture.masks, strict=True
    ):
      pixels = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
      np.testing.assert_array_equal(pixels > 127, mask)


def test_drawn_data_needs_the_files_no_more(load_small, written):
  config = {"image_size": 32, "seed": 5}
  load_small("train", folder=written, **config)
  dataset = load_small("train", folder="/nowhere", **config)
  assert len(dataset.source) == 24


def test_a_missing_package_is_named_with_the_command(load_small, tmp_path):
  with pytest.raises(
    ValueError,
    match=r"context_fashion' must find Fashion-MNIST in .*; train-images-idx3-"
    r"ubyte.gz is missing.*: sudo apt-get install dataset-fashion-mnist",
  ):
    load_small("train", image_size=48, folder=str(tmp_path))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",
      r"IDX file of bytes; it starts with '0000",
    ),
    (
      b"\0\0\x08\x01\0\0\0\x05abc",
      r"hold 5 bytes after its header; it holds 3",
    ),
    (b"", r"it starts with ''"),
  ],
)
def test_files_that_are_not_what_they_say_are_refused(
  tmp_path, content, message
):
  path = tmp_path / "train-labels-idx1-ubyte.gz"
  path.write_bytes(gzip.compress(content))
  with pytest.raises(ValueError, match=message):
    context_fashion.read_idx(path)
