"""The consistency loss in a loop of one's own: Equinox.

python -m tests.examples.equinox_loop --weight=0    and    --weight=100
"""

import equinox as eqx
import jax
import optax

import gc_jax
from tests.examples import digits


class Stage(eqx.Module):
  """A convolution, its normalisation and a ReLU; residual where sizes allow."""

  conv: eqx.nn.Conv2d
  norm: eqx.nn.BatchNorm

  def __init__(self, before, after, stride, key):
    self.conv = eqx.nn.Conv2d(before, after, 3, stride, 1, key=key)
    self.norm = eqx.nn.BatchNorm(after, "images", momentum=0.9, mode="batch")

  def __call__(self, x, state):
    y, state = self.norm(self.conv(x), state)
    return jax.nn.relu(x + y if x.shape == y.shape else y), state


class Net(eqx.Module):
  """Stages that halve the sides or do not; average pooling; one image."""

  stages: list
  head: eqx.nn.Linear

  def __init__(self, key):
    sizes = (3, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1), (128, 128, 1)
    *keys, last = jax.random.split(key, 6)
    self.stages = [Stage(*size, k) for size, k in zip(sizes, keys, strict=True)]
    self.head = eqx.nn.Linear(128, 10, key=last)

  def __call__(self, x, state):
    for stage in self.stages:
      x, state = stage(x, state)
    return self.head(x.mean((1, 2))), state


def main() -> None:
  """Trains, and prints top-1 and NQH."""
  arguments = digits.arguments()
  model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
  tx = optax.adam(optax.cosine_decay_schedule(2e-3, arguments.steps))
  opt_state = tx.init(eqx.filter(model, eqx.is_array))
  last = lambda m: m.stages[-1]

  @eqx.filter_jit
  def train_step(model, state, opt_state, images, labels, key, weight):
    def loss_fn(model):
      net = gc_jax.wrap((model, state), at=last)
      seen = gc_jax.consistency(net, images, labels, key)
      ce = optax.softmax_cross_entropy_with_integer_labels(seen.logits, labels)
      return ce.mean() + weight * seen.loss, seen.state

    grads, after = eqx.filter_grad(loss_fn, has_aux=True)(model)
    updates, opt_state = tx.update(grads, opt_state)
    return eqx.apply_updates(model, updates), after, opt_state

  for step, batch in enumerate(digits.batches(arguments.steps, True)):
    # Maps start nearly empty: the weight rises from 0.
    ramp = jax.numpy.minimum(2 * step / arguments.steps, 1.0)
    model, state, opt_state = train_step(
      model, state, opt_state, *batch, arguments.weight * ramp
    )
  model = eqx.nn.inference_mode(model)
  digits.show(gc_jax.wrap((model, state), at=last), channels_first=True)


if __name__ == "__main__":
  main()
