"""Times a convolution's gradients as we take them beside XLA's own, in one run.

  taskset -c 0,1 python -m tests.benchmarks.convolution

Of the kernel and of the input, for the layers of ResNet18, ResNet50 and AlexNet
on pictures of 224. Ratios, the median over rounds, are what to read: how many
times as long XLA's takes. `error` is the largest difference from the same in
float64, over the largest entry.
"""

import argparse
import json
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gc_jax.models.convolution import convolve
from gc_jax.runtime import parallel
from tests.benchmarks import measuring

# Side of the input, its channels, those of the output; kernel, stride, padding.
LAYERS = {
  "resnet stem": (224, 3, 64, 7, 2, 3),
  "resnet18 layer1": (56, 64, 64, 3, 1, 1),
  "resnet18 layer2": (28, 128, 128, 3, 1, 1),
  "resnet18 layer3": (14, 256, 256, 3, 1, 1),
  "resnet18 layer4": (7, 512, 512, 3, 1, 1),
  "resnet18 layer2, stride 2": (56, 64, 128, 3, 2, 1),
  "resnet18 layer4, stride 2": (14, 256, 512, 3, 2, 1),
  "resnet50 layer1, 1x1": (56, 64, 256, 1, 1, 0),
  "resnet50 layer4, 1x1": (7, 512, 2048, 1, 1, 0),
  "resnet50 layer2, shortcut": (56, 256, 512, 1, 2, 0),
  "alexnet stem": (224, 3, 64, 11, 4, 2),
  "alexnet 5x5": (27, 64, 192, 5, 1, 2),
}


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=7)
  arguments = parser.parse_args()
  print(
    json.dumps(
      {
        "device": parallel.describe(),
        **vars(arguments),
        "layers": {
          name: measure(*layer, **vars(arguments))
          for name, layer in LAYERS.items()
        },
      },
      indent=2,
    )
  )


def measure(
  side: int,
  in_channels: int,
  out_channels: int,
  extent: int,
  stride: int,
  padding: int,
  *,
  batch_size: int,
  rounds: int,
) -> dict[str, dict[str, float]]:
  """Returns what is to be read of one layer, by what the gradient is of."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  x = draw(batch_size, side, side, in_channels)
  kernel = draw(extent, extent, in_channels, out_channels)
  above = draw(
    *jax.eval_shape(partial(of_xla, stride, padding), x, kernel).shape
  )

  def gradients(convolution, x, kernel, above):
    return jax.vjp(partial(convolution, stride, padding), x, kernel)[1](above)

  with jax.enable_x64(True):
    wide = [np.asarray(a, np.float64) for a in (x, kernel, above)]
    exact = list(map(np.asarray, jax.jit(partial(gradients, of_xla))(*wide)))
  args = tuple(map(jnp.asarray, (x, kernel, above)))

  def one(convolution, index):
    return jax.jit(lambda *args: gradients(convolution, *args)[index])

  results = {}
  for index, name in enumerate(("input", "kernel")):
    programs = {"own": one(convolve, index), "xla": one(of_xla, index)}
    error = {
      key: np.abs(np.asarray(program(*args)) - exact[index]).max()
      / np.abs(exact[index]).max()
      for key, program in programs.items()
    }
    secs = measuring.in_turns(
      {
        key: measuring.repeated(partial(program, *args))
        for key, program in programs.items()
      },
      rounds,
    )
    results[name] = {
      "xla_secs_ratio": measuring.ratio(secs["xla"], secs["own"]),
      "secs": {key: statistics.median(secs[key]) for key in programs},
      "error": {key: float(error[key]) for key in programs},
    }
  return results


def of_xla(
  stride: int,
  padding: int,
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "k k C D"],
) -> Float[Array, "B h w D"]:
  """Returns what `convolve` does, with the gradients that XLA gives it."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


if __name__ == "__main__":
  main()
