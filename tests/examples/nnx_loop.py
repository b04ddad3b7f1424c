"""The consistency loss in a loop of one's own: NNX.

python -m tests.examples.nnx_loop --weight=0    and    --weight=50
"""

import functools

import jax.numpy as jnp
import optax
from flax import nnx

import gc_jax
from tests.examples import digits


class Net(nnx.Module):
  """Three convolutions, each with a normalisation; average pooling."""

  def __init__(self, rngs: nnx.Rngs):
    conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
    self.conv1 = conv(3, 32, strides=2)
    self.norm1 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
    self.conv2 = conv(32, 64, strides=2)
    self.norm2 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
    self.conv3 = conv(64, 128, strides=2)
    self.norm3 = nnx.BatchNorm(128, momentum=0.9, rngs=rngs)
    self.relu3 = nnx.Sequential(nnx.relu)
    self.head = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu(self.norm1(self.conv1(images)))
    x = nnx.relu(self.norm2(self.conv2(x)))
    x = self.relu3(self.norm3(self.conv3(x)))
    return self.head(x.mean((1, 2)))


@nnx.jit
def train_step(model, optimizer, images, labels, key, weight):
  """Makes one update."""

  def loss_fn(model):
    net = gc_jax.wrap(model, at="relu3")
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
    ramp = jnp.minimum(
      2 * step / arguments.steps, 1.0
    )  # maps start nearly empty
    train_step(model, optimizer, *batch, arguments.weight * ramp)
  model.eval()
  digits.show(gc_jax.wrap(model, at="relu3"))


if __name__ == "__main__":
  main()
