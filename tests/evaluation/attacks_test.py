"""FGSM and PGD: by hand on models of one layer, and their laws on a net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.evaluation import attacks, classification
from gc_jax.evaluation.attacks import WITHIN
from gc_jax.method import losses
from gc_jax.method.metrics import EPSILONS

ULP = 1e-6  # of pixels: float32 near 1, added and clipped
both_attacks = pytest.mark.parametrize("attack", ["fgsm", "pgd"])
both_kinds = pytest.mark.parametrize("kind", ["label", "labels"])


class Net(nnx.Module):
  """Gives the mean of each channel to a function."""

  def __init__(self, logits):
    self.logits = logits

  def normalize(self, images):
    return images

  def features(self, images):
    return images

  def classify(self, features):
    return self.logits(features.mean((1, 2)))


def linear(weights):
  """Logits are sums of weighted channels, [3 K]."""
  return Net(lambda channels: channels @ jnp.asarray(weights, jnp.float32))


def by_red(*scores):
  """Logits are functions of the red channel."""
  return Net(lambda channels: jnp.stack([f(channels[:, 0]) for f in scores], 1))


def peak(at):
  """The second class is likeliest where red is `at`."""
  return by_red(lambda red: 100 * (red - at) ** 2, jnp.zeros_like)


def bumps(at):
  """A low bump at a fifth of the way to `at`, a valley, and a summit there."""

  def height(red):
    way = (red - 0.5) / (at - 0.5)
    return way + jnp.sin(2 * jnp.pi * way / 0.8)

  return by_red(lambda red: -height(red), height)


# Class 0 where red is above a half; class 1 in a narrow band around 0.4.
RED = by_red(lambda red: red - 0.5, lambda red: 0.5 - red)
BAND = by_red(
  lambda red: jnp.abs(red - 0.4) - 0.03, lambda red: 0.03 - jnp.abs(red - 0.4)
)


def pixel(*channels, dtype=jnp.float32, **labels):
  """A batch of one picture of one pixel, by default of class 0."""
  image = jnp.array(channels, dtype)[None, None, None]
  labels = labels or {"label": [0]}
  return {
    "image": image,
    "mask": jnp.ones(1),
    **{kind: jnp.array(value) for kind, value in labels.items()},
  }


@functools.cache
def compiled(attack, graphdef, **settings):
  @jax.jit
  def run(state, batch, epsilon):
    model = nnx.merge(graphdef, state)
    if attack == "pgd":
      return attacks.pgd(model, batch, epsilon, **settings)
    gradient = attacks.loss_gradient(model, batch)
    return attacks.fgsm(batch["image"], gradient, epsilon)

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


@pytest.fixture(scope="module")
def model(make_tiny):
  return settled(make_tiny("max"))


def settled(net):
  """Statistics of pixels, so that activations are of order 1."""
  net.train()
  net.features(net.normalize(batch_of("label")["image"]))
  net.eval()
  return net


def batch_of(kind):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (4, 16, 16, 3))
  labels = {
    "label": rng.integers(0, 10, 4),
    "labels": rng.integers(0, 3, (4, 10)),
  }
  return {
    "image": jnp.asarray(image, jnp.uint8),
    "mask": jnp.ones(4),
    kind: jnp.asarray(labels[kind], jnp.int32),
  }


@both_attacks
def test_each_channel_moves_away_from_the_label(attack):
  """Red down, green up, and blue does not matter; for class 1 the opposite."""
  net, step = linear([[1, -1], [-2, 2], [0, 0]]), 8 / 255
  for label, sign in ((0, 1), (1, -1)):
    batch = pixel(0.5, 0.5, 0.5, label=[label])
    expected = 0.5 + sign * np.array([-step, step, 0])
    found = attacked(attack, net, batch, 8)[0, 0, 0]
    np.testing.assert_allclose(found, expected, atol=ULP)


@both_attacks
def test_epsilon_is_in_bytes_and_pixels_stay_in_range(attack):
  """Bytes 3, 250 and 100 under epsilon 8 go to 0, 255 and 92."""
  net = linear([[1, -1], [-2, 2], [3, -3]])
  found = attacked(attack, net, pixel(3, 250, 100, dtype=jnp.uint8), 8)
  np.testing.assert_allclose(found[0, 0, 0] * 255, [0, 255, 92], 1e-5)
  assert found.min() == 0 and found.max() == 1
  fractions = pixel(3 / 255, 250 / 255, 100 / 255)
  np.testing.assert_allclose(
    attacked(attack, net, fractions, 8), found, atol=ULP
  )


@both_attacks
def test_with_several_labels_each_is_attacked(attack):
  """Class 0 is present and falls, class 1 is absent and rises."""
  net = linear([[1, 0], [0, 1], [0, 0]])
  batch = pixel(0.5, 0.5, 0.5, labels=[[2, 0]])
  found = attacked(attack, net, batch, 2)[0, 0, 0]
  expected = [0.5 - 2 / 255, 0.5 + 2 / 255, 0.5]
  np.testing.assert_allclose(found, expected, atol=ULP)


def test_pgd_finds_the_peak_that_fgsm_steps_over():
  """The loss is highest a quarter of epsilon away, a multiple of the step."""
  at = 0.5 + 40 / 255 / 4
  net, batch = peak(at), pixel(0.5, 0.5, 0.5)
  by_fgsm, by_pgd = (attacked(a, net, batch, 40) for a in ("fgsm", "pgd"))
  loss = lambda images: float(losses_of(net, images, batch)[0])
  assert by_fgsm[0, 0, 0, 0] == pytest.approx(0.5 + 40 / 255)
  assert loss(by_fgsm) < loss(batch["image"]) - 0.1
  assert by_pgd[0, 0, 0, 0] == pytest.approx(at)
  assert loss(by_pgd) == pytest.approx(np.log(2))


def test_pgd_begins_with_fgsms_own_step():
  """It finds a summit that small steps alone would miss."""
  at = 0.5 + 40 / 255
  found = attacked("pgd", bumps(at), pixel(0.5, 0.5, 0.5), 40)
  assert found[0, 0, 0, 0] == pytest.approx(at)


def test_pgd_counts_its_last_step_too(model):
  batch = batch_of("label")
  by_fgsm = losses_of(model, attacked("fgsm", model, batch, 1), batch)
  by_pgd = losses_of(model, attacked("pgd", model, batch, 1, steps=1), batch)
  clean = losses_of(model, batch["image"], batch)
  assert (by_fgsm > clean).any()
  np.testing.assert_allclose(by_pgd, jnp.maximum(by_fgsm, clean), rtol=1e-3)


def test_pgd_keeps_the_clean_picture_if_nothing_is_worse():
  """Each example for itself: the first stays, the second moves."""
  pictures = [pixel(0.5, 0.2, 0.2), pixel(0.4, 0.2, 0.2)]
  batch = jax.tree.map(lambda *rows: jnp.concatenate(rows), *pictures)
  found = attacked("pgd", peak(0.5), batch, 8)
  np.testing.assert_array_equal(found[0], batch["image"][0])
  assert found[1, 0, 0, 0] == pytest.approx(0.4 + 8 / 255)


@both_kinds
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


@both_attacks
@both_kinds
def test_pixels_stay_in_the_ball_and_in_range(model, attack, kind):
  batch = batch_of(kind)
  clean = batch["image"].astype(jnp.float32) / 255
  for epsilon in EPSILONS:
    found = attacked(attack, model, batch, epsilon)
    assert found.dtype == jnp.float32
    assert found.min() >= 0 and found.max() <= 1
    moved = jnp.abs(found - clean).max((1, 2, 3))
    assert (moved <= epsilon / 255 + ULP).all()
    # Some pixel goes all the way, unless a picture cannot be worsened.
    assert (moved >= epsilon / 255 - ULP).sum() >= 3
  np.testing.assert_array_equal(attacked(attack, model, batch, 0), clean)


def test_no_example_sees_another(model):
  batch = batch_of("label")
  alone = {name: rows[1:2] for name, rows in batch.items()}
  one = attacked("fgsm", model, alone, 8)[0]
  of_four = attacked("fgsm", model, batch, 8)[1]
  # Pixels whose gradient is a rounding error have either sign.
  assert (one == of_four).mean() > 0.99


@both_attacks
def test_half_precision_is_attacked_in_full(make_tiny, attack):
  net, batch = settled(make_tiny(dtype=jnp.bfloat16)), batch_of("label")
  found = attacked(attack, net, batch, 1)
  assert found.dtype == jnp.float32
  assert jnp.abs(found - batch["image"] / 255).max() <= 1 / 255 + ULP
  before = losses_of(net, batch["image"], batch)
  assert (losses_of(net, found, batch) - before).mean() > 0.01


@both_attacks
def test_a_gradient_of_nan_is_no_defence(attack):
  net = linear(np.full((3, 2), np.nan))
  assert jnp.isnan(attacked(attack, net, pixel(0.5, 0.5, 0.5), 8)).any()


# Accuracy under attack.


def reds(distances, **labels):
  """Pictures whose red is so many bytes above a half, by default of class 0."""
  image = np.full((len(distances), 1, 1, 3), 0.5, np.float32)
  image[:, 0, 0, 0] += np.array(distances) / 255
  labels = labels or {"label": np.zeros(len(distances), np.int32)}
  batch = {"image": image, "mask": np.ones(len(distances), np.float32)}
  return jax.tree.map(jnp.asarray, batch | labels)


def sums(net, batch, *args):
  """(attack, epsilon) -> the sums of its predictions."""

  @jax.jit
  def run(batch):
    logits = attacks.attacked_logits(net, batch, *args)
    return {k: classification.sums(row, batch) for k, row in logits.items()}

  return run(batch)


def results(*args):
  return {k: classification.summarize(v) for k, v in sums(*args).items()}


@pytest.mark.parametrize(
  "on_few, names", [(False, ["fgsm"]), (True, ["fgsm-few", "pgd"])]
)
def test_a_picture_falls_once_epsilon_is_over_its_distance(on_few, names):
  """Distances 1.5, 5, 20 and 100; the fifth picture was wrong all along."""
  found = results(RED, reds([1.5, 5, 20, 100, -5]), EPSILONS, on_few)
  expected = {1: 80, 2: 60, 8: 40, 16: 40, 32: 20, 64: 20}
  assert expected.keys() == set(EPSILONS)
  for name in names:
    for epsilon, top1 in expected.items():
      assert found[name, epsilon]["top1"] == pytest.approx(top1)


def test_a_step_too_long_is_no_defence_within_epsilon():
  """Red 0.5 is in the band at 32 alone; 0.41 is in it, and out of it at 32."""
  # In any order of epsilons.
  found = results(BAND, reds([0, -0.09 * 255]), (64, 8, 32))
  expected = {8: (50, 50), 32: (50, 0), 64: (100, 0)}
  for epsilon, (by_whole, within) in expected.items():
    assert found["fgsm", epsilon]["top1"] == by_whole
    assert found[WITHIN, epsilon]["top1"] == within


def test_a_label_once_wrong_stays_wrong_within_epsilon():
  batch = reds([0], labels=np.array([[1, 0]], np.int32))
  totals = sums(BAND, batch, (32, 64))

  def counts(*key):
    return [totals[key][case][0].tolist() for case in classification.CASES]

  wrong = [[0, 0], [0, 1], [1, 0]]
  assert counts("fgsm", 32) == wrong
  assert counts("fgsm", 64) == [[1, 0], [0, 0], [0, 0]]
  assert counts(WITHIN, 32) == counts(WITHIN, 64) == wrong


def test_logits_of_nan_withstand_nothing():
  broken = by_red(*[lambda red: red * jnp.nan] * 2)
  found = results(broken, reds([5]), (1, 8))
  assert {one["top1"] for one in found.values()} == {0}


def test_f1_falls_under_attack_with_several_labels():
  labels = np.array([[1, 0], [1, 0], [0, 1]], np.int32)
  found = results(RED, reds([1.5, 20, -20], labels=labels), (0, 8))
  assert found["fgsm", 0]["f1_overall"] == pytest.approx(100)
  # One of three pictures falls: both of its decisions are wrong.
  assert found["fgsm", 8]["f1_overall"] == pytest.approx(100 * 4 / 6)
