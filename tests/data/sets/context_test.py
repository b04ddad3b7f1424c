"""How objects and photographs are put together, on digits."""

import hashlib

import numpy as np
import pytest

from gc_jax.data.sets import context
from gc_jax.data.sets.context import SPLITS, ContextConfig
from gc_jax.data.sets.context_sets import ContextDigits


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return ContextDigits(data_dir=tmp_path_factory.mktemp("tfds")).source()


@pytest.fixture(scope="module")
def examples(source):
  def draw(split, count, image_size=32, **config):
    config = ContextConfig(image_size=image_size, **config)
    return [
      context.draw_example(source, config, split, i) for i in range(count)
    ]

  return draw


def test_every_object_of_a_split_takes_its_turn(source, examples):
  assert ContextConfig().num_examples == (4_000, 500, 1_000)
  once = examples("validation", 500)
  assert len({(e.labels, e.numbers) for e in once}) == 500
  config = ContextConfig(image_size=32)
  a, b, last = (
    context.draw_example(source, config, *which)
    for which in (("test", 7), ("test", 507), ("train", 3_999))
  )
  assert (a.labels, a.numbers) == (b.labels, b.numbers) and a.crop != b.crop
  assert last.numbers == (399,)


@pytest.mark.parametrize("photograph", range(len(context.PHOTOGRAPHS)))
def test_no_pixel_of_a_photograph_is_in_two_splits(photograph):
  owners = np.zeros(context.load_photograph(photograph).shape[:2], int)
  for split in SPLITS:
    left, top, right, bottom = context.region(photograph, split)
    assert min(right - left, bottom - top) >= context.MAX_CROP_PX
    owners[top:bottom, left:right] += 1
  np.testing.assert_array_equal(owners, 1)


@pytest.mark.parametrize("split", SPLITS)
def test_backgrounds_are_made_of_their_crop_alone_within_their_region(
  source, examples, split, monkeypatch
):
  for index, example in enumerate(examples(split, 40)):
    left, top, right, bottom = context.region(example.photograph, split)
    x, y, x_end, y_end = example.crop
    assert left <= x < x_end <= right and top <= y < y_end <= bottom
    whole = context.load_photograph(example.photograph)
    alone = np.zeros_like(whole)
    alone[y:y_end, x:x_end] = whole[y:y_end, x:x_end]
    with monkeypatch.context() as patch:
      patch.setattr(context, "load_photograph", lambda _, alone=alone: alone)
      config = ContextConfig(image_size=32)
      again = context.draw_example(source, config, split, index)
    np.testing.assert_array_equal(again.background, example.background)


@pytest.mark.parametrize("background_frac", [0.0, 0.5, 1.0])
def test_the_dial_sets_how_often_the_background_follows_the_class(
  examples, background_frac
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


def test_among_several_objects_the_background_follows_the_first(examples):
  drawn = examples("train", 50, multi_label=True, background_frac=1.0)
  assert all(e.photograph == e.labels[0] for e in drawn)
  assert any(e.photograph != e.labels[-1] for e in drawn)


def test_multi_label_images_show_two_or_three_objects(examples):
  drawn = examples("train", 200, multi_label=True)
  counts = [len(e.labels) for e in drawn]
  assert set(counts) == {2, 3}
  # Four standard deviations of a fair coin.
  assert abs(np.mean(counts) - 2.5) < 4 * 0.5 / 200**0.5
  different = [len(set(e.labels)) for e in drawn]
  assert {1, 2, 3} == set(different), "of the same class or different ones"
  for example in drawn:
    assert (example.picture.alphas > 0).sum(0).max() == 1
    assert example.picture.masks.any((1, 2)).all()


def test_digits_are_small_against_their_context(examples):
  drawn = examples("train", 100, image_size=64)
  areas = [example.picture.masks.mean() for example in drawn]
  assert 0.07 < np.mean(areas) < 0.12
  assert min(areas) > 15 / 64**2


def test_an_example_is_a_function_of_seed_split_and_index(examples):
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


def test_the_pixels_are_those_of_this_version(examples):
  whole = hashlib.sha256()
  for multi_label in (False, True):
    for split in SPLITS:
      for example in examples(split, 10, 64, multi_label=multi_label):
        whole.update(example.picture.image.tobytes())
  assert str(ContextDigits.VERSION) == "1.0.0"
  assert whole.hexdigest() == (
    "a6378a67518ac41863862dcb27c1697bd2ea961d43d6b7d0a626658258261ac7"
  ), (
    "Pictures changed. On purpose: raise ContextDigits.VERSION, so that nobody "
    "mixes old data with new, and update this digest. Otherwise a package that "
    "draws them (numpy, Pillow, mlxtend, scikit-image) did it."
  )


def test_the_name_is_derived_from_every_field():
  assert ContextConfig().name == "single-64px-background50"
  names = {
    ContextConfig(**config).name
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
  ],
)
def test_impossible_values_are_refused(config, message):
  with pytest.raises(ValueError, match=message):
    ContextConfig(**config)
