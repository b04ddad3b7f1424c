"""Rows of evaluations: which there are, and that batching changes none."""

import dataclasses

import jax
import numpy as np
import pytest

from gc_jax.data import decode, geometry, pairs
from gc_jax.data.dataset import ClassIndex, Dataset, Reader
from gc_jax.data.pairs import Composite, Frame, Square
from tests.data import photos

CLASSES = ("cat", "dog", "bird")


def record(index, size, labels, objects=True):
  """A photograph with a box of its own for each object."""
  width, height = size
  rng = np.random.default_rng(index)
  boxes = []
  for _ in labels:
    top, left = rng.uniform(0, 0.6, 2)
    boxes.append([top, left, top + 0.3, left + 0.35])
  made = {
    "image": photos.encode(
      rng.integers(0, 256, (height, width, 3), np.uint8), "png"
    ),
    "labels": list(labels),
    "name": f"picture {index}",
  }
  if objects:
    made["objects"] = {
      "label": list(labels),
      "bbox": boxes,
      "difficult": [False] * len(labels),
    }
  return made


def test_a_pair_of_empty_boxes_counts_in_the_release_alone():
  made = record(0, (60, 40), [1])
  made["objects"]["sliced"] = [(-1 / 40, 0.1, 0.5, 0.5)]
  dataset = Dataset([made], CLASSES, True, "one picture")
  grid = (4, 6)
  for border, pixels in (("release", 0), ("clipped", 1)):
    maker = Frame(Reader(dataset), (40, 60), 40, 0, 3.0, (grid,), border)
    entries = maker.row(0, 1).entries
    assert entries["annotated"] == 1
    inside = entries["annotations"][geometry.grid_name(grid)].inside
    assert (inside.sum() > 0) == pixels


@pytest.fixture(scope="module")
def several():
  """Pictures of many sizes with one, two or no classes."""
  records = [
    record(0, (60, 40), [2, 0, 2]),
    record(1, (40, 60), [1]),
    record(2, (50, 50), []),
    record(3, (80, 40), [0, 1]),
    record(4, (41, 60), [2]),
    record(5, (60, 40), [1], objects=False),
    record(6, (60, 40), [0]),
  ]
  return Dataset(records, CLASSES, multi_label=True, name="several")


@pytest.fixture(scope="module")
def rows(several):
  return pairs.all_pairs(several.all_labels())


def square(dataset, **fields):
  made = Square(Reader(dataset), 32, tolerance_px=3.0)
  return dataclasses.replace(made, **fields)


def composite(dataset, reader=None):
  made = square(dataset)
  if reader is not None:
    made = dataclasses.replace(made, reader=reader)
  return Composite(made, ClassIndex(dataset.all_labels(), len(CLASSES)))


def joined(shares):
  return jax.tree.map(lambda *x: np.concatenate(x), *[s.batch for s in shares])


def test_every_class_of_every_picture_is_a_row_and_so_is_none(rows):
  np.testing.assert_array_equal(rows.index, [0, 0, 1, 2, 3, 3, 4, 5, 6])
  np.testing.assert_array_equal(rows.target, [0, 2, 1, -1, 0, 1, 2, 1, 0])
  np.testing.assert_array_equal(rows.first, [1, 0, 1, 1, 1, 0, 1, 1, 1])


def test_a_row_holds_what_the_picture_and_its_class_say(several, rows):
  maker = square(several, grids=((4, 4), (8, 8)), with_objects=True)
  (share,) = pairs.batches(rows, range(9), maker, 12)
  batch = share.batch
  np.testing.assert_array_equal(batch["row"], [*range(9), -1, -1, -1])
  np.testing.assert_array_equal(batch["mask"], [1] * 9 + [0] * 3)
  np.testing.assert_array_equal(batch["first"][:9], rows.first)
  assert batch["first"][9:].sum() == 0
  np.testing.assert_array_equal(
    batch["target_mask"], [1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]
  )
  np.testing.assert_array_equal(
    batch["annotated"][:9], [1, 1, 1, 0, 1, 1, 1, 0, 1]
  )
  np.testing.assert_array_equal(batch["labels"][1], [1, 0, 2])
  for i in (0, 1, 5):
    record = several.source[rows.index[i]]
    np.testing.assert_array_equal(
      batch["image"][i], geometry.decode_image(record["image"], 32)
    )
    masks = geometry.decode_object_masks(record, int(rows.target[i]), 32)
    object_mask = np.logical_or.reduce(masks)
    np.testing.assert_array_equal(batch["object_mask"][i], object_mask)
    near = geometry.dilate(object_mask, 3.0)
    for grid in ((4, 4), (8, 8)):
      expected = geometry.on_grid(object_mask, near, grid)
      found = batch["annotations"][geometry.grid_name(grid)]
      for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[i], theirs)
    for box, mask in zip(share.boxes[i], masks, strict=True):
      ymin, xmin, ymax, xmax = box
      inside = mask[ymin:ymax, xmin:xmax]
      assert inside.sum() == mask.sum()  # and no border could be left out:
      for border in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
        assert border.any()


@pytest.mark.parametrize("make", [square, composite])
def test_neither_batches_nor_processes_change_a_row(several, rows, make):
  maker = make(several)
  (whole,) = pairs.batches(rows, range(9), maker, 9)
  for batch_size, count in ((2, 1), (4, 1), (4, 2), (6, 3)):
    shares = []
    for process in range(count):
      which = {"process_index": process, "process_count": count}
      own = pairs.batches(rows, range(9), maker, batch_size, **which)
      shares.append(list(own))
    assert len({len(own) for own in shares}) == 1
    batch = joined([own for step in zip(*shares, strict=True) for own in step])
    real = batch["row"] >= 0
    np.testing.assert_array_equal(batch["row"][real], range(9))
    for name, values in whole.batch.items():
      if name != "annotations":
        np.testing.assert_array_equal(batch[name][real], values)


def test_starting_later_leaves_out_what_is_done(several, rows):
  maker = square(several)
  every = list(pairs.batches(rows, range(9), maker, 4))
  later = list(pairs.batches(rows, range(9), maker, 4, start=4))
  assert len(every) == 3 and len(later) == 2
  for ours, theirs in zip(later, every[1:], strict=True):
    jax.tree.map(np.testing.assert_array_equal, ours.batch, theirs.batch)


def test_a_composite_holds_its_picture_and_three_without_the_class(
  several, rows
):
  (share,) = pairs.batches(rows, range(9), composite(several), 9)
  batch = share.batch
  pictures = {
    index: geometry.decode_image(one["image"], 32)
    for index, one in enumerate(several.source)
  }
  assert batch["mask"][3] == 0  # no class, no composite
  cells = set()
  labels = several.all_labels()
  for i in np.flatnonzero(batch["mask"]):
    image = batch["image"][i]
    tiles = [image[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    cell = int(batch["cell"][i])
    cells.add(cell)
    np.testing.assert_array_equal(tiles.pop(cell), pictures[rows.index[i]])
    found = [
      k for t in tiles for k, one in pictures.items() if (one == t).all()
    ]
    others = [
      k
      for k, own in enumerate(labels)
      if len(own) and rows.target[i] not in own
    ]
    # All of them where there are fewer than three.
    assert len(found) == 3 and {*found} <= {*others}
    assert len({*found}) == min(3, len(others))
  assert len(cells) > 1


def test_where_all_show_the_class_there_is_no_composite(several, rows):
  alike = dataclasses.replace(
    several, source=[one | {"labels": [1]} for one in several.source]
  )
  found = pairs.all_pairs(alike.all_labels())
  (share,) = pairs.batches(found, range(7), composite(alike), 8)
  assert share.batch["mask"].sum() == 0


def test_frames_keep_the_annotation_in_its_own_pixels(several, rows):
  reader = Reader(several)
  sizes = pairs.frame_sizes(reader, rows.index, 64, 0)
  np.testing.assert_array_equal(sizes[2], (96, 64))
  np.testing.assert_array_equal(sizes[0], (64, 96))
  grid = (4, 6)
  frame = Frame(reader, (64, 96), 64, 0, 15.0, (grid,))
  (share,) = pairs.batches(rows, [0, 1, 8], frame, 3)
  assert share.batch["image"].shape == (3, 64, 96, 3)
  for i, row in enumerate([0, 1, 8]):
    record = several.source[rows.index[row]]
    header = decode.read_header(record["image"])
    objects = geometry.object_masks(record, header, int(rows.target[row]))
    object_mask = np.any([np.asarray(one) > 127 for one in objects], axis=0)
    assert object_mask.shape == (40, 60)
    expected = geometry.on_grid(
      object_mask, geometry.dilate(object_mask, 15.0), grid
    )
    for ours, theirs in zip(
      share.batch["annotations"]["4x6"], expected, strict=True
    ):
      np.testing.assert_array_equal(ours[i], theirs)


def test_rounded_frames_have_few_shapes(several, rows):
  sizes = pairs.frame_sizes(Reader(several), rows.index, 64, 32)
  assert (sizes % 32 == 0).all()
  assert len(np.unique(sizes, axis=0)) == 4
  frame = Frame(Reader(several), (96, 64), 64, 32, 15.0, ())
  (share,) = pairs.batches(rows, [2, 6], frame, 2)
  assert share.batch["image"].shape == (2, 96, 64, 3)


def test_broken_pictures_are_named_or_keep_an_empty_row(several, rows):
  source = [dict(one) for one in several.source]
  source[1]["image"] = b"no picture"
  broken = dataclasses.replace(several, source=source)
  with pytest.raises(decode.DecodeError, match="picture 1"):
    list(pairs.batches(rows, range(9), square(broken), 9))
  reader = Reader(broken, "skip")
  passing = square(broken, reader=reader)
  (share,) = pairs.batches(rows, range(9), passing, 9)
  np.testing.assert_array_equal(share.batch["mask"], [1, 1, 0] + [1] * 6)
  assert share.batch["row"][2] == 2
  sizes = pairs.frame_sizes(reader, rows.index, 64, 0)
  np.testing.assert_array_equal(sizes[2], (0, 0))
  # As a distractor it is passed over for another.
  (share,) = pairs.batches(rows, range(9), composite(broken, reader), 9)
  np.testing.assert_array_equal(
    share.batch["mask"], [1, 1, 0, 0, 1, 1, 1, 1, 1]
  )


def test_no_mask_is_decoded_that_a_row_does_not_ask_for(several, rows):
  source = [dict(one) for one in several.source]
  source[0]["objects"] = source[0]["objects"] | {
    "label": [1, 1, 1],
    "mask": [b"broken"] * 3,
  }
  others = dataclasses.replace(several, source=source)
  for maker in (
    square(others),
    square(others, with_objects=True),
    square(others, grids=((4, 4),)),
    Frame(Reader(others), (64, 96), 64, 0, 15.0, ((4, 6),)),
  ):
    (share,) = pairs.batches(rows, [0, 1], maker, 2)
    assert share.batch["mask"].all() and not share.batch["annotated"].any()
    if maker != square(others):
      with pytest.raises(decode.DecodeError, match="picture 0"):
        maker.row(0, 1)
