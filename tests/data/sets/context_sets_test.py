"""On files in the formats of the packages, and on installed packages."""

import gzip
import itertools
import pathlib

import numpy as np
import PIL.Image
import pytest

from gc_jax.data.sets import context, context_sets
from gc_jax.data.sets.context import SPLITS
from gc_jax.data.sets.context_sets import (
  BUILDERS,
  FASHION_FOLDER,
  STAMP_FOLDERS,
  STAMPS_FOLDER,
  cut_out,
)
from tests.data import photos

TRAIN, TEST = 24, 4  # products of each class in the written files


def write_idx(path, pixels):
  header = bytes([0, 0, 8, pixels.ndim])
  header += b"".join(n.to_bytes(4, "big") for n in pixels.shape)
  path.write_bytes(gzip.compress(header + pixels.tobytes()))


def write_fashion(folder):
  """Writes the four files, of things in all four attitudes, 280 different."""
  things, generator = photos.things(), np.random.default_rng(0)
  pictures = [
    np.ascontiguousarray(photos.negative(things[k][::y, ::x], 28))
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
  for part, which in (("train", np.s_[:, :TRAIN]), ("t10k", np.s_[:, TRAIN:])):
    order = generator.permutation(labels[which].size)  # classes come mixed
    mixed = images[which].reshape(-1, 28, 28)[order]
    write_idx(folder / f"{part}-images-idx3-ubyte.gz", mixed)
    mixed = labels[which].reshape(-1)[order]
    write_idx(folder / f"{part}-labels-idx1-ubyte.gz", mixed)


def write_stamps(folder):
  """Writes six things a class, and what must not be taken."""
  things = photos.things()
  for k, below in enumerate(STAMP_FOLDERS.values()):
    part = folder / below[-1]
    part.mkdir(parents=True)
    for i, letter in enumerate("abcdef"):
      thing = things[-1 - (k + i) % 8]  # the larger ones
      flipped = thing[:: (-1) ** (i // 2), :: (-1) ** i]
      image = PIL.Image.fromarray(np.ascontiguousarray(flipped))
      image.save(part / f"{letter}-{k}.png")
  # A drawing's folder, a drawing's export, a mirror image, a silhouette, a
  # miniature; and a folder of no class.
  part, thing = folder / "animals/birds", PIL.Image.fromarray(things[-1])
  for name in ("cartoon/toon.png", "drawn.png", "a-0_mirror.png"):
    (part / name).parent.mkdir(exist_ok=True)
    thing.save(part / name)
  (part / "drawn.svg").write_text("<svg/>")
  black = things[-1] * np.array([0, 0, 0, 1], np.uint8)
  PIL.Image.fromarray(black).save(part / "silhouette.png")
  thing.resize((40, 30)).save(part / "miniature.png")
  (folder / "symbols").mkdir()
  thing.save(folder / "symbols" / "letter.png")


@pytest.fixture(scope="session")
def written(tmp_path_factory):
  """Returns the written folder of each set that needs one."""
  folders = {
    name: tmp_path_factory.mktemp(name)
    for name in ("context_fashion", "context_objects")
  }
  write_fashion(folders["context_fashion"])
  write_stamps(folders["context_objects"])
  return {name: str(folder) for name, folder in folders.items()}


def folders_of(installed):
  return ["", *([installed] if pathlib.Path(installed).is_dir() else [])]


@pytest.fixture(params=folders_of(FASHION_FOLDER))
def products(request, written):
  """Returns the folder and the source of Fashion-MNIST."""
  folder = request.param or written["context_fashion"]
  return folder, context_sets.fashion(folder)


@pytest.fixture(params=folders_of(STAMPS_FOLDER))
def stamps(request, written):
  """Returns the folder and the source of Tux Paint's stamps."""
  folder = request.param or written["context_objects"]
  return folder, context_sets.stamps(folder)


# All three sets.


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", BUILDERS)
def test_records_hold_what_was_drawn(written, tmp_path, name, multi_label):
  builder, folder = BUILDERS[name], {}
  if name in written:
    folder = {"folder": written[name]}
  config = {"multi_label": multi_label, "num_examples": (24, 10, 11)}

  def load(split, **folder):
    return context.load(builder, split, data_dir=tmp_path, **config, **folder)

  dataset = load("test", **folder)
  drawn = builder.CONFIG(**config, **folder)
  source = builder(data_dir=tmp_path, config=drawn).source()
  assert dataset.class_names == builder.CLASS_NAMES
  assert dataset.name.startswith(f"{name}/")
  assert len(dataset.source) == 11
  for index in range(11):
    record = dataset.source[index]
    example = context.draw_example(source, drawn, "test", index)
    np.testing.assert_array_equal(
      photos.decode(record["image"]), example.picture.image
    )
    assert tuple(record["labels"]) == example.labels
    objects = record["objects"]
    assert tuple(objects["label"]) == example.labels
    assert not any(objects["difficult"])
    for encoded, mask, box in zip(
      objects["mask"], example.picture.masks, objects["bbox"], strict=True
    ):
      np.testing.assert_array_equal(photos.decode(encoded) > 127, mask)
      ymin, xmin, ymax, xmax = np.round(box * 64).astype(int)
      assert mask[ymin:ymax, xmin:xmax].sum() == mask.sum() > 0
      edges = mask[[ymin, ymax - 1]].any(1), mask[:, [xmin, xmax - 1]].any(0)
      assert np.all(edges), "the box is tight"
  if folder:
    again = load("train", folder="/nowhere")
    assert len(again.source) == 24, "drawn data needs the objects no more"


def test_no_object_is_in_two_splits(products, stamps, tmp_path):
  digits = context_sets.ContextDigits(data_dir=tmp_path).source()
  for source in (digits, products[1], stamps[1]):
    assert len(source.usable) == 10
    for of_class in source.usable:
      numbers = list(itertools.chain(*of_class.values()))
      assert sorted(numbers) == list(range(len(numbers)))
      assert all(of_class[split] for split in SPLITS)
      assert len(of_class["train"]) >= 0.6 * len(numbers)
  # Nor under another number.
  pixels = [
    {digits.cutout(k, i).alpha.tobytes() for k in range(10) for i in numbers}
    for numbers in context_sets.STROKES.values()
  ]
  for a, b in itertools.combinations(pixels, 2):
    assert not a & b


MISSING = {
  "context_fashion": "Fashion-MNIST in .*; train-images-idx3-ubyte.gz is",
  "context_objects": "Tux Paint's stamps in .*absent, which does not ex",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_named_with_the_command(tmp_path, name):
  message = f"{name}' must find {MISSING[name]}.*: sudo apt-get install (da|tu)"
  absent = str(tmp_path / "absent")
  with pytest.raises(ValueError, match=message):
    context.load(BUILDERS[name], "train", data_dir=tmp_path, folder=absent)


# Products.


def test_products_are_those_of_the_files_class_by_class(products):
  folder, source = products

  def read(part, content, header):  # in a way of its own
    path = pathlib.Path(folder, f"{part}-{content}-ubyte.gz")
    return np.frombuffer(gzip.decompress(path.read_bytes())[header:], "B")

  of_class = [[] for _ in range(10)]
  counts = {}
  for part in ("train", "t10k"):
    images = read(part, "images-idx3", 16).reshape(-1, 28, 28)
    labels = read(part, "labels-idx1", 8)
    counts[part] = len(labels) // 10
    for label in range(10):
      of_class[label].append(images[labels == label])
  is_installed = folder == FASHION_FOLDER
  train, test = (6_000, 1_000) if is_installed else (TRAIN, TEST)
  assert counts == {"train": train, "t10k": test}
  held_out = counts["train"] // 12
  for label, splits in enumerate(source.usable):
    joined = np.concatenate(of_class[label])
    numbers = [*splits["train"], *splits["validation"], *splits["test"]]
    assert numbers == list(range(len(joined)))
    assert len(splits["validation"]) == held_out
    assert len(splits["test"]) == counts["t10k"]
    for numbers in splits.values():
      for number in (numbers[0], numbers[-1]):
        colors = source.cutout(label, number).colors
        assert np.ptp(colors, axis=-1).max() == 0, "grey"
        np.testing.assert_array_equal(255 - colors[..., 0], joined[number])
      for number in numbers[:50]:
        # A belt of the installed files is the least: 29 pixels.
        assert (source.cutout(label, number).alpha >= 128).sum() >= 25


def test_enclosed_pixels_belong_to_the_product_and_specks_do_not():
  negative = np.zeros((28, 28), np.uint8)
  negative[4:24, 6:20] = 200
  negative[10:14, 10:14] = 0  # a white print on the chest
  negative[0, 27] = 90  # a speck
  cutout = cut_out(negative)
  expected = np.zeros((28, 28), np.uint8)
  expected[4:24, 6:20] = 255
  np.testing.assert_array_equal(cutout.alpha, expected)
  assert (cutout.colors[10:14, 10:14] == 255).all(), "the print is white again"


def test_the_outline_is_more_transparent_the_whiter_it_is():
  negative = np.zeros((9, 9), np.uint8)
  negative[2:7, 2:7] = 40
  negative[3:6, 3:6] = 200
  alpha = cut_out(negative).alpha
  assert set(alpha[2:7, 2]) == {160} and (alpha[3:6, 3:6] == 255).all()
  assert not alpha[:2].any()


def test_a_product_as_white_as_its_background_is_still_a_cutout():
  negative = np.zeros((28, 28), np.uint8)
  negative[14, 3:25] = 5  # a thin strap
  assert (cut_out(negative).alpha >= 128).sum() == 22


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", r"of bytes; it starts with '0000"),
    (
      b"\0\0\x08\x01\0\0\0\x05abc",
      r"hold 5 bytes after its header; .* holds 3",
    ),
    (b"", r"it starts with ''"),
  ],
)
def test_a_broken_file_of_products_is_refused(tmp_path, content, message):
  path = tmp_path / "train-labels-idx1-ubyte.gz"
  path.write_bytes(gzip.compress(content))
  with pytest.raises(ValueError, match=message):
    context_sets.read_idx(path)


# Stamps.


def test_only_photographed_things_of_the_classes_are_taken(written):
  found = context_sets.find_stamps(written["context_objects"])
  assert [[path.name for path in paths] for paths in found] == [
    [f"{letter}-{k}.png" for letter in "abcdef"] for k in range(10)
  ]


def test_a_stamp_keeps_its_colors_and_its_alpha(stamps):
  folder, source = stamps
  for label, paths in enumerate(context_sets.find_stamps(folder)):
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
  thing = PIL.Image.fromarray(photos.things()[-1])
  thing.convert("LA").save(tmp_path / "grey.png")
  grey = context_sets.read_stamp(tmp_path / "grey.png")
  np.testing.assert_array_equal(grey.alpha, np.asarray(thing)[..., 3])
  assert np.ptp(grey.colors, axis=-1).max() == 0
  palette = thing.convert("RGB").quantize(255)
  palette.save(tmp_path / "palette.png", transparency=7)
  stamp = context_sets.read_stamp(tmp_path / "palette.png")
  np.testing.assert_array_equal(stamp.alpha == 0, np.asarray(palette) == 7)


def test_a_folder_without_the_stamps_of_a_class_is_refused(tmp_path):
  with pytest.raises(
    ValueError,
    match=r"at least 5 photographed stamps of class 'bird' in animals/birds; "
    r"it holds 0. Install the Debian package: .*tuxpaint-stamps-default",
  ):
    context_sets.find_stamps(str(tmp_path))
