"""The losses, by hand values and against plain numpy."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from gc_jax.method import losses


def test_cross_entropy_is_the_negative_log_likelihood():
  logits = jnp.array([[0.0, np.log(3.0)], [2.0, 2.0]])
  np.testing.assert_allclose(
    losses.cross_entropy(logits, jnp.array([1, 0])),
    [np.log(4 / 3), np.log(2)],
    rtol=1e-6,  # float32
  )


def test_binary_cross_entropy_is_the_mean_over_classes():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (5, 7))
  counts = rng.integers(0, 3, (5, 7))
  assert counts.max() == 2  # two objects are as present as one
  chance = 1 / (1 + np.exp(-logits))
  right = np.where(counts > 0, chance, 1 - chance)
  np.testing.assert_allclose(
    losses.binary_cross_entropy(
      jnp.asarray(logits, jnp.float32), jnp.asarray(counts, jnp.int32)
    ),
    -np.log(right).mean(1),
    rtol=1e-5,  # 7 terms in float32
  )


def test_confident_logits_give_finite_losses():
  logits = jnp.array([[1e4, -1e4]])
  assert losses.cross_entropy(logits, jnp.array([1])) == 2e4
  assert losses.binary_cross_entropy(logits, jnp.array([[0, 1]])) == 1e4


def maps(seed, side=14):
  """Two pairs of distributions: [2 h w], twice."""
  cells = np.random.default_rng(seed).random((2, 2, side, side))
  return jnp.asarray(cells / cells.sum((-2, -1), keepdims=True), jnp.float32)


def test_consistency_loss_by_hand():
  expected = jnp.array([[0.5, 0.5], [0.0, 0.0]])
  cam = jnp.array([[0.25, 0.25], [0.5, 0.0]])
  assert losses.consistency_loss(expected, cam, "sum") == 1.0
  assert losses.consistency_loss(expected, cam, "mean") == 0.25
  assert losses.consistency_loss(expected, cam) == 0.25
  # At most 2: of maps that have no cell in common.
  assert losses.consistency_loss(expected, expected[::-1], "sum") == 2
  assert losses.consistency_loss(expected, expected, "sum") == 0


def test_both_maps_are_trained():
  """No stop-gradient: the gradients are opposite, and none is zero."""
  pair = maps(1)
  grads = jax.grad(
    lambda a, b: losses.consistency_loss(a, b, "sum").sum(), argnums=(0, 1)
  )(*pair)
  np.testing.assert_array_equal(grads[0], -grads[1])
  np.testing.assert_array_equal(np.abs(grads[0]), 1)


def test_energy_by_hand():
  """A quarter of the mass in a cell that is covered whole, half in a half."""
  cam = jnp.array([[1.0, 2.0], [1.0, 0.0]])
  coverage = jnp.array([[1.0, 0.5], [0.0, 1.0]])
  assert losses.energy_loss(cam, coverage) == pytest.approx(1 - 0.25 - 0.25)


def test_energy_is_0_inside_1_outside_and_of_no_scale():
  cam = maps(2)[0]
  inside, outside = jnp.ones_like(cam), jnp.zeros_like(cam)
  np.testing.assert_allclose(losses.energy_loss(cam, inside), 0, atol=1e-6)
  np.testing.assert_array_equal(losses.energy_loss(cam, outside), 1)
  half = (jnp.arange(14) < 7).astype(cam.dtype)[None, None] * inside
  once, more = (losses.energy_loss(x * cam, half) for x in (1, 1000))
  np.testing.assert_allclose(once, more, rtol=1e-5)
  np.testing.assert_allclose(
    once + losses.energy_loss(cam, 1 - half), 1, rtol=1e-5
  )


def test_energy_moves_mass_into_the_object():
  """Its slope is steeper the further the rest of the mass is outside."""
  cam = maps(3)[0]
  coverage = (jnp.arange(14) < 3).astype(cam.dtype)[None, None] * cam**0
  grad = jax.grad(lambda x: losses.energy_loss(x, coverage).sum())(cam)
  assert (grad[..., :3] < 0).all() and (grad[..., 3:] > 0).all()
  # A map's scale does not matter: along itself the loss is flat.
  np.testing.assert_allclose((grad * cam).sum((1, 2)), 0, atol=1e-6)


def test_an_empty_map_has_all_outside_and_stays_finite():
  zeros = jnp.zeros((1, 3, 3))

  def loss(cam):
    return losses.energy_loss(jax.nn.relu(cam), zeros + 1).sum()

  value, grad = jax.value_and_grad(loss)(zeros)
  assert value == 1
  np.testing.assert_array_equal(grad, 0)


def test_an_unknown_reduction_and_unlike_shapes_are_refused(monkeypatch):
  """Neither is summed, nor broadcast to all pairs."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  cam, logits, ones = maps(0), jnp.ones((4, 3)), jnp.ones(4)
  with pytest.raises(ValueError, match="one of mean, sum; it is 'avg'"):
    losses.consistency_loss(cam, cam, "avg")
  for wrong in (
    lambda: losses.consistency_loss(cam[:, :1], cam),
    lambda: losses.energy_loss(cam[:1], cam),
    lambda: losses.masked_mean(ones, ones[:, None]),
    lambda: losses.binary_cross_entropy(logits, jnp.ones((4, 1), int)),
  ):
    with pytest.raises(ValueError, match="must have one shape"):
      wrong()


@pytest.mark.parametrize("masked", [0.0, -3.0, np.nan, np.inf, 1e30])
def test_masking_is_deleting(masked):
  """The measures say NaN of what does not count."""
  values, mask = jnp.array([1.0, masked, 2.0]), jnp.array([1.0, 0.0, 1.0])
  mean = jax.value_and_grad(losses.masked_mean)
  value, gradient = mean(values, mask)
  assert value == 1.5
  np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])
  # Of nothing it is 0, and trains nothing.
  value, gradient = mean(values, 0 * mask)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
