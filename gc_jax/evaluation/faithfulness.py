"""Does the model itself use what the map points at? See `method.curves`."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gc_jax.evaluation.ledger import Measured, Totals, counted
from gc_jax.evaluation.localisation import Sums
from gc_jax.inference.arrays import logits_of, program
from gc_jax.method import curves
from gc_jax.method.metrics import Key
from gc_jax.method.types import PairBatch
from gc_jax.models.pixels import in_unit_range, mean_colour


@program(3)
def faithful(
  model: nnx.Module,
  batch: PairBatch,
  cams: dict[str, Float[Array, "B _ _"]],
  sums: Sums,
  num_steps: int,
) -> Measured:
  """Returns insertion, deletion and completeness of each method; its maps."""
  images = in_unit_range(batch["image"])
  probability = nnx.sigmoid if "labels" in batch else nnx.softmax
  # All methods in one loop: maps of the picture's size, as so many targets.
  cams_px = [curves.enlarged(cam, *images.shape[1:3]) for cam in cams.values()]
  fractions, both = curves.curves(
    lambda pixels: probability(logits_of(model, pixels).astype(jnp.float32)),
    images,
    mean_colour(images),
    jnp.broadcast_to(batch["target"][:, None], (len(images), len(cams))),
    jnp.stack(cams_px, 1),
    num_steps=num_steps,
  )
  counts = batch["mask"] * batch["target_mask"]
  columns, totals = {}, {}
  for kind, scores in both.items():
    areas = curves.area_under(fractions, scores)
    curve_sums = jnp.where(counts[:, None, None] > 0, scores, 0).sum(0)
    for i, name in enumerate(cams):
      columns[Key(f"{kind}_auc", name)] = counted(counts, areas[:, i])
      totals[Key(kind, name)] = (curve_sums[i], counts.sum())
  return Measured(columns, totals | completeness(batch, sums), cams)


def completeness(batch: PairBatch, sums: Sums) -> Totals:
  """Returns the completeness error of each method that divides a score.

  sum over pairs of |sum of the attributions - score| / sum of |score|

  The score is what the method divides, such as f(x) - f(x_0). Not a mean of
  each pair's error: few scores near 0 would outweigh all others.

  Source: Sundararajan et al. 2017, arXiv:1703.01365, proposition 1.
  """
  counts = batch["mask"] * batch["target_mask"]
  return {
    Key("completeness_error", name): tuple(
      jnp.where(counts > 0, jnp.abs(x), 0).sum() for x in (found - score, score)
    )
    for name, (found, score) in sums.items()
  }
