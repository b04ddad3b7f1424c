"""Distractors from the whole set: never of the class that is explained."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from gc_jax.data import Dataset, pipeline
from gc_jax.data.dataset import ClassIndex, draw_target
from tests.data import photos

# For statistical tests, of fixed seed: 1 in 1,000 such seeds would fail.
SIGNIFICANCE = 1e-3
NUM_CLASSES = 4

label_lists = st.lists(
  st.lists(st.integers(0, NUM_CLASSES - 1), max_size=4), min_size=1, max_size=9
)


@settings(max_examples=200)
@example(labels=[[], []], target=0, law="picture", seed=0)
@given(
  labels=label_lists,
  target=st.integers(0, 3),
  law=st.sampled_from(["category", "picture"]),
  seed=st.integers(0, 999),
)
def test_a_distractor_never_holds_the_target(labels, target, law, seed):
  """And there is none only where every example holds the target.

  An example without labels counts as one under the law "picture" alone.
  """
  index = ClassIndex(labels, NUM_CLASSES)
  drawn = index.draw(target, np.random.default_rng(seed), law)
  possible = [
    i
    for i, row in enumerate(labels)
    if target not in row and (row or law == "picture")
  ]
  assert drawn in possible if possible else drawn is None


def test_categories_are_balanced_and_examples_uniform_within_them():
  """Class 0 is explained; 2 has ten times the examples of 1, 3 is hidden."""
  labels = [[0]] * 5 + [[1]] * 4 + [[2]] * 40 + [[0, 3]] * 30 + [[0, 2]] * 30
  index = ClassIndex(labels, NUM_CLASSES)
  generator = np.random.default_rng(0)
  drawn = np.array([index.draw(0, generator) for _ in range(8_000)])
  assert set(drawn) <= set(range(5, 49))  # of 3 every example holds 0
  assert stats.binomtest(int((drawn < 9).sum()), 8_000, 0.5).pvalue > (
    SIGNIFICANCE
  )
  for first, count in ((5, 4), (9, 40)):
    examples = drawn[(first <= drawn) & (drawn < first + count)] - first
    counts = np.bincount(examples, minlength=count)
    assert len(counts) == count
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE


# 900 pictures of class 0, 90 of 1, 10 of 2, and 50 of the explained class 3.
UNEVEN = [[0]] * 900 + [[1]] * 90 + [[2]] * 10 + [[3]] * 50


@pytest.mark.parametrize(
  ("law", "shares"),
  [("category", (1 / 3, 1 / 3, 1 / 3)), ("picture", (0.9, 0.09, 0.01))],
)
def test_each_law_draws_classes_in_its_own_shares(law, shares):
  index = ClassIndex(UNEVEN, NUM_CLASSES)
  generator = np.random.default_rng(0)
  drawn = [index.draw(3, generator, law) for _ in range(20_000)]
  counts = np.bincount([UNEVEN[example][0] for example in drawn], minlength=4)
  assert counts[3] == 0
  expected = 20_000 * np.array(shares)
  assert stats.chisquare(counts[:3], expected).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("law", ["category", "picture"])
def test_pictures_of_a_composite_are_distinct_while_there_are_others(law):
  """Class 2 has one picture only: once it is drawn, the others are of 1."""
  labels = [[0]] * 4 + [[1]] * 2 + [[2]]
  index = ClassIndex(labels, 3)
  for seed in range(200):
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(4):
      drawn.append(index.draw(0, generator, law, drawn))
    assert sorted(drawn[:3]) == [4, 5, 6]
    assert drawn[3] in (4, 5, 6)


def test_the_one_negative_among_thousands_is_found():
  """Where trying would take long, all of a class are looked at."""
  labels = [[0, 1]] * 5_000 + [[1]]
  drawn = ClassIndex(labels, 2).draw(0, np.random.default_rng(0))
  assert drawn == 5_000


def test_targets_are_drawn_over_categories_or_over_objects():
  labels = [2, 2, 2, 0]
  for target_draw, share in (("category", 1 / 2), ("instance", 3 / 4)):
    generator = np.random.default_rng(0)
    twos = [draw_target(labels, target_draw, generator) for _ in range(2_000)]
    test = stats.binomtest(twos.count(2), 2_000, share)
    assert test.pvalue > SIGNIFICANCE
  assert draw_target([], "category", np.random.default_rng(0)) is None


# In batches: which picture a distractor is can be read off its colour.


def colour(index):
  return 16 * (index % 12) + 8, 16 * (index // 12) + 8, 0


def dataset_of(labels, num_classes=NUM_CLASSES, multi_label=True):
  records = [
    {
      "image": photos.encode(np.full((8, 8, 3), colour(i), np.uint8), "png"),
      "labels": row,
    }
    for i, row in enumerate(labels)
  ]
  names = tuple("abcdefgh"[:num_classes])
  return Dataset(records, names, multi_label, name="colours")


def shown(pictures):
  """Index of the example that each picture is of."""
  middle = pictures[..., 4, 4, :].astype(int) // 16
  return middle[..., 0] + 12 * middle[..., 1]


def batches(dataset, count=3, **kwargs):
  kwargs = {
    "seed": 0,
    "start_step": 0,
    "batch_size": 8,
    "image_size": 8,
    "bring": ("distractors",),
    **kwargs,
  }
  return list(
    itertools.islice(pipeline.train_batches(dataset, **kwargs), count)
  )


@settings(max_examples=20)
@given(
  labels=st.lists(
    st.lists(st.integers(0, 3), max_size=3), min_size=8, max_size=24
  ),
  target_draw=st.sampled_from(["category", "instance"]),
)
def test_no_counted_image_of_a_batch_has_its_target_among_its_distractors(
  labels, target_draw
):
  """And none is masked that has a possible distractor."""
  for batch in batches(dataset_of(labels), 2, target_draw=target_draw):
    assert batch["distractors"].shape == (8, 3, 8, 8, 3)
    assert batch["distractors"].dtype == np.uint8
    for row, image in enumerate(shown(batch["image"])):
      target = batch["target"][row]
      possible = [k for k in labels if k and target not in k]
      counted = batch["distractor_mask"][row]
      assert counted == (len(labels[image]) > 0 and len(possible) > 0)
      if counted:
        assert target in labels[image]
        for distractor in shown(batch["distractors"][row]):
          assert target not in labels[distractor]
      elif labels[image]:
        assert not batch["distractors"][row].any()


@pytest.mark.parametrize("law", ["category", "picture"])
def test_the_distractors_of_a_batch_are_distinct(law):
  dataset = dataset_of([[0]] * 20 + [[1]] * 3, 2)
  for batch in batches(dataset, 4, distractor_draw=law):
    for pictures in batch["distractors"][batch["target"] == 0]:
      assert len(set(shown(pictures))) == 3


def test_every_distractor_has_an_augmentation_of_its_own():
  """One picture of another class: all three show it, cropped differently."""
  photo = photos.encode(photos.load("coffee.png", (64, 48)))
  dataset = dataset_of([[0]] * 8 + [[1]], 2, multi_label=False)
  dataset.source[8]["image"] = photo
  (batch,) = batches(dataset, 1, image_size=16, crop="random_resized")
  explained = batch["label"] == 0
  pictures = batch["distractors"][explained].reshape(-1, 16 * 16 * 3)
  assert len(np.unique(pictures, axis=0)) == len(pictures) >= 21
  np.testing.assert_array_equal(batch["target"], batch["label"])


def test_without_a_second_class_nothing_counts():
  (batch,) = batches(dataset_of([[1]] * 9), 1)
  assert not batch["distractor_mask"].any()
