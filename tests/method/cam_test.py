"""Grad-CAM: the nested gradient is the meaning, closed forms its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.method import cam as cams
from gc_jax.method import losses
from gc_jax.models import pure_head

# Where both routes are float32, of values near 1: some 80 roundings.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def features():
  """Activations after a ReLU, [3 4 4 8], half of them exactly zero."""
  return jax.nn.relu(jax.random.normal(jax.random.key(0), (3, 4, 4, 8)))


TARGET = jnp.array([[3, 0], [9, 9], [1, 5]])


def first_argmax(features):
  """1 at the first maximum of each channel, row-major; constant: [B h w D]."""
  cells = features.reshape(features.shape[0], -1, features.shape[-1])
  where = np.argmax(np.asarray(cells), axis=1)  # numpy's first
  return jnp.asarray(
    np.moveaxis(np.eye(cells.shape[1])[where], -1, 1).reshape(features.shape),
    jnp.float32,
  )


def closed_form(features, kernel, target, pooling, at_maxima):
  """relu(sum_k w_tk A_k) / hw, or w_tk max A_k scattered to the maxima."""
  cells = features.shape[1] * features.shape[2]
  if pooling == "max":
    features, cells = features * at_maxima, 1
  weighted = jnp.einsum("dbp,bhwd->bphw", kernel[:, target], features)
  return jax.nn.relu(weighted) / cells


def elementwise(classify, features, target):
  gradients = cams.class_gradients(classify, features, target)
  return cams.elementwise_grad_cam(features[:, None], gradients)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_the_loss_trains_through_the_map_as_through_the_closed_form(
  make_tiny, features, pooling
):
  """The map, and its own gradient for the features and for the head."""
  graphdef, params, rest = nnx.split(make_tiny(pooling), nnx.Param, ...)
  other = cams.normalize_cam(
    jax.random.uniform(jax.random.key(1), (3, 2, 4, 4))
  )
  at_maxima = first_argmax(features)

  def loss_of(cam):
    return losses.consistency_loss(other, cams.normalize_cam(cam), "sum").sum()

  def nested(features, params):
    model = nnx.merge(graphdef, params, rest, copy=True)
    return loss_of(elementwise(pure_head(model), features, TARGET))

  def oracle(features, params):
    kernel = params["fc"]["kernel"][...]
    return loss_of(closed_form(features, kernel, TARGET, pooling, at_maxima))

  grads, expected = (
    jax.jit(jax.grad(loss, argnums=(0, 1)))(features, params)
    for loss in (nested, oracle)
  )
  for ours, theirs in (
    (grads[0], expected[0]),
    (grads[1]["fc"]["kernel"][...], expected[1]["fc"]["kernel"][...]),
  ):
    scale = np.abs(theirs).max()
    assert scale > 0.1
    # Relative to the largest: entries are differences of larger terms.
    np.testing.assert_allclose(ours / scale, theirs / scale, **CLOSE)
  np.testing.assert_array_equal(grads[1]["fc"]["bias"][...], 0)


def test_a_normalized_map_sums_to_one():
  cam = 7 * jax.random.uniform(jax.random.key(0), (5, 2, 7, 7))
  # 49 epsilons of 1e-8, and float32 sums.
  np.testing.assert_allclose(
    cams.normalize_cam(cam).sum((-2, -1)), 1, atol=2e-6
  )
  by_hand = cams.normalize_cam(jnp.array([[1.0, 3.0]]))
  np.testing.assert_allclose(by_hand, [[0.25, 0.75]], rtol=1e-6)


def test_the_sum_is_trained_through_too():
  """A map's scale is divided out: no gradient points along the map."""
  cam, toward = jax.random.uniform(jax.random.key(0), (2, 7, 7))
  grad = jax.grad(lambda cam: (cams.normalize_cam(cam) * toward).sum())(cam)
  assert np.abs(grad * cam).sum() > 0.1
  np.testing.assert_allclose((grad * cam).sum(), 0, atol=1e-6)  # float32


def test_an_empty_map_becomes_epsilon_everywhere():
  np.testing.assert_array_equal(
    cams.normalize_cam(jnp.zeros((2, 3, 3))), np.full((2, 3, 3), 1e-8, "f")
  )


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1.0, 1e30])
def test_normalizing_gives_no_nan_and_trains_on(make_tiny, features, scale):
  """Also where the map is empty or too small for its sum to be told from 0."""

  def loss(features):
    cam = elementwise(make_tiny().classify, features, TARGET)
    return jnp.square(cams.normalize_cam(cam)).sum(), cam

  grad, cam = jax.jit(jax.grad(loss, has_aux=True))(features * scale)
  assert np.isfinite(cams.normalize_cam(cam)).all()
  assert np.isfinite(grad).all()
