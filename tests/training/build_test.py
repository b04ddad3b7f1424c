"""The optimizer against PyTorch's rule, its schedules, the first state."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import base
from gc_jax.data import Classes
from gc_jax.inference.trained import Initial
from gc_jax.models import init_key, network
from gc_jax.runtime import parallel
from gc_jax.training import build, checks
from tests.training.small import assert_close, changed

STEPS_PER_EPOCH = 10
PEAK = 0.1  # of the base config, at 256 images


def config_with(**fields):
  """The base config at 256 images."""
  return changed(base.get_config(), **({"batch_size": 256} | fields))


def lr_at(config, *steps):
  schedule = build.learning_rate(config, STEPS_PER_EPOCH)
  return [float(schedule(step)) for step in steps]


def run(config, gradients, params):
  """The parameters after each update."""
  tx = build.optimizer(config, STEPS_PER_EPOCH)
  state = tx.init(params)
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    yield params


@pytest.mark.parametrize("momentum, decay", [(0.9, 1e-2), (0.0, 0.1), (0.9, 0)])
def test_updates_are_those_of_torch_sgd(momentum, decay):
  """`d = g + decay p; buffer = momentum buffer + d; p -= lr buffer`.

  Through a fall of the learning rate, which PyTorch keeps out of the buffer.
  """
  config = config_with(
    optim__momentum=momentum,
    optim__weight_decay=decay,
    optim__step_epochs=(0.2,),
  )
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(5, 7)).astype(np.float32)
  params = rng.normal(size=7).astype(np.float32)
  ours = run(config, map(jnp.asarray, gradients), jnp.asarray(params))
  buffer = np.zeros(7)
  for step, (gradient, actual) in enumerate(zip(gradients, ours, strict=True)):
    buffer = momentum * buffer + gradient + decay * params
    params = params - (PEAK if step < 2 else PEAK / 10) * buffer
    np.testing.assert_allclose(actual, params, rtol=1e-5, atol=1e-6)  # float32


def test_the_decay_falls_on_every_parameter():
  """Scales and biases too, as in the release."""
  params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "b": jnp.ones(())}
  zero = jax.tree.map(jnp.zeros_like, params)
  (after,) = run(config_with(optim__weight_decay=0.5), [zero], params)
  for value in after.values():
    np.testing.assert_allclose(value, 1 - PEAK * 0.5, rtol=1e-6)


def test_gradients_are_clipped_only_when_asked():
  gradient, params = jnp.array([3e4, 4e4]), jnp.zeros(2)
  (after,) = run(config_with(optim__weight_decay=0.0), [gradient], params)
  np.testing.assert_allclose(after, -PEAK * gradient, rtol=1e-6)
  clipped = config_with(optim__weight_decay=0.0, optim__clip_norm=2.0)
  (after,) = run(clipped, [gradient], params)
  np.testing.assert_allclose(after, [-PEAK * 1.2, -PEAK * 1.6], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 2.0])
@pytest.mark.parametrize("batch_size", [64, 256, 1024])
def test_steps_fall_at_epochs_from_a_rate_that_grows_with_the_batch(
  batch_size, warmup
):
  """With a warm-up, too: 3 epochs are 3 epochs."""
  config = config_with(
    batch_size=batch_size,
    optim__step_epochs=(3, 6),
    optim__warmup_epochs=warmup,
  )
  found = np.array(lr_at(config, 20, 29, 30, 59, 60, 999)) * 256 / batch_size
  np.testing.assert_allclose(found / PEAK, [1, 1, 0.1, 0.1, 0.01, 0.01], 1e-6)


@pytest.mark.parametrize("schedule", checks.CHOICES["optim.schedule"])
def test_the_warm_up_is_linear_and_its_first_update_moves(schedule):
  config = config_with(optim__warmup_epochs=0.5, optim__schedule=schedule)
  expected = [PEAK / 5, PEAK * 2 / 5, PEAK * 3 / 5, PEAK * 4 / 5, PEAK, PEAK]
  assert lr_at(config, *range(6)) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_cosine_ends_near_zero(warmup):
  config = config_with(
    num_epochs=5.0, optim__schedule="cosine", optim__warmup_epochs=warmup
  )
  start = round(warmup * STEPS_PER_EPOCH)
  middle = (start + 50) // 2
  assert lr_at(config, start, middle) == pytest.approx([PEAK, PEAK / 2])
  last, after = lr_at(config, 49, 50)
  assert 0 < last < 0.002 * PEAK
  assert after == pytest.approx(0, abs=1e-9)


# The state that training starts from.


class Net(nnx.Module):
  """A convolution, a norm and a head: 54 + 4 + 9 parameters."""

  last_layer = ("fc",)

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
  return parallel.replicated(parallel.make_mesh())


@pytest.fixture(scope="module")
def created(sharding):
  return build.create_state(
    make_net, optax.sgd(0.1, momentum=0.9), sharding, init_key(3)
  )


def test_the_state_is_that_of_step_zero_everywhere_statistics_apart(
  created, sharding
):
  _, state = created
  assert state.step == 0 and state.step.dtype == jnp.int32
  momentum = jax.tree.leaves(state.opt_state)
  assert sum(leaf.size for leaf in momentum) == 54 + 4 + 9
  assert not any(np.asarray(leaf).any() for leaf in momentum)
  for leaf in jax.tree.leaves(state):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert len(leaf.devices()) == 4
  assert set(state.params) == {"conv", "norm", "fc"}
  assert build.num_params(state) == 54 + 4 + 9
  statistics = state.batch_stats["norm"]
  assert set(statistics) == {"mean", "var", "num_batches_tracked"}
  for leaf in (*jax.tree.leaves(state.params), statistics["mean"][...]):
    assert leaf.dtype == jnp.float32


def test_the_model_is_a_function_of_the_key(created, sharding):
  graphdef, state = created
  merged = nnx.merge(graphdef, state.params, state.batch_stats)
  fresh = make_net(init_key(3))
  # The same draws, scaled in another order of float32 operations.
  assert_close(nnx.state(merged), nnx.state(fresh), rtol=1e-6)
  _, other = build.create_state(make_net, optax.sgd(0.1), sharding, init_key(4))
  kernel = lambda state: np.asarray(state.params["conv"]["kernel"][...])
  assert (kernel(other) != kernel(state)).all()


@pytest.mark.parametrize(
  ("names", "num_outputs", "init_head", "why"),
  [
    ("abc", 3, True, ""),
    ("", 3, True, ""),  # it does not say
    ("xyz", 3, True, "of other classes"),
    ("abcd", 4, True, "of other classes"),
    ("", 4, True, "of another size"),
    ("abc", 3, False, "as --config.init_head=False says"),
  ],
)
def test_a_run_starts_from_given_weights_but_other_outputs_start_anew(
  created, sharding, caplog, names, num_outputs, init_head, why
):
  config = config_with(init_from="runs/other", init_head=init_head)
  given = make_net(init_key(4))
  given.norm.mean[...] = jnp.array([2.0, 3.0])
  given.fc = network.linear(2, num_outputs, rngs=nnx.Rngs(init_key(5)))
  _, state = created
  with caplog.at_level(logging.INFO, "gc_jax"):
    started = build.started_from(
      Initial(given, tuple(names)), state, config, ("a", "b", "c")
    )
  (line,) = caplog.messages
  anew = f"; {why}, so initialised anew: fc.bias, fc.kernel" if why else ""
  assert line.split("\n")[0] == f"Starting from runs/other{anew}"
  # Of classes that have nothing in common, no list.
  assert ("there, " in line) == (names == "abcd")
  theirs = dict(nnx.to_flat_state(nnx.state(given)))
  fresh = dict(nnx.to_flat_state(state.params))
  for path, leaf in nnx.to_flat_state(started.params):
    source = fresh if why and path[0] == "fc" else theirs
    np.testing.assert_array_equal(leaf[...], source[path][...])
    assert leaf[...].sharding.is_equivalent_to(sharding, leaf[...].ndim)
    assert leaf[...] is not theirs[path][...]  # a step may give ours away
  np.testing.assert_array_equal(
    started.batch_stats["norm"]["mean"][...], [2, 3]
  )


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_model_knows_whether_pictures_show_several_classes(multi_label):
  """Methods and measures that take probabilities ask it."""
  config = config_with(**{"model.name": "resnet8-small"})
  make = build.model_maker(config, Classes(5, multi_label), "cpu")
  model = nnx.eval_shape(make, init_key(0))
  assert model.multi_label is multi_label
