"""Does the map point at the object? PG, SPG, CH on annotations, NQH beside."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gc_jax.data import annotation
from gc_jax.method import metrics
from gc_jax.method.metrics import GridAnnotation, Key
from gc_jax.method.types import PairBatch

DIFFICULT = Key("difficult")  # a column: whether pointing games pass it over


def on_objects(
  cams: dict[str, Float[Array, "B h w"]], batch: PairBatch
) -> dict[Key, Float[Array, "B"]]:
  """Returns every metric of maps and annotations, and `DIFFICULT`.

  Args:
    cams: method -> raw map of each row.
    batch: with annotations on the grids of the maps.
  """
  counts = batch["mask"] * batch["target_mask"] * batch["annotated"]
  columns = {DIFFICULT: where(counts, batch["difficult"])}
  for name, cam in cams.items():
    annotated = GridAnnotation(
      *batch["annotations"][annotation.name(cam.shape[1:])]
    )
    for metric, measure in _measured("objects").items():
      columns[Key(metric, name)] = where(counts, measure(cam, annotated))
  return columns


def on_composites(
  cams: dict[str, Float[Array, "B h w"]], batch: PairBatch
) -> dict[Key, Float[Array, "B"]]:
  """Returns every metric of maps of composites.

  Args:
    cams: method -> raw map of each row.
    batch: of composites.
  """
  counts = batch["mask"] * batch["target_mask"]
  return {
    Key(metric, name): where(counts, measure(cam, batch["cell"]))
    for name, cam in cams.items()
    for metric, measure in _measured("composite").items()
  }


def where(counts: Array, values: Array) -> Array:
  """Returns the numbers of rows that count, NaN for the others."""
  return jnp.where(counts > 0, values, jnp.nan)


def _measured(needs: str):
  return {
    name: metric.measure
    for name, metric in metrics.METRICS.items()
    if metric.needs == needs and metric.measure is not None
  }
