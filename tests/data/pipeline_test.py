"""Training batches: functions of seed and step, whoever makes them."""

import dataclasses
import itertools
import uuid

import numpy as np
import PIL.Image
import pytest
from scipy import stats

from gc_jax.data import Dataset, decode, geometry, pipeline
from gc_jax.data import dataset as datasets
from tests.data import photos

SIZES = {"batch_size": 8, "image_size": 64}
AUGMENTED = {"crop_padding_px": 4, "flip": True}
EVERYTHING = {
  "crop": "random_resized",
  "flip": True,
  "bring": ("distractors", "object_mask"),
  "target_draw": "instance",
  "on_error": "skip",
}


def png(pixels):
  return photos.encode(pixels, "png")


def dataset_of(records):
  return Dataset(records, tuple("abcdef"), multi_label=True, name="hand-made")


def train(dataset, count=3, **kwargs):
  kwargs = {"seed": 0, "start_step": 0, **SIZES, **kwargs}
  return list(
    itertools.islice(pipeline.train_batches(dataset, **kwargs), count)
  )


def broken_at(dataset, *indices):
  records = list(dataset.source)
  for index in indices:
    records[index] = {**records[index], "image": b"broken"}
  return dataclasses.replace(dataset, source=records)


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def joined(*shares):
  """The shares of each step in the order of the processes."""
  return [
    {key: np.concatenate([b[key] for b in step]) for key in step[0]}
    for step in zip(*shares, strict=True)
  ]


@pytest.fixture(scope="module")
def with_everything(load_small):
  """A multi-label set in which pictures are broken, and its first batches."""
  dataset = broken_at(load_small("train", multi_label=True), 3, 17, 18)
  return dataset, train(dataset, 9, **EVERYTHING)


# What batches are, and when they are the same.


def test_batches_are_what_types_say(load_small, with_everything):
  _, (everything, *_) = with_everything
  plain = {
    "image": ((8, 64, 64, 3), "uint8"),
    "label": ((8,), "int32"),
    "mask": ((8,), "float32"),
  }
  whole = plain | {
    "labels": ((8, 10), "int32"),
    "distractors": ((8, 3, 64, 64, 3), "uint8"),
    "distractor_mask": ((8,), "float32"),
    "object_mask": ((8, 64, 64), "bool"),
    "target": ((8,), "int32"),
    "skipped": ((8,), "float32"),
  }
  del whole["label"]
  (batch,) = train(load_small("train"), 1)
  for made, shapes in ((batch, plain), (everything, whole)):
    assert {k: (v.shape, v.dtype.name) for k, v in made.items()} == shapes
    assert made["mask"].all()
  target = everything["target"]
  assert (everything["labels"][range(8), target] > 0).all()


def test_multi_label_batches_count_the_objects(load_small):
  dataset = load_small("train", multi_label=True)
  by_pixels = {
    geometry.decode_image(record["image"], 64).tobytes(): record["labels"]
    for record in dataset.source
  }
  counts = []
  for batch in train(dataset, 5):
    assert batch.keys() == {"image", "labels", "mask"}
    for image, row in zip(batch["image"], batch["labels"], strict=True):
      labels = by_pixels[image.tobytes()]
      assert row.tolist() == [list(labels).count(k) for k in range(10)]
      counts.append(row.max())
  assert set(counts) >= {1, 2}, "two digits of one class are among them"


def test_an_epoch_shows_every_example_once_and_each_is_shuffled_anew(
  load_small,
):
  dataset = load_small("train")
  batches = train(dataset, 10)  # two epochs of 40
  epochs = [
    [image.tobytes() for b in part for image in b["image"]]
    for part in (batches[:5], batches[5:])
  ]
  assert len(set(epochs[0])) == 40
  assert set(epochs[0]) == set(epochs[1])
  assert epochs[0] != epochs[1]


def test_every_example_is_equally_often_at_every_place():
  counts = np.zeros((6, 6), int)
  for seed, first in itertools.product(range(50), range(0, 240, 6)):
    epoch = [pipeline.shuffled(first + i, 6, seed) for i in range(6)]
    assert sorted(epoch) == list(range(6))
    counts[range(6), epoch] += 1
  # 2,000 epochs; 1 in 1,000 such sets of seeds would fail.
  assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_another_seed_is_another_order_and_other_augmentation(load_small):
  dataset = load_small("train")
  (a,), (b,) = train(dataset, 1), train(dataset, 1, seed=1)
  assert (a["image"] != b["image"]).mean() > 0.5
  same = dataset_of([dataset.source[0]] * 8)
  (a,), (b,) = train(same, 1, **AUGMENTED), train(same, 1, seed=1, **AUGMENTED)
  assert (a["image"] != b["image"]).any()


@pytest.mark.parametrize(
  ("num_workers", "process_count", "start_steps"),
  [
    *((0, process_count, (0, 4, 7)) for process_count in (1, 2, 4)),
    # Workers are spawned and import everything: 15 s.
    pytest.param(1, 1, (4,), marks=pytest.mark.slow),
    pytest.param(2, 2, (4,), marks=pytest.mark.slow),
  ],
)
def test_starting_later_sharing_and_workers_change_nothing(
  with_everything, num_workers, process_count, start_steps
):
  dataset, batches = with_everything
  assert sum(batch["skipped"].sum() for batch in batches) > 0
  for start_step in start_steps:  # 7 is in the second epoch
    how = {"num_workers": num_workers, "start_step": start_step, **EVERYTHING}
    shares = [
      train(
        dataset,
        9 - start_step,
        process_index=i,
        process_count=process_count,
        **how,
      )
      for i in range(process_count)
    ]
    assert_same(joined(*shares), batches[start_step:])


def test_augmentation_shifts_and_mirrors_and_nothing_else():
  pixels = np.random.default_rng(0).integers(
    0, 256, (64, 64, 3), dtype=np.uint8
  )
  dataset = dataset_of([{"image": png(pixels), "labels": [0]}] * 8)
  padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
  variants = {}
  for y, x in itertools.product(range(5), repeat=2):
    crop = padded[y : y + 64, x : x + 64]
    variants[crop.tobytes()] = y, x, False
    variants[crop[:, ::-1].tobytes()] = y, x, True
  found = [
    variants[image.tobytes()]
    for batch in train(dataset, 100, crop_padding_px=2, flip=True)
    for image in batch["image"]
  ]
  counts = [found.count(variant) for variant in variants.values()]
  # 800 draws of 50 variants, 16 each: all occur (chance of a miss 5e-6), none
  # more than five standard deviations too often.
  assert min(counts) > 0 and max(counts) < 16 + 5 * 4


# Pictures that cannot be read.


@pytest.fixture
def broken(load_small, monkeypatch):
  """Of 40 pictures three cannot be read; nothing was logged of them yet."""
  monkeypatch.setattr(datasets, "_told", set())
  dataset = broken_at(load_small("train"), 3, 17, 18)
  # Threads of the test before may still read: not this set.
  return dataclasses.replace(dataset, name=f"{dataset.name}/{uuid.uuid4()}")


# Workers are spawned and import everything: 5 s.
@pytest.mark.parametrize(
  "num_workers", [0, pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_broken_picture_stops_training_by_name(broken, num_workers):
  with pytest.raises(
    decode.DecodeError,
    match=r"Example (3|17|18) of context_digits/.* cannot be read: it is no pic"
    r"ture: its 6 bytes start with b'broken'\. Mend or remove it, or set "
    r"--config.data.on_error=skip",
  ):
    train(broken, 5, num_workers=num_workers)


@pytest.mark.parametrize("field", ["name", "file_name"])  # folders, archives
@pytest.mark.parametrize("name", ["cat/7.jpg", b"cat/7.jpg"])
def test_the_file_of_a_broken_picture_is_named(field, name):
  dataset = dataset_of([{"image": b"broken", "labels": [1], field: name}])
  with pytest.raises(
    decode.DecodeError, match=r"Example 0 of .*, cat/7\.jpg, cannot be"
  ):
    train(dataset, 1, batch_size=1)


def test_a_skipped_picture_is_replaced_and_counted_once_an_epoch(
  broken, load_small
):
  batches = train(broken, 10, on_error="skip")  # two epochs
  whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  # A replacement may be broken too: one more then.
  assert (whole["skipped"] > 0).sum() == 6
  assert whole["mask"].all()
  plain = train(load_small("train"), 10)
  images = np.concatenate([b["image"] for b in plain])
  labels = np.concatenate([b["label"] for b in plain])
  kept = whole["skipped"] == 0
  np.testing.assert_array_equal(whole["image"][kept], images[kept])
  np.testing.assert_array_equal(whole["label"][kept], labels[kept])
  label_of = {i.tobytes(): k for i, k in zip(images, labels, strict=True)}
  replaced = whole["image"][~kept]
  assert len(np.unique(replaced, axis=0)) > 1
  for image, label in zip(replaced, whole["label"][~kept], strict=True):
    assert label_of[image.tobytes()] == label


@pytest.mark.parametrize(
  "num_workers", [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_skipped_picture_is_told_of_once_whoever_reads_it_how_often(
  broken, caplog, num_workers
):
  batches = train(broken, 30, on_error="skip", num_workers=num_workers)
  assert sum(batch["skipped"].sum() for batch in batches) > 3 * 5
  assert "broken" not in batches[0]
  assert len(caplog.messages) == 3
  for message in caplog.messages:
    assert "cannot be read: it is no picture" in message
    assert "Skipped (picture number " in message


def test_of_many_broken_pictures_ever_fewer_are_told_of(monkeypatch, caplog):
  monkeypatch.setattr(datasets, "_told", set())
  reader = datasets.Reader(
    dataset_of([{"image": b"broken", "labels": [0]}] * 200), "skip"
  )
  for index in range(200):
    reader.read(index, lambda record: decode.read_header(record["image"]))
  assert len(caplog.messages) == 9 + 9 + 2


def test_a_picture_that_is_known_to_be_broken_is_skipped_in_silence(
  broken, caplog
):
  known = dataclasses.replace(broken, broken=frozenset((3, 17, 18)))
  batches, others = (
    train(each, 10, on_error="skip") for each in (known, broken)
  )
  assert_same(batches, others)
  assert len(caplog.messages) == 3, "of the other alone"


def test_a_set_of_nothing_but_broken_pictures_is_an_error():
  records = [{"image": b"broken", "labels": [0]}] * 8
  with pytest.raises(
    ValueError, match=r"20 pictures of hand-made, drawn one a"
  ):
    train(dataset_of(records), 1, on_error="skip")


def test_a_record_that_contradicts_the_set_is_never_skipped(load_small):
  multi = load_small("train", multi_label=True)
  with pytest.raises(ValueError, match=r"is single-label.*load it as multi"):
    train(dataclasses.replace(multi, multi_label=False), 1, on_error="skip")


# Objects, where a guidance term needs them.

WITH_MASKS = {"bring": ("object_mask",), "flip": True}


def blob(shape):
  """A mask of a few smooth spots, uint8 0 or 255: no symmetry, no straight."""
  y, x = np.mgrid[: shape[0], : shape[1]] / np.reshape(shape, (2, 1, 1))
  spots = np.random.default_rng(0).uniform(0.1, 0.9, (5, 2))
  inside = [(y - v) ** 2 + (x - u) ** 2 < 0.02 for v, u in spots]
  return np.any(inside, axis=0).astype(np.uint8) * 255


def own_mask(shape, turn=1, encoding="png", **objects):
  """A record of a picture that is its own mask, of class 1."""
  mask = blob(shape)
  image = PIL.Image.fromarray(np.repeat(mask[..., None], 3, -1))
  return {
    "image": photos.with_orientation(image, turn, encoding),
    "labels": [1],
    "objects": {
      "label": [1],
      "bbox": [(0, 0, 1, 1)],
      "difficult": [False],
      "mask": [png(mask)],
    }
    | objects,
  }


@pytest.mark.parametrize(
  ("shape", "turn", "encoding", "how"),
  [
    ((64, 64), 1, "png", {"crop_padding_px": 9}),
    ((90, 64), 1, "png", {"crop_padding_px": 4}),
    ((300, 200), 1, "jpeg", {"crop_padding_px": 20}),
    ((200, 300), 6, "jpeg", {}),
    ((200, 300), 1, "png", {"crop": "random_resized"}),
    ((700, 500), 1, "jpeg", {"crop": "random_resized"}),
    ((300, 400), 8, "jpeg", {"crop": "random_resized"}),
    ((40, 30), 3, "jpeg", {"crop": "random_resized"}),
  ],
)
def test_masks_are_cropped_shifted_and_mirrored_just_as_pictures_are(
  shape, turn, encoding, how
):
  dataset = dataset_of([own_mask(shape, turn, encoding)] * 8)
  shown = set()
  for batch in train(dataset, 4, **WITH_MASKS, **how):
    picture = batch["image"][..., 1] >= 128
    apart = (picture != batch["object_mask"]).mean((1, 2))
    # Pixels at an outline, of which other filters decide otherwise; the wrong
    # side out, or a crop beside it, is a tenth apart at least.
    assert apart.max() < (0.03 if how.get("crop") else 0.002)
    shown |= {mask.tobytes() for mask in batch["object_mask"]}
  assert len(shown) > (1 if not how else 8)


@pytest.mark.parametrize("target_draw", ["category", "instance"])
def test_the_objects_are_those_of_the_explained_class_alone(target_draw):
  def corner(*place):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[place] = 255
    return png(pixels)

  record = {
    "image": png(np.zeros((8, 8, 3), np.uint8)),
    "labels": [4, 1, 4],
    "objects": {
      "label": [4, 1, 4],
      "bbox": [(0, 0, 1, 1)] * 3,
      "difficult": [False] * 3,
      "mask": [corner(0, 0), corner(3, 5), corner(7, 7)],
    },
  }
  places = {4: [[0, 0], [7, 7]], 1: [[3, 5]]}
  targets = []
  for batch in train(
    dataset_of([record] * 8),
    20,
    image_size=8,
    bring=("object_mask",),
    target_draw=target_draw,
  ):
    for target, mask in zip(batch["target"], batch["object_mask"], strict=True):
      assert np.argwhere(mask).tolist() == places[target]
    targets += batch["target"].tolist()
  share = targets.count(4) / len(targets)
  expected = 1 / 2 if target_draw == "category" else 2 / 3
  # Four standard deviations of a share of 160 draws.
  assert abs(share - expected) < 0.16


def test_what_a_batch_brings_changes_nothing_else(load_small):
  """And one class is drawn for masks and distractors alike."""
  dataset = load_small("train", multi_label=True)
  for how in (AUGMENTED, {"crop": "random_resized", "flip": True}):
    both = train(dataset, 2, bring=("distractors", "object_mask"), **how)
    for bring in ((), ("distractors",), ("object_mask",)):
      some = train(dataset, 2, bring=bring, **how)
      for one, other in zip(some, both, strict=True):
        assert_same([one], [{key: other[key] for key in one}])


def test_pictures_of_nothing_known_have_empty_masks():
  bare = {"image": png(np.zeros((8, 8, 3), np.uint8)), "labels": [2]}
  other = own_mask((8, 8), label=[5]) | {"labels": [2]}
  nothing = {**bare, "labels": []}
  for record in (bare, other, nothing):
    (batch,) = train(
      dataset_of([record]), 1, batch_size=1, image_size=8, **WITH_MASKS
    )
    assert not batch["object_mask"].any()
    assert batch["target"][0] == (record["labels"] or [0])[0]


def test_no_mask_is_read_that_nobody_asked_for():
  records = [own_mask((64, 64), mask=[b"broken"])] * 8
  (batch,) = train(dataset_of(records), 1, flip=True)
  assert batch.keys() == {"image", "labels", "mask"}
  # Nor those of other classes than the explained one.
  others = [own_mask((64, 64), mask=[b"broken"], label=[3])] * 8
  train(dataset_of(others), 1, **WITH_MASKS)


@pytest.mark.parametrize("mask", [b"broken", png(np.zeros((9, 9), np.uint8))])
def test_a_broken_mask_is_as_bad_as_a_broken_picture(mask):
  good = own_mask((64, 64))
  bad = own_mask((64, 64), mask=[mask]) | {"name": "cat/7.png"}
  dataset = dataset_of([good, bad] + 6 * [good])
  with pytest.raises(decode.DecodeError, match=r"1 of .*cat/7\.png"):
    train(dataset, 1, **WITH_MASKS)
  (batch,) = train(dataset, 1, on_error="skip", **WITH_MASKS)
  assert batch["skipped"].sum() >= 1
  assert batch["object_mask"].any((1, 2)).all()
