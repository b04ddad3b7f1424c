"""Grad-CAM: the nested gradient is the meaning, closed forms its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.method import cam as cams
from gc_jax.method import losses
from gc_jax.models import pure_head

POOLINGS = ("average", "max")
# Where both routes are float32, of values near 1: some 80 roundings.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def features():
  """Activations after a ReLU, [3 4 4 8], half of them exactly zero."""
  return jax.nn.relu(jax.random.normal(jax.random.key(0), (3, 4, 4, 8)))


TARGET = jnp.array([[3, 0], [9, 9], [1, 5]])


def channel_weights(kernel, target):
  """w_tk, the weight of each channel for each target: [B P D]."""
  return jnp.moveaxis(kernel[:, target], 0, -1)


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
  weights = channel_weights(kernel, target)
  if pooling == "max":
    features = features * at_maxima
    return jax.nn.relu(jnp.einsum("bpd,bhwd->bphw", weights, features))
  dense = jax.nn.relu(jnp.einsum("bpd,bhwd->bphw", weights, features))
  return dense / (features.shape[1] * features.shape[2])


def elementwise(classify, features, target):
  gradients = cams.class_gradients(classify, features, target)
  return cams.elementwise_grad_cam(features[:, None], gradients)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_elementwise_grad_cam_is_the_closed_form(make_tiny, features, pooling):
  model = make_tiny(pooling)
  cam = elementwise(model.classify, features, TARGET)
  oracle = closed_form(
    features, model.fc.kernel[...], TARGET, pooling, first_argmax(features)
  )
  assert cam.shape == (3, 2, 4, 4) and cam.max() > 0.01
  np.testing.assert_allclose(cam, oracle, **CLOSE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_standard_grad_cam_weighs_channels_by_w_over_hw(
  make_tiny, features, pooling
):
  """Under both poolings: the maximum's gradient, too, averages to w / hw."""
  model = make_tiny(pooling)
  gradients = cams.class_gradients(model.classify, features, TARGET)
  weights = gradients.mean((-3, -2))
  np.testing.assert_allclose(
    weights, channel_weights(model.fc.kernel[...], TARGET) / 16, **CLOSE
  )
  np.testing.assert_allclose(
    cams.grad_cam(features[:, None], weights),
    closed_form(features, model.fc.kernel[...], TARGET, "average", None),
    **CLOSE,
  )


def test_the_variants_differ_under_maximum_pooling_only(make_tiny, features):
  for pooling in POOLINGS:
    gradients = cams.class_gradients(
      make_tiny(pooling).classify, features, TARGET
    )
    standard = cams.grad_cam(features[:, None], gradients.mean((-3, -2)))
    cellwise = cams.elementwise_grad_cam(features[:, None], gradients)
    same = np.allclose(standard, cellwise, **CLOSE)
    assert same == (pooling == "average")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_loss_trains_through_the_map_as_through_the_closed_form(
  make_tiny, features, pooling
):
  """The gradient of the gradient, for the features and for the head."""
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

  grads = jax.jit(jax.grad(nested, argnums=(0, 1)))(features, params)
  expected = jax.jit(jax.grad(oracle, argnums=(0, 1)))(features, params)
  for ours, theirs in (
    (grads[0], expected[0]),
    (grads[1]["fc"]["kernel"][...], expected[1]["fc"]["kernel"][...]),
  ):
    scale = np.abs(theirs).max()
    assert scale > 0.1
    # Relative to the largest: entries are differences of larger terms.
    np.testing.assert_allclose(ours / scale, theirs / scale, **CLOSE)
  np.testing.assert_array_equal(grads[1]["fc"]["bias"][...], 0)


def test_the_first_of_equal_maxima_takes_the_whole_gradient(make_tiny):
  """After a ReLU and in bfloat16, ties are common; jnp.max would split."""
  model = make_tiny("max")
  features = jnp.zeros((1, 4, 4, 8), jnp.bfloat16)
  features = features.at[0, 1, 2].set(0.5).at[0, 3, 0].set(0.5)
  gradients = cams.class_gradients(model.classify, features, TARGET[:1])
  expected = np.zeros((1, 2, 4, 4, 8), np.float32)
  expected[0, :, 1, 2] = channel_weights(model.fc.kernel[...], TARGET[:1])[0]
  assert gradients.dtype == jnp.float32
  np.testing.assert_array_equal(gradients, expected)

  def split(features):
    return features.max((1, 2)) @ model.fc.kernel[...]

  halves = cams.class_gradients(split, features, TARGET[:1])
  np.testing.assert_allclose(halves[:, :, 1, 2], expected[:, :, 1, 2] / 2)


@pytest.mark.parametrize(
  "layer, standard, cellwise",
  [
    ("conv", [[11.25, 13.5], [20.25, 22.5]], [[0, 4], [25, 25]]),
    ("relu", [[0, 4], [28, 32.5]], [[0, 4], [25, 25]]),
  ],
)
def test_a_head_without_global_pooling_gives_captums_hand_values(
  layer, standard, cellwise
):
  """0..15 under two 3x3 convolutions of ones, biases -50 and -75.

  Then ReLU and a linear row over (channel, row, column). The standard maps
  are those of captum's own test of LayerGradCam, worked out by hand there.
  """
  picture = np.arange(16.0).reshape(4, 4)
  sums = np.array(
    [[picture[i : i + 3, j : j + 3].sum() for j in (0, 1)] for i in (0, 1)]
  )
  conv = jnp.asarray(np.stack([sums - 50, sums - 75], -1)[None], jnp.float32)
  row = jnp.array([1.0] * 5 + [-1.0] * 3)

  def classify(features):
    hidden = jax.nn.relu(features) if layer == "conv" else features
    return hidden.transpose(0, 3, 1, 2).reshape(1, 8) @ row[:, None]

  features = conv if layer == "conv" else jax.nn.relu(conv)
  gradients = cams.class_gradients(classify, features, jnp.array([[0]]))
  # Small integers and quarters: exact in float32.
  np.testing.assert_array_equal(
    cams.grad_cam(features[:, None], gradients.mean((-3, -2)))[0, 0], standard
  )
  np.testing.assert_array_equal(
    cams.elementwise_grad_cam(features[:, None], gradients)[0, 0], cellwise
  )


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


def test_each_target_has_its_own_map(make_tiny, features):
  model = make_tiny("max")
  both = cams.class_gradients(model.classify, features, TARGET)
  for p in range(2):
    alone = cams.class_gradients(model.classify, features, TARGET[:, p : p + 1])
    np.testing.assert_array_equal(both[:, p : p + 1], alone)
