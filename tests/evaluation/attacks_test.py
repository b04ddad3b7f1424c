"""FGSM and PGD: by hand on models of one layer, and their laws on a net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.evaluation import classification
from gc_jax.evaluation.attacks import (
  FUNCTIONS,
  WITHIN,
  attacked_logits,
  fgsm,
  pgd,
)
from gc_jax.method import losses
from gc_jax.method.metrics import EPSILONS
from gc_jax.models.network import normalize_pixels

# Comparing pixels: float32 near 1, added and clipped.
ULP = 1e-6


class Linear(nnx.Module):
  """Logits are sums of weighted, normalised channels of the one pixel."""

  def __init__(self, weights):
    self.weights = nnx.Param(jnp.asarray(weights, jnp.float32))  # [3 K]

  def normalize(self, images):
    return normalize_pixels(images)

  def features(self, images):
    return images

  def classify(self, features):
    return features.mean((1, 2)) @ self.weights[...]


class Peak(Linear):
  """The second class is likeliest where the red channel is `at`."""

  def __init__(self, at):
    self.at = at

  def normalize(self, images):
    return images

  def classify(self, features):
    red = features.mean((1, 2))[:, 0]
    far = 100 * (red - self.at) ** 2
    return jnp.stack([far, jnp.zeros_like(far)], 1)


class Bumps(Peak):
  """A low bump at a fifth of the way to `at`, a valley, and a summit there."""

  def classify(self, features):
    way = (features.mean((1, 2))[:, 0] - 0.5) / (self.at - 0.5)
    height = way + jnp.sin(2 * jnp.pi * way / 0.8)
    return jnp.stack([-height, height], 1)


def picture(*channels):
  return jnp.array(channels, jnp.float32)[None, None, None]


@functools.cache
def compiled(attack, graphdef, **settings):
  @jax.jit
  def run(state, batch, epsilon):
    model = nnx.merge(graphdef, state)
    return FUNCTIONS[attack](model, batch, epsilon, **settings)

  return run


def attacked(attack, model, batch, epsilon, **settings):
  graphdef, state = nnx.split(model)
  return compiled(attack, graphdef, **settings)(state, batch, epsilon)


@functools.cache
def compiled_losses(graphdef):
  @jax.jit
  def run(state, images, batch):
    net = nnx.merge(graphdef, state)
    logits = net.classify(net.features(net.normalize(images)))
    if "labels" in batch:
      return losses.binary_cross_entropy(logits, batch["labels"])
    return losses.cross_entropy(logits, batch["label"])

  return run


def losses_of(model, images, batch):
  graphdef, state = nnx.split(model)
  return compiled_losses(graphdef)(state, images, batch)


@pytest.fixture(scope="module", params=["average", "max"])
def model(request, make_tiny):
  return settled(make_tiny(request.param))


def settled(net):
  """Statistics of pixels, so that activations are of order 1."""
  net.train()
  net.features(net.normalize(batch_of("label")["image"]))
  net.eval()
  return net


def batch_of(kind):
  rng = np.random.default_rng(0)
  batch = {
    "image": jnp.asarray(rng.integers(0, 256, (4, 16, 16, 3)), jnp.uint8),
    "mask": jnp.ones(4),
  }
  if kind == "label":
    return batch | {"label": jnp.asarray(rng.integers(0, 10, 4), jnp.int32)}
  return batch | {"labels": jnp.asarray(rng.integers(0, 3, (4, 10)))}


def test_fgsm_by_hand():
  """Away from the label: red down, green up, and blue does not matter."""
  net = Linear([[1, -1], [-2, 2], [0, 0]])
  batch = {
    "image": picture(0.5, 0.5, 0.5),
    "label": jnp.array([0]),
    "mask": jnp.ones(1),
  }
  step = 8 / 255
  np.testing.assert_allclose(
    fgsm(net, batch, 8), picture(0.5 - step, 0.5 + step, 0.5), atol=ULP
  )
  other = batch | {"label": jnp.array([1])}
  np.testing.assert_allclose(
    fgsm(net, other, 8), picture(0.5 + step, 0.5 - step, 0.5), atol=ULP
  )


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_epsilon_is_in_bytes_and_pixels_stay_in_range(attack):
  """Bytes 3, 250 and 100 under epsilon 8 go to 0, 255 and 92."""
  net = Linear([[1, -1], [-2, 2], [3, -3]])
  batch = {
    "image": jnp.array([3, 250, 100], jnp.uint8)[None, None, None],
    "label": jnp.array([0]),
    "mask": jnp.ones(1),
  }
  adversarial = attacked(attack, net, batch, 8)
  np.testing.assert_allclose(adversarial[0, 0, 0] * 255, [0, 255, 92], 1e-5)
  assert adversarial.min() == 0 and adversarial.max() == 1


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_of_several_labels_each_is_attacked(attack):
  """Class 0 is present and falls, class 1 is absent and rises."""
  net = Linear([[1, 0], [0, 1], [0, 0]])
  batch = {
    "image": picture(0.5, 0.5, 0.5),
    "labels": jnp.array([[2, 0]]),
    "mask": jnp.ones(1),
  }
  adversarial = attacked(attack, net, batch, 2)[0, 0, 0]
  np.testing.assert_allclose(
    adversarial, [0.5 - 2 / 255, 0.5 + 2 / 255, 0.5], atol=ULP
  )


def test_pgd_finds_the_peak_that_fgsm_steps_over():
  """The loss is highest a quarter of epsilon away, a multiple of the step."""
  epsilon = 40
  net = Peak(0.5 + epsilon / 255 / 4)
  batch = {
    "image": picture(0.5, 0.5, 0.5),
    "label": jnp.array([0]),
    "mask": jnp.ones(1),
  }
  by_fgsm = attacked("fgsm", net, batch, epsilon)
  by_pgd = attacked("pgd", net, batch, epsilon)
  loss = lambda images: float(losses_of(net, images, batch)[0])
  assert by_fgsm[0, 0, 0, 0] == pytest.approx(0.5 + epsilon / 255)
  assert loss(by_fgsm) < loss(batch["image"]) - 0.1
  assert by_pgd[0, 0, 0, 0] == pytest.approx(net.at)
  assert loss(by_pgd) == pytest.approx(np.log(2))


def test_pgd_finds_the_summit_that_small_steps_miss():
  """FGSM's own step is among its own."""
  net = Bumps(0.5 + 40 / 255)
  batch = {
    "image": picture(0.5, 0.5, 0.5),
    "label": jnp.array([0]),
    "mask": jnp.ones(1),
  }
  assert attacked("pgd", net, batch, 40)[0, 0, 0, 0] == pytest.approx(net.at)


def test_the_last_step_counts_too(model):
  batch = batch_of("label")
  by_fgsm = losses_of(model, attacked("fgsm", model, batch, 1), batch)
  by_pgd = losses_of(model, attacked("pgd", model, batch, 1, steps=1), batch)
  clean = losses_of(model, batch["image"], batch)
  assert (by_fgsm > clean).any()
  np.testing.assert_allclose(by_pgd, jnp.maximum(by_fgsm, clean), rtol=1e-3)


def test_pgd_returns_the_clean_picture_where_nothing_is_worse():
  net = Peak(0.5)
  batch = {
    "image": jnp.concatenate([picture(0.5, 0.2, 0.2), picture(0.4, 0.2, 0.2)]),
    "label": jnp.array([0, 0]),
    "mask": jnp.ones(2),
  }
  adversarial = attacked("pgd", net, batch, 8)
  np.testing.assert_array_equal(adversarial[0], batch["image"][0])
  # Each example for itself: the second one moves.
  assert adversarial[1, 0, 0, 0] == pytest.approx(0.4 + 8 / 255)


@pytest.mark.parametrize("kind", ["label", "labels"])
def test_pgd_is_never_weaker_than_fgsm(model, kind):
  batch = batch_of(kind)
  clean = losses_of(model, batch["image"], batch)
  stronger = 0
  for epsilon in (1, 8, 64):
    by_fgsm, by_pgd = (
      losses_of(model, attacked(attack, model, batch, epsilon), batch)
      for attack in ("fgsm", "pgd")
    )
    # The same picture's loss, in programs that add in other orders.
    assert (by_pgd >= by_fgsm - 1e-5).all()
    assert (by_pgd >= clean - 1e-5).all()
    stronger += (by_pgd > by_fgsm + 1e-3).sum()
  assert stronger > 0


@pytest.mark.parametrize("attack", FUNCTIONS)
@pytest.mark.parametrize("kind", ["label", "labels"])
def test_pixels_stay_in_the_ball_and_in_range(model, attack, kind):
  batch = batch_of(kind)
  for epsilon in EPSILONS:
    adversarial = attacked(attack, model, batch, epsilon)
    assert adversarial.dtype == jnp.float32
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    moved = jnp.abs(adversarial - batch["image"] / 255).max((1, 2, 3))
    assert (moved <= epsilon / 255 + ULP).all()
    # Some pixel goes all the way, but of a picture that cannot be worsened.
    assert (moved >= epsilon / 255 - ULP).sum() >= 3


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_epsilon_0_is_the_clean_picture(model, attack):
  batch = batch_of("label")
  np.testing.assert_array_equal(
    attacked(attack, model, batch, 0), batch["image"].astype(jnp.float32) / 255
  )


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_bytes_and_fractions_are_attacked_alike(attack):
  net = Linear([[1, -1], [-2, 2], [3, -3]])
  batch = batch_of("label")
  batch["label"] %= 2
  fractions = batch | {"image": batch["image"].astype(jnp.float32) / 255}
  np.testing.assert_allclose(
    attacked(attack, net, batch, 8),
    attacked(attack, net, fractions, 8),
    atol=ULP,
  )


def test_no_example_sees_another(model):
  batch = batch_of("label")
  alone = {name: rows[1:2] for name, rows in batch.items()}
  one = attacked("fgsm", model, alone, 8)[0]
  of_four = attacked("fgsm", model, batch, 8)[1]
  # Pixels whose gradient is a rounding error have either sign.
  assert (one == of_four).mean() > 0.99


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_one_compilation_serves_every_epsilon(attack):
  traces = []
  net = Linear([[1, -1], [-2, 2], [3, 3]])

  @jax.jit
  def run(batch, epsilon):
    traces.append(epsilon)
    return FUNCTIONS[attack](net, batch, epsilon)

  batch = {
    "image": picture(0.5, 0.5, 0.5),
    "label": jnp.array([0]),
    "mask": jnp.ones(1),
  }
  for epsilon in EPSILONS:
    red = run(batch, epsilon)[0, 0, 0, 0]
    assert red == pytest.approx(0.5 - epsilon / 255)
  assert len(traces) == 1


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_jit_and_eager_agree(model, attack):
  batch = batch_of("label")
  eager = FUNCTIONS[attack](model, batch, 8)
  jitted = attacked(attack, model, batch, 8)
  # Pixels whose gradient is a rounding error have either sign, and on the ten
  # steps of PGD that adds up.
  assert (jnp.abs(eager - jitted) < ULP).mean() > {"fgsm": 0.99, "pgd": 0.8}[
    attack
  ]
  np.testing.assert_allclose(
    losses_of(model, eager, batch), losses_of(model, jitted, batch), rtol=0.02
  )


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_half_precision_is_attacked_in_full(make_tiny, attack):
  net = settled(make_tiny(dtype=jnp.bfloat16))
  batch = batch_of("label")
  adversarial = attacked(attack, net, batch, 1)
  assert adversarial.dtype == jnp.float32
  moved = jnp.abs(adversarial - batch["image"] / 255)
  assert moved.max() <= 1 / 255 + ULP
  worse = losses_of(net, adversarial, batch) - losses_of(
    net, batch["image"], batch
  )
  assert worse.mean() > 0.01


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_the_model_is_left_as_it_was(model, attack):
  before = jax.tree.map(np.array, nnx.state(model))
  FUNCTIONS[attack](model, batch_of("label"), 8)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_a_gradient_of_nan_is_no_defence(attack):
  net = Linear(np.full((3, 2), np.nan))
  batch = {
    "image": picture(0.5, 0.5, 0.5),
    "label": jnp.array([0]),
    "mask": jnp.ones(1),
  }
  assert jnp.isnan(attacked(attack, net, batch, 8)).any()


def test_more_steps_climb_at_least_as_high_in_the_mean(model):
  batch = batch_of("label")
  mean = lambda steps: losses_of(
    model, pgd(model, batch, 8, steps=steps), batch
  ).mean()
  assert mean(20) > mean(2)


# Accuracy under attack.


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
  """(attack, epsilon) -> the sums of its predictions."""
  logits = attacked_logits(net, batch, *args)
  return {k: classification.sums(row, batch) for k, row in logits.items()}


def results(*args):
  """(attack, epsilon) -> results."""
  return {k: classification.summarize(v) for k, v in sums(*args).items()}


class Band(Red):
  """Class 1 where the red channel is in a narrow band around 0.4."""

  def classify(self, features):
    away = jnp.abs(features.mean((1, 2))[:, 0] - 0.4) - 0.03
    return jnp.stack([away, -away], 1)


@pytest.mark.parametrize("attack", FUNCTIONS)
def test_a_picture_falls_once_epsilon_is_over_its_distance(attack):
  """Distances 1.5, 5, 20 and 100; the fifth picture was wrong all along."""
  batch = reds([1.5, 5, 20, 100, -5], label=np.zeros(5, np.int32))
  found = results(Red(), batch)
  expected = {1: 80, 2: 60, 8: 40, 16: 40, 32: 20, 64: 20}
  assert expected.keys() == set(EPSILONS)
  for epsilon, top1 in expected.items():
    assert found[attack, epsilon]["top1"] == pytest.approx(top1)


def test_a_step_too_long_is_no_defence_within_epsilon():
  """Red 0.5 is in the band at 32 alone; 0.41 is in it, and out of it at 32."""
  batch = reds([0, -0.09 * 255], label=np.zeros(2, np.int32))
  # In any order of epsilons.
  found = results(Band(), batch, (64, 8, 32), ("fgsm",))
  expected = {8: (50, 50), 32: (50, 0), 64: (100, 0)}
  for epsilon, (by_whole, within) in expected.items():
    assert found["fgsm", epsilon]["top1"] == by_whole
    assert found[WITHIN, epsilon]["top1"] == within


def test_a_label_once_wrong_stays_wrong_within_epsilon():
  batch = reds([0], labels=np.array([[1, 0]], np.int32))
  totals = sums(Band(), batch, (32, 64), ("fgsm",))
  cases = ("true_positives", "false_positives", "false_negatives")

  def counts(*key):
    return [totals[key][case][0].tolist() for case in cases]

  wrong = [[0, 0], [0, 1], [1, 0]]
  assert counts("fgsm", 32) == wrong
  assert counts("fgsm", 64) == [[1, 0], [0, 0], [0, 0]]
  assert counts(WITHIN, 32) == counts(WITHIN, 64) == wrong


def test_a_net_without_a_number_withstands_nothing():
  class Broken(Red):
    def classify(self, features):
      return jnp.full((len(features), 2), jnp.nan)

  batch = reds([5], label=np.zeros(1, np.int32))
  found = results(Broken(), batch, (1, 8), ("fgsm",))
  assert {one["top1"] for one in found.values()} == {0}


def test_of_several_labels_f1_is_given():
  labels = np.array([[1, 0], [1, 0], [0, 1]], np.int32)
  batch = reds([1.5, 20, -20], labels=labels)
  found = results(Red(), batch, (0, 8), ("fgsm",))
  assert found.keys() == {(a, e) for a in ("fgsm", WITHIN) for e in (0, 8)}
  assert found["fgsm", 0]["f1_overall"] == pytest.approx(100)
  # One of three pictures falls: both of its decisions are wrong.
  assert found["fgsm", 8]["f1_overall"] == pytest.approx(100 * 4 / 6)


def test_padding_is_attacked_for_nothing():
  batch = reds([1.5, 5, 20], label=np.zeros(3, np.int32))
  batch["mask"] = jnp.array([1.0, 0.0, 1.0])
  totals = sums(Red(), batch, (2,))
  assert totals["fgsm", 2]["top1"] == (1, 2)


def test_only_the_attacks_asked_for_are_made():
  batch = reds([5], label=np.zeros(1, np.int32))
  totals = sums(Red(), batch, (1, 2), ("pgd",))
  assert {name for name, _ in totals} == {"pgd"}


@pytest.mark.parametrize("labels", [False, True])
def test_pictures_one_by_one_add_up_to_the_sums(labels):
  kind = (
    {"labels": np.array([[1, 0], [1, 0], [1, 1]], np.int32)}
    if labels
    else {"label": np.zeros(3, np.int32)}
  )
  batch = reds([1.5, 5, -5], **kind)
  for key, logits in attacked_logits(Red(), batch, (2, 8)).items():
    found = classification.by_example(logits, batch)
    totals = classification.sums(logits, batch)
    if key == ("fgsm", 2):
      first = found["true_positives" if labels else "top1"]
      assert first.tolist() == [0, 1, 1 if labels else 0]
    for name, values in found.items():
      assert values.sum() == totals[name][0].sum(), name
