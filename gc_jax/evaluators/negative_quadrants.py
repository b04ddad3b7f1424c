"""Does the map stay with its object among distractors? NQH on composites."""

from jaxtyping import Array, Float, Int

from gc_jax import metrics
from gc_jax.types import Metrics


def sums(
  cams: dict[str, Float[Array, "*M h2 w2"]],
  cell: Int[Array, "*M"],
  mask: Float[Array, "*M"],
) -> Metrics:
  """Returns the sums of one batch of composites.

  Args:
    cams: method -> raw maps of the composites, for the explained class.
    cell: quadrant in which the explained image sits.
    mask: 1 where the composite counts.
  """
  totals: Metrics = {}
  for name, cam in cams.items():
    value = metrics.negative_quadrants_heatmap(
      metrics.as_distribution(cam), cell
    )
    totals[f"{name}/negative_quadrants_heatmap"] = (
      (value * mask).sum(),
      mask.sum(),
    )
  return totals


def summarize(totals: Metrics) -> dict[str, float]:
  """Returns percent from sums over the whole split; nothing if none counted."""
  return {
    name: float(100 * total / weight)
    for name, (total, weight) in totals.items()
    if weight > 0
  }
