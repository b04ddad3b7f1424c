"""Every method on the same network written in five ways, against ours.

  python -m tests.benchmarks.conformance

Prints a Markdown table: the largest difference of a map from that of our own
ResNet8 with the same weights, as a share of the map's maximum; or the sentence
why a method does not hold. The last column is the error of the consistency
loss's gradient against a finite difference in float64.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import gc_jax
from gc_jax.attribution import METHODS
from tests.attribution import guided_test, wrapping_test

ROWS = {
  "nnx": "NNX",
  "linen": "Linen",
  "equinox": "Equinox",
  "function": "function",
  "pair": "pair of functions",
}


class Attention(nn.Module):
  """A small ViT: patches, one block of attention, GELU."""

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(32, (4, 4), 4, name="embed")(images)
    x = x.reshape(len(x), -1, 32)
    x = x + nn.SelfAttention(4, name="attention")(nn.LayerNorm()(x))
    x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
    x = nn.LayerNorm(name="norm")(x)
    return nn.Dense(5)(x.mean(1))


def main() -> None:
  """Prints the table."""
  methods = tuple(wrapping_test.OF_LAYERS)
  titles = [METHODS[name].title for name in methods]
  print(f"| | {' | '.join(titles)} | gradient of GC |")
  print(f"|---|{'--:|' * (len(titles) + 1)}")
  for library, title in ROWS.items():
    net, images = wrapping_test.made(library)
    found = wrapping_test.maps_of(net, images, wrapping_test.TARGETS, methods)
    cells = []
    for name, expected in wrapping_test.reference().items():
      difference = jnp.abs(found[name] - expected).max() / expected.max()
      cells.append(f"{float(difference):.0e}")
    if library == "pair":
      cells.append("")
    else:
      found, expected = guided_test.derivatives(library)
      cells.append(f"{abs(float(found / expected) - 1):.0e}")
    print(f"| {title} | {' | '.join(cells)} |", flush=True)
  print(f"| ViT in Linen | {' | '.join(_of_attention(methods))} |")


def _of_attention(methods) -> list[str]:
  """Returns the cells of a ViT: Grad-CAM against its closed form."""
  model, images = Attention(), wrapping_test.pixels()
  variables = model.init(jax.random.key(0), images)
  net = gc_jax.wrap((model, variables), at="norm", grid=(8, 8))
  kernel = variables["params"]["Dense_2"]["kernel"]
  _, activations, _ = net(images)
  weights = kernel.T[wrapping_test.TARGETS] / 64  # average of 64 tokens
  product = jnp.einsum("bhwd,bpd->bphw", activations, weights)
  expected = {
    "gradcam": nnx.relu(product),
    "gradcam_elementwise": nnx.relu(product),
  }
  cells = []
  for name in methods:
    try:
      found = METHODS[name](net, images, wrapping_test.TARGETS)
    except ValueError as error:
      what = str(error).split("This model has ")[1].split(".")[0]
      cells.append(f"no rule for {what}")
      continue
    if name in expected:
      difference = jnp.abs(found - expected[name]).max()
      cells.append(f"{float(difference / expected[name].max()):.0e}")
    else:
      cells.append("")  # compared with nothing
  return [*cells, ""]


if __name__ == "__main__":
  main()
