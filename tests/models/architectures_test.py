"""Every architecture: torchvision's sizes, both poolings, modes and dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.models import chain, convnext, network

# torchvision's own numbers of parameters at 1,000 classes; the grid of features
# of 224 and 448 pixels.
SIZES = {
  "alexnet": (61_100_840, 6, 13),
  "vgg16": (138_357_544, 7, 14),
  "squeezenet1_1": (1_235_496, 13, 27),
  "resnet18": (11_689_512, 7, 14),
  "resnet34": (21_797_672, 7, 14),
  "resnet50": (25_557_032, 7, 14),
  "resnet101": (44_549_160, 7, 14),
  "vit_tiny": (5_717_416, 14, 28),
  "vit_small": (22_050_664, 14, 28),
  "vit_base": (86_567_656, 14, 28),
  "convnext_tiny": (28_589_128, 7, 14),
}
SMALL = {"resnet8-small", "resnet11-small", "alexnet-small"}
# Deeper or wider than others of the list, and like them in all else.
LIKE_OTHERS = {"resnet34", "resnet101", "vit_small", "vit_base"}


@functools.cache
def abstract(name):
  """The model's shapes: nothing is drawn, nothing allocated."""
  return nnx.eval_shape(
    lambda key: models.create(name, 1_000, key=key), models.init_key(0)
  )


def grid(name, height, width):
  image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  graphdef, state = nnx.split(abstract(name))
  features = lambda state, x: nnx.merge(graphdef, state).features(x)
  return jax.eval_shape(features, state, image).shape[1:3]


@pytest.mark.parametrize("num_classes", [0, -2])
def test_a_model_has_classes(num_classes):
  with pytest.raises(ValueError, match=f"at least 1; it is {num_classes}"):
    models.create("resnet8-small", num_classes)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_grids_are_as_many_as_torchvisions(name):
  num_params, of_224, of_448 = SIZES[name]
  params = jax.tree.leaves(nnx.state(abstract(name), nnx.Param))
  assert sum(leaf.size for leaf in params) == num_params
  assert all(leaf.dtype == jnp.float32 for leaf in params)
  assert grid(name, 224, 448) == (of_224, of_448)


@pytest.mark.parametrize("name", sorted({*SIZES, *SMALL} - LIKE_OTHERS))
def test_the_smallest_picture_leaves_a_cell_and_a_smaller_one_none(name):
  smallest = models.MODELS[name].min_px
  assert min(grid(name, smallest, smallest)) > 0
  if smallest > 1:
    with pytest.raises((TypeError, ValueError, AssertionError)):
      assert min(grid(name, smallest - 1, smallest - 1)) > 0


def test_every_architecture_with_a_global_pooling_comes_with_both():
  maximum = {name for name in models.MODELS if models.is_gmp(name)}
  plain = models.MODELS.keys() - maximum
  # The perceptrons of AlexNet and VGG16 take a grid of features, a ViT's class
  # token is given all of them.
  assert plain == {*SIZES, *SMALL}
  assert {models.without_gmp(n) for n in maximum} == plain - {
    *("alexnet", "alexnet-small", "vgg16"),
    *("vit_tiny", "vit_small", "vit_base"),
  }
  for name in ("resnet8-small", "squeezenet1_1"):
    pair = abstract(name), abstract(f"{name}-gmp")
    assert [model.pooling for model in pair] == ["average", "max"]
    shapes = [jax.tree.map(jnp.shape, nnx.state(model)) for model in pair]
    assert shapes[0] == shapes[1]


def images(count=2):
  pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3))
  return jnp.asarray(pixels, jnp.uint8)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_logits_are_float32_whatever_the_compute_dtype(make_tiny, pooling):
  logits = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    model = make_tiny(pooling, dtype=dtype)
    model.eval()
    features = model.features(model.normalize(images()))
    assert features.dtype == dtype and features.shape == (2, 4, 4, 8)
    assert features.min() >= 0
    logits[dtype] = model.classify(features)
    assert logits[dtype].dtype == jnp.float32
    # Pooled in float32, too: a bfloat16 mean would lose five digits.
    np.testing.assert_allclose(
      logits[dtype], model.classify(features.astype(jnp.float32)), rtol=1e-6
    )
  # Three convolutions of 8-bit numbers.
  np.testing.assert_allclose(
    logits[jnp.float32], logits[jnp.bfloat16], atol=0.05
  )


def tiny_chain(drops_features=True):
  return chain.Chain(
    ((8, 3, 2, 1), chain.POOL, (6, 3, 1, 1)),
    5,
    pool_window=3,
    grid=2,
    hidden=64,
    drops_features=drops_features,
    conv_init=network.TORCH_INIT,
    linear_init=network.TORCH_INIT,
    rngs=nnx.Rngs(models.init_key(0)),
  )


FEATURES = np.random.default_rng(0).random((3, 4, 4, 6), np.float32)


@pytest.mark.parametrize(
  ("drops_features", "numbers", "widths"),
  [
    (True, ["1", "4", "6"], [2 * 2 * 6, 64]),
    (False, ["0", "3", "6"], [64, 64]),
  ],
)
def test_dropout_falls_where_it_does_in_pytorch(
  monkeypatch, drops_features, numbers, widths
):
  """Before the first two dense layers, or behind them."""
  model = tiny_chain(drops_features)
  assert list(model.head) == numbers
  seen = []
  monkeypatch.setattr(
    network, "dropout", lambda *args: (seen.append(args), args[0])[1]
  )
  model.classify(jnp.asarray(FEATURES), jax.random.key(1))
  assert [x.shape[1] for x, _, _ in seen] == widths
  assert [rate for _, rate, _ in seen] == [0.5, 0.5]
  assert len({str(jax.random.key_data(key)) for _, _, key in seen}) == 2


def test_dropout_is_a_function_of_the_key_and_without_one_nothing_is_dropped():
  model = tiny_chain(drops_features=True)
  run = lambda *key: np.asarray(model.classify(jnp.asarray(FEATURES), *key))
  one, other = jax.random.key(1), jax.random.key(2)
  np.testing.assert_array_equal(run(one), run(one))
  for a, b in ((run(one), run(other)), (run(one), run())):
    assert np.abs(a - b).max() > 1e-3


def tiny_squeezenet():
  return chain.SqueezeNet(
    5,
    chain=((64, 3, 2, 0), (4, 4), chain.POOL, (4, 8)),
    rngs=nnx.Rngs(models.init_key(0)),
  )


def tiny_convnext():
  return convnext.ConvNeXt(
    *(5,),
    stage_sizes=(1, 2),
    widths=(4, 8),
    layer_scale=0.5,
    rngs=nnx.Rngs(models.init_key(0)),
  )


@pytest.mark.parametrize(
  "kind", ["resnet", "chain", "squeezenet", "vit", "convnext"]
)
def test_recomputing_segments_changes_nothing(make_tiny, make_tiny_vit, kind):
  """Outputs, gradients, and running statistics, which are updated once."""
  make = {"chain": tiny_chain, "squeezenet": tiny_squeezenet}
  make |= {"resnet": make_tiny, "vit": make_tiny_vit, "convnext": tiny_convnext}
  results, recomputed = [], []
  for remat in (False, True):
    graphdef, params, rest = nnx.split(make[kind](), nnx.Param, ...)

    def loss(params, graphdef=graphdef, rest=rest, remat=remat):
      model = nnx.merge(graphdef, params, rest, copy=True)
      model.train(remat=remat)
      x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
      features = model.features(x)
      return jnp.square(features).mean(), nnx.state(model, nnx.BatchStat)

    step = jax.value_and_grad(loss, has_aux=True)
    recomputed.append(str(jax.make_jaxpr(loss)(params)).count("remat"))
    results.append(jax.jit(step)(params))
  assert recomputed[0] == 0
  segments = {"resnet": 1, "chain": 2, "squeezenet": 2, "vit": 1, "convnext": 4}
  assert recomputed[1] >= segments[kind]
  for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
    # The same operations; float32 sums may be taken in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
