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
  norm: eqx.nn.GroupNorm

  def __init__(self, before, after, stride, key):
    self.conv = eqx.nn.Conv2d(before, after, 3, stride, 1, key=key)
    self.norm = eqx.nn.GroupNorm(8, after)

  def __call__(self, x):
    y = self.norm(self.conv(x))
    return jax.nn.relu(x + y if x.shape == y.shape else y)


class Net(eqx.Module):
  """Stages that halve the sides or do not; average pooling; one image."""

  stages: list
  head: eqx.nn.Linear

  def __init__(self, key):
    sizes = (3, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1), (128, 128, 1)
    *keys, last = jax.random.split(key, 6)
    self.stages = [Stage(*size, k) for size, k in zip(sizes, keys, strict=True)]
    self.head = eqx.nn.Linear(128, 10, key=last)

  def __call__(self, image):
    x = image
    for stage in self.stages:
      x = stage(x)
    return self.head(x.mean((1, 2)))


def main() -> None:
  """Trains, and prints top-1 and NQH."""
  arguments = digits.arguments()
  model = Net(jax.random.key(0))
  tx = optax.adam(optax.cosine_decay_schedule(2e-3, arguments.steps))
  opt_state = tx.init(eqx.filter(model, eqx.is_array))
  last = lambda m: m.stages[-1]

  @eqx.filter_jit
  def train_step(model, opt_state, images, labels, key, weight):
    def loss_fn(model):
      net = gc_jax.wrap(model, at=last)
      seen = gc_jax.consistency(net, images, labels, key)
      ce = optax.softmax_cross_entropy_with_integer_labels(seen.logits, labels)
      return ce.mean() + weight * seen.loss

    grads = eqx.filter_grad(loss_fn)(model)
    updates, opt_state = tx.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state

  for step, batch in enumerate(digits.batches(arguments.steps, True)):
    # Maps start nearly empty: the weight rises from 0.
    ramp = jax.numpy.minimum(2 * step / arguments.steps, 1.0)
    model, opt_state = train_step(
      model, opt_state, *batch, arguments.weight * ramp
    )
  digits.show(gc_jax.wrap(model, at=last), channels_first=True)


if __name__ == "__main__":
  main()
