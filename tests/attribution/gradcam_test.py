"""Grad-CAM of a whole model: pixels and classes in, maps out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.attribution import METHODS, taps
from gc_jax.method import cam as cams
from gc_jax.models import pure_head

# Those with a closed form under a pooling and a linear head.
PLAIN = ("gradcam", "gradcam_elementwise")
CAMS = (*PLAIN, "gradcam_plus_plus", "layercam")
TARGETS = jnp.array([[3, 0], [7, 7]])


def pixels():
  values = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
  return jnp.asarray(values, jnp.uint8)


@pytest.fixture(scope="module", params=["average", "max"])
def model(request, make_tiny):
  net = make_tiny(request.param)
  # Statistics of pixels, so that some maps are not empty.
  net.train()
  net.features(net.normalize(pixels()))
  net.eval()
  return net


@functools.cache
def maps_of(model, method):
  graphdef, state = nnx.split(model)

  @jax.jit
  def explain(state, images, targets):
    net = nnx.merge(graphdef, state)
    return METHODS[method](net, images, targets)

  return functools.partial(explain, state)


@pytest.mark.parametrize("method", PLAIN)
def test_maps_are_the_closed_form_on_the_models_own_features(model, method):
  maps = maps_of(model, method)(pixels(), TARGETS)
  features = np.asarray(model.features(model.normalize(pixels())))
  weights = np.asarray(model.fc.kernel[...])[:, TARGETS]  # [D B P]
  if (method, model.pooling) == ("gradcam_elementwise", "max"):
    cells = features.reshape(2, 16, 8)
    at_maxima = np.eye(16)[cells.argmax(1)]  # [B D hw]
    features = (cells * at_maxima.swapaxes(1, 2)).reshape(features.shape) * 16
  expected = np.einsum("dbp,bhwd->bphw", weights, features).clip(0) / 16
  assert maps.dtype == jnp.float32 and maps.shape == (2, 2, 4, 4)
  assert expected.max() > 0.01
  # The trunk in another order of float32 operations, then 8 terms.
  np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_and_fractions_give_the_same_map(model, method):
  explain = maps_of(model, method)
  fractions = pixels().astype(jnp.float32) / 255
  np.testing.assert_allclose(
    explain(fractions, TARGETS), explain(pixels(), TARGETS), atol=1e-5
  )


@pytest.mark.parametrize("method", METHODS)
def test_explaining_leaves_the_model_as_it_was(model, method):
  before = jax.tree.map(np.array, nnx.state(model))
  METHODS[method](model, pixels(), TARGETS)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


class Published(nnx.Module):
  """A convolution of ones with biases -50 and -75, a ReLU, a linear row.

  The net of captum's public test of Grad-CAM; its input is arange(16).
  """

  def normalize(self, images):
    return images

  def before_relu(self, images):
    window = jax.lax.reduce_window(
      images, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID"
    )
    return jnp.concatenate([window - 50, window - 75], -1)

  def head(self, activations):
    # Flattened channel by channel: 1 1 1 1 | 1 -1 -1 -1.
    weights = jnp.array([[1.0, 1, 1, 1], [1, -1, -1, -1]]).reshape(2, 2, 2)
    return (activations.transpose(0, 3, 1, 2) * weights[None]).sum((1, 2, 3))[
      :, None
    ]


class AtConvolution(Published):
  def features(self, images):
    return self.before_relu(images)

  def classify(self, features, key=None):
    return self.head(nnx.relu(features))


class AfterRelu(Published):
  def features(self, images):
    return nnx.relu(self.before_relu(images))

  def classify(self, features, key=None):
    return self.head(features)


@pytest.mark.parametrize(
  "net, expected",
  [
    (AtConvolution, [[11.25, 13.5], [20.25, 22.5]]),
    (AfterRelu, [[0, 4], [28, 32.5]]),
  ],
)
def test_published_values_are_met(net, expected):
  """Values >= 0, so that the final ReLU changes none of them."""
  model = net()
  images = jnp.arange(16.0).reshape(1, 4, 4, 1)
  target = jnp.zeros((1, 1), int)
  found = METHODS["gradcam"](model, images, target)
  np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
  "method, weights",
  [
    # The second channel has a positive gradient only where it is 0.
    ("layercam", (1, 0)),
    # alpha = 1 / (2 + sum), of sums 75 and 21, over 4 positive cells and 1.
    ("gradcam_plus_plus", (4 / 77, 1 / 23)),
  ],
)
def test_relatives_are_met_by_hand(method, weights):
  """On the published net, after the ReLU.

  Windows sum to 45 54 81 90: activations are 0 4 31 40 and 0 0 6 15, gradients
  1 1 1 1 and 1 -1 -1 -1.
  """
  images = jnp.arange(16.0).reshape(1, 4, 4, 1)
  found = METHODS[method](AfterRelu(), images, jnp.zeros((1, 1), int))
  activations = np.array([[[0, 4], [31, 40]], [[0, 0], [6, 15]]])
  expected = np.tensordot(weights, activations, axes=1)
  np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["gradcam_plus_plus", "layercam"])
def test_relatives_are_their_equations(model, method):
  """In numpy, from the features and the gradients at them."""
  features = np.asarray(model.features(model.normalize(pixels())), np.float64)
  g = np.asarray(
    cams.class_gradients(
      pure_head(model), jnp.asarray(features, jnp.float32), TARGETS
    ),
    np.float64,
  )
  found = METHODS[method](model, pixels(), TARGETS)
  for image, place in np.ndindex(2, 2):
    a, grad = features[image], g[image, place]
    if method == "layercam":
      expected = (np.maximum(grad, 0) * a).sum(-1)
    else:
      below = 2 * grad**2 + grad**3 * a.sum((0, 1))
      alpha = np.divide(
        grad**2, below, out=np.zeros_like(grad), where=below != 0
      )
      weights = (alpha * np.maximum(grad, 0)).sum((0, 1))
      expected = np.maximum((weights * a).sum(-1), 0)
    np.testing.assert_allclose(
      found[image, place], expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("method", CAMS)
def test_other_layers_can_be_looked_at(make_tiny, method):
  model = make_tiny()
  model.eval()
  default = METHODS[method](model, pixels(), TARGETS)
  named = METHODS[method](model, pixels(), TARGETS, layer="layer1")
  np.testing.assert_array_equal(default, named)
  with pytest.raises(ValueError, match="layer must be one of maxpool, layer1"):
    METHODS[method](model, pixels(), TARGETS, layer="layer4")


def test_an_inner_layers_map_is_its_gradients_weighing_it(make_tiny):
  """The same as cutting the net there, and calling the rest its head."""
  model = make_tiny("max")
  model.eval()
  seen = []
  taps.tapped_features(model, {"maxpool": lambda x: (seen.append(x), x)[1]})(
    model.normalize(pixels())
  )

  def rest(x):
    for block in model.layer1:
      x = block(x)
    return model.classify(x)

  gradients = cams.class_gradients(rest, seen[0], TARGETS)
  expected = cams.elementwise_grad_cam(seen[0][:, None], gradients)
  found = METHODS["gradcam_elementwise"](
    model, pixels(), TARGETS, layer="maxpool"
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [None, "maxpool"])
@pytest.mark.parametrize("method", CAMS)
def test_several_classes_are_each_alone_jitted_or_not(make_tiny, method, layer):
  model = make_tiny("max")
  model.eval()
  graphdef, state = nnx.split(model)
  explain = functools.partial(METHODS[method], layer=layer)
  both = jax.jit(
    lambda state, *args: explain(nnx.merge(graphdef, state), *args)
  )(state, pixels(), TARGETS)
  assert both.max() > 0
  for place in range(2):
    alone = explain(model, pixels(), TARGETS[:, place : place + 1])
    np.testing.assert_allclose(
      both[:, place], alone[:, 0], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("layer", [None, "maxpool"])
@pytest.mark.parametrize("method", CAMS)
def test_a_black_picture_of_one_logit_has_a_map(make_tiny, method, layer):
  model = make_tiny("average", 1)
  model.eval()
  images = jnp.zeros((2, 16, 16, 3), jnp.uint8)
  found = METHODS[method](model, images, jnp.zeros((2, 1), int), layer=layer)
  assert found.shape == (2, 1, 4, 4) and jnp.isfinite(found).all()


@pytest.mark.parametrize("method", CAMS)
def test_inside_a_bfloat16_model_maps_are_float32s(make_tiny, method):
  """Not only their dtype: the trunk is computed so as well."""
  exact, rough = (
    make_tiny("average", dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
  )
  found = []
  for model in (exact, rough):
    model.eval()
    found.append(METHODS[method](model, pixels(), TARGETS, layer="maxpool"))
  assert found[1].dtype == jnp.float32
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_logit_and_bfloat16_will_do(make_tiny, method):
  model = make_tiny("average", 1, dtype=jnp.bfloat16)
  model.eval()
  found = METHODS[method](model, pixels(), jnp.zeros((2, 1), int))
  assert found.dtype == jnp.float32 and found.shape[:2] == (2, 1)
  assert jnp.isfinite(found).all() and (found >= 0).all()
