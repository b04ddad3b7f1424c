"""Do maps depend on what the model learned? Weights randomised, maps compared.

From the head down, one stage after the other is initialised anew. A map that
stays as it was shows the picture, not the model.

Source: Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation).
"""

import dataclasses

import jax
import numpy as np
from flax import nnx

from gc_jax.attribution import randomization
from gc_jax.evaluation import examples, plan
from gc_jax.models import init_key
from gc_jax.runtime import parallel


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
  """What came of it; empty where it was left out.

  Attributes:
    stages: from the head down; each randomised with all before it.
    correlations: method -> mean over pictures of the rank correlation of the
      map after each stage with the trained model's. Near 1: it did not change.
    strips: row of some pictures -> method -> stage -> map.
  """

  stages: list[str] = dataclasses.field(default_factory=list)
  correlations: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  strips: dict[int, dict[str, dict[str, np.ndarray]]] = dataclasses.field(
    default_factory=dict
  )


def check(
  model: nnx.Module,
  planner: plan.Planner,
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
  rows = examples.spread(planner, num_rows)

  def maps(which):
    found = examples.explained(
      which, planner.pairs, rows, planner.with_objects(), methods, mesh
    )
    return {
      name: np.stack([one.cams[name] for one in found]) for name in methods
    }

  before = maps(model)
  stages = list(randomization.stages(model))
  correlations: dict[str, list[float]] = {name: [] for name in methods}
  # The first and the last: of any number of rows they are the same.
  strips: dict[int, dict] = {
    rows[place]: {name: {} for name in methods} for place in (0, -1)
  }
  for stage in stages:
    after = maps(
      parallel.on_all_devices(
        randomization.randomized(model, stage, init_key(0)), mesh
      )
    )
    for name in methods:
      found = randomization.rank_correlation(before[name], after[name])
      correlations[name].append(float(np.mean(found)))
      for place in (0, -1):
        strips[rows[place]][name][stage] = after[name][place]
  return Panel(stages, correlations, strips)
