"""Models of other people's packages, wrapped as they are."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax
from gc_jax.attribution import METHODS, full_gradients, unfit

LABELS = jnp.array([0, 1, 2, 3])
TARGETS = LABELS[:, None]


def images(shape):
  return jax.random.normal(jax.random.key(1), (4, *shape))


@functools.cache
def resnet():
  """A ResNet of jax-resnet, in Linen, with two narrow blocks."""
  jax_resnet = pytest.importorskip("jax_resnet")
  model = jax_resnet.ResNet18(
    n_classes=5, stage_sizes=(1, 1), hidden_sizes=(4, 8)
  )
  x = images((32, 32, 3))
  variables = jax.jit(model.init)(jax.random.key(0), x)
  # As after training: there, the last norm of a block starts at a scale of 0.
  variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
  return model, variables, x


def wrapped_resnet(**settings):
  model, variables, x = resnet()
  return gc_jax.wrap((model, variables), at="layers_3", **settings), x


def test_a_public_resnet_is_explained():
  """It trains whenever its statistics may change: here they may not."""
  model, variables, x = resnet()
  net, _ = wrapped_resnet(mutable=())
  np.testing.assert_allclose(
    gc_jax.predict(net, x), jax.jit(model.apply)(variables, x), atol=1e-5
  )
  assert unfit(METHODS, net, x).keys() == {"attention_rollout"}

  @jax.jit
  def run(net, x):
    names = ("gradcam", "gradcam_elementwise", "excitation_backprop")
    maps = {name: METHODS[name](net, x, TARGETS)[:, 0] for name in names}
    return net(x)[1], maps, full_gradients.divide(net, x, TARGETS)[1:]

  activations, maps, (total, score) = run(net, x)
  # By hand: a mean over 4 x 4 cells and a dense layer follow.
  kernel = variables["params"]["layers_5"]["kernel"]
  weights = kernel.T[LABELS][:, None, None] / 16
  by_hand = nnx.relu((weights * activations).sum(-1))
  assert by_hand.max() > 0
  for name in ("gradcam", "gradcam_elementwise"):
    np.testing.assert_allclose(maps[name], by_hand, rtol=1e-4, atol=1e-6)
  # Nothing passes where no positive weight does.
  sums = maps["excitation_backprop"].sum((1, 2))
  np.testing.assert_allclose(sums, 1, rtol=1e-3)
  np.testing.assert_allclose(total, score, rtol=1e-3, atol=1e-4)


def test_a_public_resnet_is_guided():
  net, x = wrapped_resnet()

  @jax.jit
  def run(net):
    return gc_jax.consistency(net, x, LABELS, jax.random.key(0))

  found = run(net)
  assert 0 < float(found.loss) < 2
  before = net.variables[0]["batch_stats"]
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), before, found.state["batch_stats"]
  )
  assert any(jax.tree.leaves(moved))


@functools.cache
def vit():
  """The ViT of equimo, in Equinox, with two blocks."""
  vit = pytest.importorskip("equimo.models.vit")
  model = vit.VisionTransformer(
    *(32, 3, 16, 8, 2, [2]),
    num_classes=5,
    reg_tokens=0,
    global_pool="token",
    dynamic_img_size=True,
    key=jax.random.key(0),
  )
  return eqx.nn.inference_mode(model), images((3, 32, 32))


def wrapped_vit(at="blocks.0.blocks.0"):
  model, x = vit()
  key = jax.random.key(2)  # its call asks for one
  return gc_jax.wrap(model, at=at, grid=(4, 4), prefix=1, key=key), x


def test_a_public_vit_is_explained():
  model, x = vit()
  net, _ = wrapped_vit()
  keys = jax.random.split(jax.random.key(2), 4)
  expected = jax.jit(jax.vmap(lambda x, key: model(x, key=key)))(x, keys)
  np.testing.assert_allclose(gc_jax.predict(net, x), expected, atol=1e-5)
  rules = {"cmwp", "excitation_backprop", "fullgrad"}
  assert unfit(METHODS, net, x).keys() == rules

  @jax.jit
  def run(net, x, way):
    _, activations, gradients, _ = net.looked(x, TARGETS)
    step = 1e-2
    above, below = (net(x, sign * step * way)[0] for sign in (1, -1))
    slope = jnp.take_along_axis(above - below, TARGETS, 1)[:, 0] / (2 * step)
    maps = METHODS["gradcam_elementwise"](net, x, TARGETS)[:, 0]
    by_hand = nnx.relu((activations * gradients[:, 0]).sum(-1))
    rollout = METHODS["attention_rollout"](net, x, TARGETS)[:, 0]
    along = (gradients[:, 0] * way).sum((1, 2, 3))
    return slope, along, maps, by_hand, rollout

  way = jax.random.normal(jax.random.key(3), (4, 4, 4, 16))
  slope, along, maps, by_hand, rollout = run(net, x, way)
  np.testing.assert_allclose(along, slope, rtol=1e-2, atol=1e-4)
  np.testing.assert_allclose(maps, by_hand, rtol=1e-5)
  assert rollout.shape == (4, 4, 4) and (rollout.sum((1, 2)) > 0).all()


def test_a_public_vit_is_guided_on_composites_of_its_pictures():
  """A composite has four times as many tokens."""
  net, x = wrapped_vit()
  arrays, *others = net.variables

  @jax.jit
  @jax.value_and_grad
  def run(arrays):
    moved = dataclasses.replace(net, variables=(arrays, *others))
    return gc_jax.consistency(moved, x, LABELS, jax.random.key(0)).loss

  loss, gradients = run(arrays)
  assert 0 < float(loss) < 2
  sizes = [float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)]
  assert np.isfinite(sizes).all() and max(sizes) > 0
  quadrants = gc_jax.negative_quadrants(net, x, LABELS, jax.random.key(0))
  assert ((quadrants >= 0) & (quadrants <= 1)).all()


def test_a_place_inside_a_vmap_is_named_and_not_listed():
  """Each token passes a norm by itself."""
  model, x = vit()
  found = gc_jax.places(model, x, key=jax.random.key(2))
  assert found["blocks.0.blocks.0"].shape == (4, 17, 16)
  assert "head" in found and "blocks.0.blocks.0.norm" not in found
  inside, _ = wrapped_vit("blocks.0.blocks.0.prenorm")
  with pytest.raises(ValueError, match=r"inside a vmap.*prenorm' is\. Tap"):
    inside(x)
