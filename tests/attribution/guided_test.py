"""Guidance in a loop of one's own: the trainer's losses, for any model."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import gc_jax
from gc_jax.method import cam as cams
from gc_jax.method import compose, losses
from gc_jax.method.types import check_key
from tests.attribution import foreign
from tests.attribution.wrapping_test import made, ours

LABELS = jnp.array([0, 1, 2, 3, 4, 0, 1, 2])
KEY = jax.random.key(7)


def batch(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), (8, 32, 32, 3), dtype)


def by_hand(model, images, mode):
  """The paper's loss, with features and classify of our own model."""
  key_layout = jax.random.split(KEY)[1]
  layout = compose.MODES[mode].draw(
    jax.random.split(key_layout, 1)[0],
    jax.nn.one_hot(LABELS, 5, dtype=bool),
    LABELS,
    jnp.ones(8),
  )

  def cam(images, targets):
    features = model.features(images)
    gradients = cams.class_gradients(model.classify, features, targets)
    return cams.normalize_cam(
      cams.elementwise_grad_cam(features[:, None], gradients)
    )

  own = cam(images, LABELS[:, None])[:, 0]
  found = cam(compose.assemble(layout, images), LABELS[layout.explained])
  values = losses.consistency_loss(compose.expected_cam(layout, own), found)
  return losses.masked_mean(values, layout.mask)


@pytest.mark.parametrize("mode", ["packed", "independent"])
@pytest.mark.parametrize("library", ["nnx", "equinox"])
def test_the_consistency_loss_is_the_papers(library, mode):
  net, _ = made(library)
  images = batch()
  expected = by_hand(ours(), images, mode)
  if library == "equinox":
    images = jnp.moveaxis(images, -1, 1)
  run = jax.jit(
    lambda net, x: gc_jax.consistency(net, x, LABELS, KEY, mode=mode)
  )
  found = run(net, images)
  assert float(found.loss) > 0
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4)
  np.testing.assert_allclose(found.logits, net(images)[0], atol=1e-4)
  assert 0 <= float(found.metrics["masked_frac"]) < 1


def derivatives(library):
  """Returns the loss's derivative along a random way, and its difference."""
  with jax.enable_x64(True):
    images = batch(jnp.float64)[:, :16, :16]
    if library == "equinox":
      images = jnp.moveaxis(images, -1, 1)
    make = lambda variables: variables
    if library == "function":
      variables = jax.tree.map(
        lambda x: x.astype(jnp.float64), foreign.weights_of(ours())
      )
      make = lambda weights: gc_jax.wrap(foreign.function_net(weights))
    else:
      variables, _ = made(library, jnp.float64, side=16)
    is_real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    leaves, structure = jax.tree.flatten(variables)
    reals = [x for x in leaves if is_real(x)]
    keys = jax.random.split(KEY, len(reals))
    way = [
      1e-2 * jax.random.normal(key, x.shape, x.dtype)
      for key, x in zip(keys, reals, strict=True)
    ]

    @jax.jit
    def loss(distance):
      moved = iter(x + distance * w for x, w in zip(reals, way, strict=True))
      both = [next(moved) if is_real(x) else x for x in leaves]
      net = make(jax.tree.unflatten(structure, both))
      return gc_jax.consistency(net, images, LABELS, KEY).loss

    step = 1e-5
    difference = (loss(step) - loss(-step)) / (2 * step)
    return jax.jit(jax.grad(loss))(0.0), difference


@pytest.mark.parametrize(
  "library", ["nnx", "linen", "equinox", "function", "vit"]
)
def test_its_gradient_is_the_finite_difference_in_float64(library):
  found, expected = derivatives(library)
  assert abs(float(expected)) > 1e-6
  np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("key", [None, 0, 1.5, jax.random.split(KEY, 2)])
def test_a_key_that_is_none_is_refused(key):
  # Directly, as tests check the types that losses say they take.
  with pytest.raises(ValueError, match=r"key must be one, as jax\.random\.key"):
    check_key(key)
  jax.jit(check_key)(KEY)
  check_key(np.asarray(jax.random.PRNGKey(0)))


def test_a_fixed_target_changes_the_gradient_and_not_the_loss():
  keys = jax.random.split(KEY, 2)
  weights = {
    "trunk": jax.random.normal(keys[0], (3, 16)),
    "head": jax.random.normal(keys[1], (16, 5)),
  }

  def loss(weights, stop_gradient):
    # Cells depend on the whole picture, so that a map in a composite is now
    # above, now below that of the picture: were it below in all cells, moving
    # the target, which sums to 1, would change nothing.
    def run(images, tap):
      context = jnp.tanh(9 * images.mean((1, 2)) @ weights["trunk"])
      cells = images[:, ::8, ::8] @ weights["trunk"]
      cells = tap(jax.nn.relu(cells * context[:, None, None]))
      return cells.mean((1, 2)) @ weights["head"]

    seen = gc_jax.consistency(
      gc_jax.wrap(run), batch(), LABELS, KEY, stop_gradient=stop_gradient
    )
    return seen.loss

  run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  (moving, free), (fixed, held) = run(weights, False), run(weights, True)
  np.testing.assert_allclose(moving, fixed, rtol=1e-5)
  change = jnp.abs(free["trunk"] - held["trunk"]).max()
  assert change > 0.01 * jnp.abs(free["trunk"]).max()


def test_the_energy_loss_is_the_mass_outside_the_object():
  net, _ = made("function")
  images = batch()
  masks = np.zeros((8, 32, 32))
  masks[:, :16] = 255
  masks[0] = 0  # without an object: it does not count
  found = jax.jit(lambda x: gc_jax.energy(net, x, LABELS, jnp.asarray(masks)))(
    images
  )
  maps = gc_jax.explain(net, images, LABELS, normalize=False)[1:]
  # The upper half of 4x4 cells is inside; of an empty map, nothing is.
  inside = maps[:, :2].sum((1, 2)) / (maps.sum((1, 2)) + 1e-8)
  assert found.metrics["masked_frac"] == 1 / 8
  np.testing.assert_allclose(found.loss, 1 - inside.mean(), atol=1e-5)


def test_several_labels_draw_a_class_that_is_shown():
  net, _ = made("function")
  counts = jax.nn.one_hot(LABELS, 5, dtype=jnp.int32) * 2
  counts = counts.at[0].set(0)  # nothing to explain
  found = gc_jax.consistency(net, batch(), counts, KEY)
  assert float(found.metrics["masked_frac"]) >= 1 / 8
  assert np.isfinite(found.loss)


def test_a_step_of_ones_own_trains_and_moves_statistics_once_for_each_call():
  model = foreign.nnx_net(foreign.weights_of(ours()))
  model.train()
  optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, images, labels, key):
    def loss_fn(model):
      net = gc_jax.wrap(model, at="layer2.1")
      seen = gc_jax.consistency(net, images, labels, key)
      nnx.update(model, seen.state)
      ce = optax.softmax_cross_entropy_with_integer_labels(seen.logits, labels)
      return ce.mean() + 10.0 * seen.loss

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss

  before = model.bn1.mean[...], model.conv1.kernel[...]
  values = [
    float(step(model, optimizer, batch(), LABELS, KEY)) for _ in range(4)
  ]
  assert values[-1] < values[0]
  after = model.bn1.mean[...], model.conv1.kernel[...]
  assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_composites_stay_on_their_device():
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  net, _ = made("function")
  images = jnp.concatenate([batch(), batch()])
  labels = jnp.concatenate([LABELS, LABELS])
  run = jax.jit(lambda x, y: gc_jax.consistency(net, x, y, KEY, groups=4).loss)
  split = NamedSharding(mesh, PartitionSpec("data"))
  found = run(jax.device_put(images, split), jax.device_put(labels, split))
  np.testing.assert_allclose(found, run(images, labels), rtol=1e-5)


def test_wrong_arguments_are_named():
  net, _ = made("function")
  images = batch()
  with pytest.raises(ValueError, match=r"Unknown mode='pack'.*'packed'"):
    gc_jax.consistency(net, images, LABELS, KEY, mode="pack")
  with pytest.raises(ValueError, match="6 images of a batch must be divisible"):
    gc_jax.consistency(net, images[:6], LABELS[:6], KEY)
  with pytest.raises(ValueError, match=r"labels must be \[B\] or \[B K\]"):
    gc_jax.consistency(net, images, LABELS[:4], KEY)
  with pytest.raises(ValueError, match=r"labels must be class ids.*'cat' came"):
    gc_jax.consistency(net, images, np.array(["cat"] * 8), KEY)
  with pytest.raises(ValueError, match="groups must be at least 1; it is 0"):
    gc_jax.consistency(net, images, LABELS, KEY, groups=0)
  with pytest.raises(
    ValueError, match="images must be a batch of at least one"
  ):
    gc_jax.consistency(net, images[:0], LABELS[:0], KEY)
  # The mask of other images, and of other pixels, would be read all the same.
  with pytest.raises(ValueError, match=r"mask must be \[B\].*shape \(4,\)"):
    gc_jax.consistency(net, images, LABELS, KEY, mask=np.ones(4))
  with pytest.raises(ValueError, match=r"object_mask must be \[B H W\]"):
    gc_jax.energy(net, images, LABELS, np.ones((8, 16, 32)))
  with pytest.raises(ValueError, match="key must be given"):
    gc_jax.energy(net, images, jnp.ones((8, 5), int), jnp.ones((8, 32, 32)))


class LinenDropout(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x)).mean((1, 2))
    kept = jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape)
    jax.debug.callback(lambda kept: MASKS.append(np.array(kept)), kept)
    return nn.Dense(5)(x * kept)


class EqxDropout(eqx.Module):
  conv: eqx.nn.Conv2d
  fc: eqx.nn.Linear

  def __call__(self, x, key):
    x = jax.nn.relu(self.conv(x)).mean((1, 2))
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    jax.debug.callback(lambda kept: MASKS.append(np.array(kept)), kept)
    return self.fc(x * kept)


class NnxDropout(nnx.Module):
  def __init__(self):
    self.rngs = nnx.Rngs(0)
    self.conv = nnx.Conv(3, 8, (3, 3), rngs=self.rngs)
    self.fc = nnx.Linear(8, 5, rngs=self.rngs)

  def __call__(self, x):
    x = nnx.relu(self.conv(x)).mean((1, 2))
    kept = jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape)
    jax.debug.callback(lambda kept: MASKS.append(np.array(kept)), kept)
    return self.fc(x * kept)


MASKS = []


def dropping(library, make_key):
  """Returns a net that tells its masks, and whether channels come first."""
  images = batch()[:4, :8, :8]
  if library == "nnx":
    return gc_jax.wrap(NnxDropout(), at="conv"), images
  if library == "linen":
    model, rngs = LinenDropout(), {"dropout": make_key(5)}
    variables = model.init({"params": KEY, **rngs}, images)
    return gc_jax.wrap((model, variables), at="conv", rngs=rngs), images
  key = jax.random.key(0)
  conv, fc = eqx.nn.Conv2d(3, 8, 3, key=key), eqx.nn.Linear(8, 5, key=key)
  net = gc_jax.wrap(EqxDropout(conv, fc), at="conv", key=make_key(5))
  return net, jnp.moveaxis(images, -1, 1)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])
def test_dropout_of_composites_is_not_that_of_their_pictures(library, make_key):
  net, images = dropping(library, make_key)
  jax.effects_barrier()
  MASKS.clear()
  gc_jax.consistency(net, images, LABELS[:4], KEY, mode="independent")
  jax.effects_barrier()
  of_both = np.concatenate([x.reshape(-1, 8) for x in MASKS])
  of_pictures, of_composites = np.split(of_both, 2)
  assert of_pictures.shape == (4, 8)
  found = {tuple(row) for row in of_composites}
  assert len(found - {tuple(row) for row in of_pictures}) >= 3
