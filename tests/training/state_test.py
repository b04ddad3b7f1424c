"""What training starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gc_jax.models import init_key, network
from gc_jax.training import state as states


class Net(nnx.Module):
  """A convolution, a norm and a head: 54 + 4 + 9 parameters."""

  def __init__(self, rngs):
    self.conv = network.conv(
      3, 2, 3, use_bias=False, dtype=jnp.float32, rngs=rngs
    )
    self.norm = network.BatchNorm(2, dtype=jnp.float32, rngs=rngs)
    self.fc = network.linear(2, 3, rngs=rngs)


def make_net(key):
  return Net(nnx.Rngs(key))


@pytest.fixture(scope="module")
def sharding():
  mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
  return NamedSharding(mesh, PartitionSpec())


@pytest.fixture(scope="module")
def created(sharding):
  return states.create(
    make_net, optax.sgd(0.1, momentum=0.9), sharding, init_key(3)
  )


def test_the_state_is_that_of_step_zero(created):
  _, state = created
  assert state.step == 0 and state.step.dtype == jnp.int32
  momentum = jax.tree.leaves(state.opt_state)
  assert sum(leaf.size for leaf in momentum) == 54 + 4 + 9
  assert not any(np.asarray(leaf).any() for leaf in momentum)


def test_parameters_and_statistics_are_apart(created):
  _, state = created
  assert set(state.params) == {"conv", "norm", "fc"}
  assert set(state.batch_stats) == {"norm"}
  statistics = state.batch_stats["norm"]
  assert set(statistics) == {"mean", "var", "num_batches_tracked"}
  assert states.num_params(state) == 54 + 4 + 9
  assert statistics["num_batches_tracked"][...].dtype == jnp.int32
  for leaf in (*jax.tree.leaves(state.params), statistics["mean"][...]):
    assert leaf.dtype == jnp.float32


def test_every_leaf_lies_where_it_was_asked_to(created, sharding):
  for leaf in jax.tree.leaves(created[1]):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert len(leaf.devices()) == 4


def test_the_model_is_a_function_of_the_key(created, sharding):
  graphdef, state = created
  merged = nnx.merge(graphdef, state.params, state.batch_stats)
  fresh = make_net(init_key(3))
  for ours, theirs in zip(
    jax.tree.leaves(nnx.state(merged)),
    jax.tree.leaves(nnx.state(fresh)),
    strict=True,
  ):
    # The same draws, scaled in another order of float32 operations.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  _, other = states.create(make_net, optax.sgd(0.1), sharding, init_key(4))
  kernel = lambda state: np.asarray(state.params["conv"]["kernel"][...])
  assert (kernel(other) != kernel(state)).all()


def test_a_state_starts_from_a_models_variables_but_for_another_head(sharding):
  tx = optax.sgd(0.1, momentum=0.9)
  _, state = states.create(make_net, tx, sharding, init_key(3))
  other = make_net(init_key(4))
  other.norm.mean[...] = jnp.array([2.0, 3.0])
  started, anew = states.started_from(state, other)
  assert anew == [] and started.step == 0
  given = jax.tree.leaves(nnx.state(other, nnx.Param))
  for ours, theirs in zip(jax.tree.leaves(started.params), given, strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.sharding.is_equivalent_to(sharding, ours.ndim)
    assert ours is not theirs  # a step may give ours away
  np.testing.assert_array_equal(
    started.batch_stats["norm"]["mean"][...], [2, 3]
  )

  other.fc = network.linear(2, 5, rngs=nnx.Rngs(init_key(5)))
  started, anew = states.started_from(state, other)
  assert anew == ["fc.bias", "fc.kernel"]
  for name in ("bias", "kernel"):
    np.testing.assert_array_equal(
      started.params["fc"][name][...], state.params["fc"][name][...]
    )
  np.testing.assert_array_equal(
    started.params["conv"]["kernel"][...], other.conv.kernel[...]
  )
