"""The consistency loss in a loop of one's own: NNX.

python -m tests.examples.nnx_loop --weight=0    and    --weight=100
"""

import jax.numpy as jnp
import optax
from flax import nnx

import gc_jax
from tests.examples import digits


class Stage(nnx.Module):
  """A convolution, its normalisation and a ReLU; residual where sizes allow."""

  def __init__(self, before, after, strides, rngs):
    self.conv = nnx.Conv(before, after, (3, 3), strides, rngs=rngs)
    self.norm = nnx.BatchNorm(after, momentum=0.9, rngs=rngs)

  def __call__(self, x):
    y = self.norm(self.conv(x))
    return nnx.relu(x + y if x.shape == y.shape else y)


class Net(nnx.Module):
  """Three stages that halve the sides, two that do not, average pooling."""

  def __init__(self, rngs):
    self.stage1 = Stage(3, 32, 2, rngs)
    self.stage2 = Stage(32, 64, 2, rngs)
    self.stage3 = Stage(64, 128, 2, rngs)
    self.stage4 = Stage(128, 128, 1, rngs)
    self.stage5 = Stage(128, 128, 1, rngs)
    self.head = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, images):
    x = self.stage3(self.stage2(self.stage1(images)))
    x = self.stage5(self.stage4(x))
    return self.head(x.mean((1, 2)))


@nnx.jit
def train_step(model, optimizer, images, labels, key, weight):
  """Makes one update."""

  def loss_fn(model):
    net = gc_jax.wrap(model, at="stage5")
    seen = gc_jax.consistency(net, images, labels, key)
    nnx.update(model, seen.state)  # running statistics
    ce = optax.softmax_cross_entropy_with_integer_labels(seen.logits, labels)
    return ce.mean() + weight * seen.loss

  optimizer.update(model, nnx.grad(loss_fn)(model))


def main() -> None:
  """Trains, and prints top-1 and NQH."""
  arguments = digits.arguments()
  model = Net(nnx.Rngs(0))
  rate = optax.cosine_decay_schedule(2e-3, arguments.steps)
  optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
  for step, batch in enumerate(digits.batches(arguments.steps)):
    # Maps start nearly empty: the weight rises from 0.
    ramp = jnp.minimum(2 * step / arguments.steps, 1.0)
    train_step(model, optimizer, *batch, arguments.weight * ramp)
  model.eval()
  digits.show(gc_jax.wrap(model, at="stage5"))


if __name__ == "__main__":
  main()
