"""Do maps depend on what the model learned? Weights randomised, maps compared.

From the head down, one stage after the other is initialised anew. A map that
stays as it was shows the picture, not the model.

Source: Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation).
"""

import dataclasses

import jax
import numpy as np
from flax import nnx

from gc_jax import evaluation, parallel, passes
from gc_jax.attribution import randomization

_NUM_STRIPS = 2  # pictures whose maps are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
  """What came of it.

  Attributes:
    stages: from the head down; each randomised with all before it.
    correlations: method -> mean over pictures of the rank correlation of the
      map after each stage with the trained model's. Near 1: it did not change.
    strips: of the first pictures: method -> stage -> map.
  """

  stages: list[str]
  correlations: dict[str, list[float]]
  strips: list[dict[str, dict[str, np.ndarray]]]


def check(
  model: nnx.Module,
  planner: passes.Planner,
  methods: tuple[str, ...],
  num_rows: int,
  mesh: jax.sharding.Mesh,
) -> Panel:
  """Returns how maps change as weights are randomised.

  Args:
    model: trained, in evaluation mode.
    planner: of a split.
    methods: keys of `METHODS`.
    num_rows: pairs, spread over the split.
    mesh: a batch is divided along it.
  """
  rows = spread(planner, num_rows)

  def maps(which, rows):
    square = planner.with_objects()
    found = evaluation.explained(
      which, planner.pairs, rows, square, methods, mesh
    )
    return [one.cams for one in found]

  shown = spread(planner, _NUM_STRIPS)
  trained = maps(model, rows)
  stages = list(randomization.stages(model))
  correlations: dict[str, list[float]] = {name: [] for name in methods}
  strips: list[dict] = [{name: {} for name in methods} for _ in shown]
  for stage in stages:
    other = parallel.on_all_devices(
      randomization.randomized(model, stage, jax.random.key(0)), mesh
    )
    now = maps(other, rows)
    for name in methods:
      before = np.stack([cams[name] for cams in trained])
      after = np.stack([cams[name] for cams in now])
      found = randomization.rank_correlation(before, after)
      correlations[name].append(float(np.mean(found)))
    for strip, cams in zip(strips, maps(other, shown), strict=True):
      for name in methods:
        strip[name][stage] = cams[name]
  return Panel(stages, correlations, strips)


def spread(planner: passes.Planner, count: int) -> np.ndarray:
  """Returns rows of different pictures, evenly spread over the split."""
  rows = np.flatnonzero(planner.pairs.first & (planner.pairs.target >= 0))
  count = min(count, len(rows))
  return rows[np.linspace(0, len(rows) - 1, count).astype(int)]
