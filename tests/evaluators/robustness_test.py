"""Accuracy under attack: by hand, and what counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.attacks import ATTACKS, EPSILONS
from gc_jax.evaluators import robustness


class Red(nnx.Module):
  """Class 0 where the red channel is above a half, else class 1."""

  def normalize(self, images):
    return images

  def features(self, images):
    return images

  def classify(self, features):
    red = features.mean((1, 2))[:, 0] - 0.5
    return jnp.stack([red, -red], 1)


def reds(distances, **labels):
  """Pictures whose red is so many bytes above a half."""
  image = np.full((len(distances), 1, 1, 3), 0.5, np.float32)
  image[:, 0, 0, 0] += np.array(distances) / 255
  batch = {"image": image, "mask": np.ones(len(distances), np.float32)}
  return jax.tree.map(jnp.asarray, batch | labels)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_picture_falls_once_epsilon_is_over_its_distance(attack):
  """Distances 1.5, 5, 20 and 100; the fifth picture was wrong all along."""
  batch = reds([1.5, 5, 20, 100, -5], label=np.zeros(5, np.int32))
  totals = robustness.sums(Red(), batch)
  results = robustness.summarize(totals)
  expected = {1: 80, 2: 60, 8: 40, 16: 40, 32: 20, 64: 20}
  assert expected.keys() == set(EPSILONS)
  for epsilon, top1 in expected.items():
    assert results[f"{attack}_{epsilon}/top1"] == pytest.approx(top1)


def test_of_several_labels_f1_is_given():
  labels = np.array([[1, 0], [1, 0], [0, 1]], np.int32)
  batch = reds([1.5, 20, -20], labels=labels)
  results = robustness.summarize(
    robustness.sums(Red(), batch, (0, 8), ("fgsm",))
  )
  assert results.keys() == {
    f"fgsm_{epsilon}/{metric}"
    for epsilon in (0, 8)
    for metric in ("f1_overall", "f1_per_class")
  }
  assert results["fgsm_0/f1_overall"] == pytest.approx(100)
  # One of three pictures falls: both of its decisions are wrong.
  assert results["fgsm_8/f1_overall"] == pytest.approx(100 * 4 / 6)


def test_padding_is_attacked_for_nothing():
  batch = reds([1.5, 5, 20], label=np.zeros(3, np.int32))
  batch["mask"] = jnp.array([1.0, 0.0, 1.0])
  totals = robustness.sums(Red(), batch, (2,))
  assert totals["fgsm_2/top1"] == (1, 2)


def test_only_the_attacks_asked_for_are_made():
  batch = reds([5], label=np.zeros(1, np.int32))
  totals = robustness.sums(Red(), batch, (1, 2), ("pgd",))
  assert {name.split("_")[0] for name in totals} == {"pgd"}
