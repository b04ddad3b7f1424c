"""Distractors from a whole training set: which pictures, for which class.

The release has two laws. On ImageNet it draws, for every picture, three other
categories with replacement and a picture of each; on COCO three distinct
pictures, uniformly among all that lack the class. No list of negatives is
stored: an index of the labels (12 bytes a label) and rejection suffice.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

_REJECTIONS = 20


class ClassIndex:
  """Which examples hold which class.

  Args:
    labels: a sequence, the class ids of every example.
    num_classes: K.
  """

  def __init__(self, labels: Any, num_classes: int):
    lengths = np.fromiter(map(len, labels), np.int64, len(labels))
    flat = np.fromiter(
      (k for row in labels for k in row), np.int64, int(lengths.sum())
    )
    examples = np.repeat(np.arange(len(labels)), lengths)
    # A number for each pair of class and example, ascending: the examples of a
    # class are in a row.
    self._num_examples = len(labels)
    self._pairs = np.unique(flat * self._num_examples + examples)
    starts = np.arange(num_classes + 1) * self._num_examples
    self._starts = np.searchsorted(self._pairs, starts)
    self._present = np.flatnonzero(np.diff(self._starts))

  def _without(
    self, target: int, examples: Int[np.ndarray, "n"]
  ) -> Int[np.ndarray, "_"]:
    """Returns those of the examples that do not hold a class."""
    looked_up = target * self._num_examples + examples
    at = np.searchsorted(self._pairs, looked_up)
    at = np.minimum(at, len(self._pairs) - 1)
    return examples[self._pairs[at] != looked_up]

  def draw(
    self,
    target: int,
    generator: np.random.Generator,
    law: str = "category",
    drawn: Collection[int] = (),
  ) -> int | None:
    """Draws an example without a class; None if there is no such example.

    Args:
      target: the class.
      generator: of the random numbers.
      law: "category" draws a category first, uniform over those that have such
        an example, then one of its examples; "picture" draws uniformly among
        all such examples, those without any label too.
      drawn: examples drawn before; "picture" takes another while there is one.
    """
    if law == "category":
      return self._draw_by_category(target, generator)
    among = generator.integers(0, self._num_examples, _REJECTIONS)
    good = self._without(target, among)
    others = good[~np.isin(good, list(drawn))]
    if not len(others):
      among = generator.permutation(self._num_examples)
      good = self._without(target, among)
      others = good[~np.isin(good, list(drawn))]
    good = others if len(others) else good
    return int(good[0]) if len(good) else None

  def _draw_by_category(
    self, target: int, generator: np.random.Generator
  ) -> int | None:
    categories = self._present[self._present != target]
    while len(categories):
      category = int(generator.choice(categories))
      begin, end = self._starts[category], self._starts[category + 1]
      # Most tries succeed; looking at all of a class takes long.
      tries = self._pairs[generator.integers(begin, end, _REJECTIONS)]
      good = self._without(target, tries % self._num_examples)
      if not len(good):
        every = self._pairs[begin:end] % self._num_examples
        good = self._without(target, every)
        generator.shuffle(good)
      if len(good):
        return int(good[0])
      categories = categories[categories != category]
    return None


def draw_target(
  labels: Sequence[Any] | np.ndarray,
  target_draw: str,
  generator: np.random.Generator,
) -> int | None:
  """Draws the class to explain in an image; None if it shows none.

  Args:
    labels: class of each of its objects.
    target_draw: "category", uniform over the classes (paper), or "instance",
      over the objects (release).
    generator: of the random numbers.
  """
  choices = np.unique(labels) if target_draw == "category" else labels
  return int(generator.choice(choices)) if len(choices) else None
