"""Every method on one network written in seven ways, and on a ViT.

  python -m tests.benchmarks.conformance

Prints a Markdown table: the largest difference of a map from that of our own
network with the same weights, as a share of the map's maximum; or the number of
the sentence below that says why a method does not hold. Our own network is the
quickstart's ResNet8; for maps of pixels, whose gradients are of RGB there and
of what the model takes elsewhere, its two parts wrapped as they are. The ViT
of the last row is held against our own ViT. The last column is the error of the
consistency loss's gradient against a finite difference in float64.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import jax.numpy as jnp

import gc_jax
from gc_jax.attribution import METHODS, unfit
from gc_jax.models.pixels import normalize_pixels
from tests.attribution import guided_test, wrapping_test

ROWS = {
  "nnx": "NNX",
  "linen": "Linen",
  "equinox": "Equinox",
  "keras": "Keras 3",
  "function": "function",
  "pair": "pair of functions",
  "vit": "ViT in Linen",
}
OF_GRADIENTS = {
  "keras": "Keras normalises in float32 whatever the dtype: the finite "
  "difference is of numbers so rounded.",
}
# Fewer passes: a difference would show in any of them.
SETTINGS = {"rise": {"num_masks": 32}, "integrated_gradients": {"steps": 8}}


def main() -> None:
  """Prints the table."""
  titles = [method.title for method in METHODS.values()]
  print(f"| | {' | '.join(titles)} | gradient of GC |")
  print(f"|---|{'--:|' * (len(titles) + 1)}")
  why: list[str] = []
  for library, title in ROWS.items():
    cells = [*_maps(library, why), _gradient(library)]
    if library in OF_GRADIENTS:
      why.append(OF_GRADIENTS[library])
      cells[-1] += f" ({len(why)}.)"
    print(f"| {title} | {' | '.join(cells)} |", flush=True)
  print()
  for number, sentence in enumerate(why, 1):
    print(f"{number}. {sentence}")


def _maps(library: str, why: list[str]) -> list[str]:
  """Returns a cell for each method, and adds reasons that are new to `why`."""
  net, images = wrapping_test.made(library)
  is_vit = library == "vit"
  expected = dict(wrapping_test.reference(is_vit))
  own = wrapping_test.own_vit() if is_vit else wrapping_test.ours()
  parts = gc_jax.wrap((own.features, own.classify))
  left_out = unfit(METHODS, net, images)
  cells = []
  for name in METHODS:
    if name in left_out:
      if left_out[name] not in why:
        why.append(left_out[name])
      cells.append(f"{why.index(left_out[name]) + 1}.")
      continue
    if library == "pair" and name not in expected:
      cells.append("")  # held against itself
      continue
    settings = tuple(SETTINGS.get(name, {}).items())
    run = lambda net, x, name=name, settings=settings: wrapping_test.maps_of(
      net, x, wrapping_test.TARGETS, (name,), settings
    )[name]
    if name not in expected:
      pixels = normalize_pixels(wrapping_test.pixels())
      expected[name] = run(parts, pixels)
    difference = jnp.abs(run(net, images) - expected[name]).max()
    cells.append(f"{float(difference / expected[name].max()):.0e}")
  return cells


def _gradient(library: str) -> str:
  if library == "pair":  # its functions hold the weights
    return ""
  found, expected = guided_test.derivatives(library)
  return f"{abs(float(found / expected) - 1):.0e}"


if __name__ == "__main__":
  main()
