"""AlexNet, VGG16 and SqueezeNet: torchvision's sizes; dropout by key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.models import chain, network

# torchvision's own numbers, at 1,000 classes.
NUM_PARAMS = {
  "alexnet": 61_100_840,
  "vgg16": 138_357_544,
  "squeezenet1_1": 1_235_496,
}
# The smallest side that leaves a cell, and the grid of 224 and 448 pixels.
GRIDS = {
  "alexnet": (63, 6, 13),
  "vgg16": (32, 7, 14),
  "squeezenet1_1": (17, 13, 27),
}


def abstract(name):
  return nnx.eval_shape(
    lambda key: models.create(name, 1_000, key=key), models.init_key(0)
  )


def grid(model, size):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  graphdef, state = nnx.split(model)
  features = lambda state, x: nnx.merge(graphdef, state).features(x)
  return jax.eval_shape(features, state, image).shape[1:3]


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_sizes_are_torchvisions(name):
  model = abstract(name)
  leaves = jax.tree.leaves(nnx.state(model))
  assert sum(leaf.size for leaf in leaves) == NUM_PARAMS[name]
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)  # no random state
  smallest, of_224, of_448 = GRIDS[name]
  assert grid(model, 224) == (of_224, of_224)
  assert grid(model, 448) == (of_448, of_448)
  assert min(grid(model, smallest)) == 1
  with pytest.raises(Exception):  # noqa: B017 (jax's own, of a negative size)
    assert min(grid(model, smallest - 1))


def test_alexnet_and_vgg_have_no_global_pooling():
  assert not {"alexnet-gmp", "vgg16-gmp"} & set(models.MODELS)
  assert "squeezenet1_1-gmp" in models.MODELS


@pytest.fixture(scope="module")
def tiny():
  """A chain of AlexNet's kind, of two convolutions."""
  return functools.partial(
    chain.Chain,
    ((8, 3, 2, 1), chain.POOL, (6, 3, 1, 1)),
    5,
    pool_window=3,
    grid=2,
    hidden=64,
    conv_init=network.TORCH_INIT,
    linear_init=network.TORCH_INIT,
    rngs=nnx.Rngs(models.init_key(0)),
  )


@pytest.mark.parametrize("drops_features", [True, False])
def test_dropout_falls_where_it_does_in_pytorch(
  tiny, monkeypatch, drops_features
):
  """Before the first two dense layers, or behind them."""
  model = tiny(drops_features=drops_features)
  features = jax.random.uniform(jax.random.key(0), (3, 4, 4, 6))
  assert list(model.head) == (
    ["1", "4", "6"] if drops_features else ["0", "3", "6"]
  )
  seen = []
  monkeypatch.setattr(
    network,
    "dropout",
    lambda x, rate, key: (seen.append((x, rate, key)), x)[1],
  )
  model.classify(features, jax.random.key(1))
  widths = [x.shape[1] for x, _, _ in seen]
  assert widths == ([2 * 2 * 6, 64] if drops_features else [64, 64])
  assert [rate for _, rate, _ in seen] == [0.5, 0.5]
  assert len({str(jax.random.key_data(key)) for _, _, key in seen}) == 2


def test_without_a_key_nothing_is_dropped_and_with_one_it_is_a_function_of_it(
  tiny,
):
  model = tiny(drops_features=True)
  features = jax.random.uniform(jax.random.key(0), (3, 4, 4, 6))
  run = lambda key: np.asarray(model.classify(features, key))
  np.testing.assert_array_equal(run(None), run(None))
  np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
  assert np.abs(run(jax.random.key(1)) - run(jax.random.key(2))).max() > 1e-3
  assert np.abs(run(jax.random.key(1)) - run(None)).max() > 1e-3


def test_dropping_keeps_the_mean():
  x = jnp.ones(100_000)
  dropped = np.asarray(network.dropout(x, 0.2, jax.random.key(0)))
  assert set(np.unique(dropped)) == {0.0, np.float32(1.25)}
  # Four standard errors of a share of 0.2.
  assert abs((dropped == 0).mean() - 0.2) < 4 * np.sqrt(0.16 / x.size)
  assert network.dropout(x, 0.2, None) is x
