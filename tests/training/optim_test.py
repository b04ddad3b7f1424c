"""The optimizer against PyTorch's rule, its schedules at given steps."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from gc_jax.training import optim

STEPS_PER_EPOCH = 10
PEAK = 0.1  # of the base config, at 256 images


def config_with(**fields):
  """The base config at 256 images; `optim__momentum` is optim.momentum."""
  config = base.get_config()
  config.batch_size = 256
  for field, value in fields.items():
    part, _, name = field.rpartition("__")
    (config[part] if part else config)[name] = value
  return config


def lr_at(config, *steps):
  schedule = optim.learning_rate(config, STEPS_PER_EPOCH)
  return [float(schedule(step)) for step in steps]


def run(config, gradients, params):
  """The parameters after each update."""
  tx = optim.optimizer(config, STEPS_PER_EPOCH)
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
  zero = {name: jnp.zeros_like(value) for name, value in params.items()}
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


def test_the_learning_rate_grows_with_the_batch():
  for batch_size, peak in ((256, 0.1), (64, 0.025), (1024, 0.4)):
    config = config_with(batch_size=batch_size)
    assert lr_at(config, 0) == pytest.approx([peak])


@pytest.mark.parametrize("warmup", [0.0, 2.0])
def test_steps_fall_at_epochs_counted_from_the_start(warmup):
  """With a warm-up, too: 3 epochs are 3 epochs."""
  config = config_with(optim__step_epochs=(3, 6), optim__warmup_epochs=warmup)
  assert lr_at(config, 20, 29, 30, 59, 60, 999) == pytest.approx(
    [PEAK, PEAK, PEAK / 10, PEAK / 10, PEAK / 100, PEAK / 100]
  )


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
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


def test_a_weight_rises_linearly_over_its_epochs():
  weight = optim.ramped(25.0, 2.0, STEPS_PER_EPOCH)
  assert [float(weight(s)) for s in (0, 5, 10, 20, 99)] == pytest.approx(
    [0, 6.25, 12.5, 25, 25]
  )


@pytest.mark.parametrize("ramp_epochs", [0.0, 0.04])
def test_a_weight_without_a_ramp_of_a_step_is_constant(ramp_epochs):
  weight = optim.ramped(25.0, ramp_epochs, STEPS_PER_EPOCH)
  assert [float(weight(s)) for s in (0, 99)] == [25, 25]
