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


def sums(net, batch, *args):
  logits = robustness.attacked_logits(net, batch, *args)
  return robustness.sums(logits, batch)


class Band(Red):
  """Class 1 where the red channel is in a narrow band around 0.4."""

  def classify(self, features):
    away = jnp.abs(features.mean((1, 2))[:, 0] - 0.4) - 0.03
    return jnp.stack([away, -away], 1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_picture_falls_once_epsilon_is_over_its_distance(attack):
  """Distances 1.5, 5, 20 and 100; the fifth picture was wrong all along."""
  batch = reds([1.5, 5, 20, 100, -5], label=np.zeros(5, np.int32))
  totals = sums(Red(), batch)
  results = robustness.summarize(totals)
  expected = {1: 80, 2: 60, 8: 40, 16: 40, 32: 20, 64: 20}
  assert expected.keys() == set(EPSILONS)
  for epsilon, top1 in expected.items():
    assert results[f"{attack}_{epsilon}/top1"] == pytest.approx(top1)


def test_a_step_too_long_is_no_defence_within_epsilon():
  """Red 0.5 is in the band at 32 alone; 0.41 is in it, and out of it at 32."""
  batch = reds([0, -0.09 * 255], label=np.zeros(2, np.int32))
  # In any order of epsilons.
  totals = sums(Band(), batch, (64, 8, 32), ("fgsm",))
  results = robustness.summarize(totals)
  expected = {8: (50, 50), 32: (50, 0), 64: (100, 0)}
  for epsilon, (by_whole, within) in expected.items():
    assert results[f"fgsm_{epsilon}/top1"] == by_whole
    assert results[f"fgsm-within_{epsilon}/top1"] == within


def test_a_label_once_wrong_stays_wrong_within_epsilon():
  batch = reds([0], labels=np.array([[1, 0]], np.int32))
  totals = sums(Band(), batch, (32, 64), ("fgsm",))
  cases = ("true_positives", "false_positives", "false_negatives")

  def counts(name):
    return [totals[f"{name}/{case}"][0].tolist() for case in cases]

  wrong = [[0, 0], [0, 1], [1, 0]]
  assert counts("fgsm_32") == wrong
  assert counts("fgsm_64") == [[1, 0], [0, 0], [0, 0]]
  assert counts("fgsm-within_32") == counts("fgsm-within_64") == wrong


def test_a_net_without_a_number_withstands_nothing():
  class Broken(Red):
    def classify(self, features):
      return jnp.full((len(features), 2), jnp.nan)

  batch = reds([5], label=np.zeros(1, np.int32))
  results = robustness.summarize(sums(Broken(), batch, (1, 8), ("fgsm",)))
  assert set(results.values()) == {0}


def test_of_several_labels_f1_is_given():
  labels = np.array([[1, 0], [1, 0], [0, 1]], np.int32)
  batch = reds([1.5, 20, -20], labels=labels)
  results = robustness.summarize(sums(Red(), batch, (0, 8), ("fgsm",)))
  assert results.keys() == {
    f"{attack}_{epsilon}/{metric}"
    for attack in ("fgsm", "fgsm-within")
    for epsilon in (0, 8)
    for metric in ("f1_overall", "f1_per_class")
  }
  assert results["fgsm_0/f1_overall"] == pytest.approx(100)
  # One of three pictures falls: both of its decisions are wrong.
  assert results["fgsm_8/f1_overall"] == pytest.approx(100 * 4 / 6)


def test_padding_is_attacked_for_nothing():
  batch = reds([1.5, 5, 20], label=np.zeros(3, np.int32))
  batch["mask"] = jnp.array([1.0, 0.0, 1.0])
  totals = sums(Red(), batch, (2,))
  assert totals["fgsm_2/top1"] == (1, 2)


def test_only_the_attacks_asked_for_are_made():
  batch = reds([5], label=np.zeros(1, np.int32))
  totals = sums(Red(), batch, (1, 2), ("pgd",))
  assert {name.split("_")[0] for name in totals} == {"pgd"}


@pytest.mark.parametrize("labels", [False, True])
def test_pictures_one_by_one_add_up_to_the_sums(labels):
  kind = (
    {"labels": np.array([[1, 0], [1, 0], [1, 1]], np.int32)}
    if labels
    else {"label": np.zeros(3, np.int32)}
  )
  batch = reds([1.5, 5, -5], **kind)
  logits = robustness.attacked_logits(Red(), batch, (2, 8))
  found = robustness.by_example(logits, batch)
  totals = robustness.sums(logits, batch)
  first = "fgsm_2/true_positives" if labels else "fgsm_2/top1"
  assert found[first].tolist() == [0, 1, 1 if labels else 0]
  for name, values in found.items():
    assert values.sum() == totals[name][0].sum(), name
