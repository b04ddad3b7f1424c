"""The consistency loss in a loop of one's own: Linen.

python -m tests.examples.linen_loop --weight=0    and    --weight=100
"""

import flax.linen as nn
import jax
import optax

import gc_jax
from tests.examples import digits


class Stage(nn.Module):
  """A convolution, its normalisation and a ReLU; residual where sizes allow."""

  channels: int
  strides: int

  @nn.compact
  def __call__(self, x, train):
    y = nn.Conv(self.channels, (3, 3), self.strides)(x)
    y = nn.BatchNorm(not train, momentum=0.9)(y)
    return nn.relu(x + y if x.shape == y.shape else y)


class Net(nn.Module):
  """Three stages that halve the sides, two that do not, average pooling."""

  @nn.compact
  def __call__(self, images, train):
    x = images
    sizes = (32, 2), (64, 2), (128, 2), (128, 1), (128, 1)
    for i, (channels, strides) in enumerate(sizes):
      x = Stage(channels, strides, name=f"stage{i + 1}")(x, train)
    return nn.Dense(10)(x.mean((1, 2)))


def main() -> None:
  """Trains, and prints top-1 and NQH."""
  arguments = digits.arguments()
  model = Net()
  batches = digits.batches(arguments.steps)
  variables = model.init(jax.random.key(0), digits.load("test")[0][:1], False)
  tx = optax.adam(optax.cosine_decay_schedule(2e-3, arguments.steps))
  opt_state = tx.init(variables["params"])

  @jax.jit
  def train_step(variables, opt_state, images, labels, key, weight):
    def loss_fn(params):
      tried = {**variables, "params": params}
      net = gc_jax.wrap((model, tried), at="stage5", train=True)
      seen = gc_jax.consistency(net, images, labels, key)
      ce = optax.softmax_cross_entropy_with_integer_labels(seen.logits, labels)
      return ce.mean() + weight * seen.loss, seen.state

    grads, after = jax.grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(grads, opt_state)
    params = optax.apply_updates(variables["params"], updates)
    return {**after, "params": params}, opt_state

  for step, batch in enumerate(batches):
    # Maps start nearly empty: the weight rises from 0.
    ramp = min(2 * step / arguments.steps, 1.0)
    variables, opt_state = train_step(
      variables, opt_state, *batch, arguments.weight * ramp
    )
  digits.show(gc_jax.wrap((model, variables), at="stage5", train=False))


if __name__ == "__main__":
  main()
