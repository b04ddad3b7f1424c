"""The optimizer and its schedules, derived from the config when they are used.

Deriving late means that an override of, say, the batch size reaches the
learning rate too.
"""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

SCHEDULES = ("step", "cosine")


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """Returns the learning rate after a number of completed updates.

  A linear warm-up from 0, then "step" (multiplied by `step_factor` at each of
  `step_epochs`) or "cosine" (to 0 at the last step).

  Args:
    config: the whole config.
    steps_per_epoch: updates in an epoch.
  """
  c = config.optim
  peak = c.lr_per_256 * config.batch_size / 256
  warmup_steps = round(c.warmup_epochs * steps_per_epoch)
  if c.schedule == "cosine":
    total_steps = round(config.num_epochs * steps_per_epoch)
    main = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup_steps))
  else:
    # Counted from the end of the warm-up, as `join_schedules` counts.
    boundaries = {
      round(epoch * steps_per_epoch) - warmup_steps: c.step_factor
      for epoch in c.step_epochs
    }
    main = optax.piecewise_constant_schedule(peak, boundaries)
  if not warmup_steps:
    return main
  # The first update already moves: from peak / n, not from 0.
  warmup = optax.linear_schedule(
    peak / warmup_steps, peak * (1 + 1 / warmup_steps), warmup_steps
  )
  return optax.join_schedules([warmup, main], [warmup_steps])


def ramped(
  weight: float, ramp_epochs: float, steps_per_epoch: int
) -> optax.Schedule:
  """Returns a term's weight after a number of completed updates.

  It rises linearly from 0. Dividing a map by the sum of a nearly empty one
  makes the gradient explode; early maps under global max pooling are such.

  Args:
    weight: once it has risen.
    ramp_epochs: how long it rises; 0 = not at all.
    steps_per_epoch: updates in an epoch.
  """
  ramp_steps = round(ramp_epochs * steps_per_epoch)
  if not ramp_steps:
    return lambda step: jnp.asarray(weight, jnp.float32)
  return optax.linear_schedule(0.0, weight, ramp_steps)


def optimizer(
  config: ConfigDict, steps_per_epoch: int
) -> optax.GradientTransformation:
  """Returns SGD with momentum and weight decay, as torch.optim.SGD has them.

  The decay joins the gradient before the momentum, and falls on every
  parameter, biases and BatchNorm's included (the release). The gradient is
  clipped by its global norm first, where `config.optim.clip_norm` > 0.

  Args:
    config: the whole config.
    steps_per_epoch: updates in an epoch.
  """
  c = config.optim
  return optax.chain(
    optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
    optax.add_decayed_weights(c.weight_decay),
    optax.sgd(learning_rate(config, steps_per_epoch), c.momentum),
  )
