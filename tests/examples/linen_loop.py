"""The consistency loss in a loop of one's own: Linen.

python -m tests.examples.linen_loop --weight=0    and    --weight=50
"""

import flax.linen as nn
import jax
import optax

import gc_jax
from tests.examples import digits


class Stage(nn.Module):
  """A convolution that halves the sides, its normalisation and a ReLU."""

  channels: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(self.channels, (3, 3), 2)(x)
    return nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))


class Net(nn.Module):
  """Three stages and average pooling."""

  @nn.compact
  def __call__(self, images, train):
    x = images
    for i, channels in enumerate((32, 64, 128)):
      x = Stage(channels, name=f"stage{i + 1}")(x, train)
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
      net = gc_jax.wrap((model, tried), at="stage3", train=True)
      seen = gc_jax.consistency(net, images, labels, key)
      ce = optax.softmax_cross_entropy_with_integer_labels(seen.logits, labels)
      return ce.mean() + weight * seen.loss, seen.state

    grads, after = jax.grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(grads, opt_state)
    params = optax.apply_updates(variables["params"], updates)
    return {**after, "params": params}, opt_state

  for step, batch in enumerate(batches):
    ramp = min(2 * step / arguments.steps, 1.0)  # maps start nearly empty
    variables, opt_state = train_step(
      variables, opt_state, *batch, arguments.weight * ramp
    )
  digits.show(gc_jax.wrap((model, variables), at="stage3", train=False))


if __name__ == "__main__":
  main()
