"""What maps say of annotations: one entry of METRICS is all there is to add."""

import jax.numpy as jnp
import numpy as np

from gc_jax.data import annotation
from gc_jax.evaluation import localisation
from gc_jax.method.metrics import METRICS, Key, Metric


def test_a_new_metric_is_measured_where_its_entry_says(monkeypatch):
  mass = Metric(
    "Mass",
    "sum of the map",
    "objects",
    lambda cam, at: cam.sum((1, 2)) * at.everywhere.sum((1, 2)) / 256,
    higher_is_better=None,
  )
  corner = Metric(
    "Corner", "first cell", "composite", lambda cam, cell: cam[:, 0, 0] + cell
  )
  monkeypatch.setitem(METRICS, "mass", mass)
  monkeypatch.setitem(METRICS, "corner", corner)
  mask = np.zeros((16, 16), bool)
  mask[:4, :4] = True
  on_grid = annotation.on_grid(mask, mask, (4, 4))
  one = jnp.ones(1)
  batch = {
    "mask": one,
    "target_mask": one,
    "annotated": one,
    "difficult": 0 * one,
    "cell": jnp.full(1, 3),
    "annotations": {
      annotation.name((4, 4)): [jnp.asarray(x)[None] for x in on_grid]
    },
  }
  cams = {"mine": jnp.full((1, 4, 4), 0.5)}
  found = localisation.on_objects(cams, batch)
  np.testing.assert_allclose(found[Key("mass", "mine")], [8.0])
  assert Key("corner", "mine") not in found
  assert found[Key("content_heatmap", "mine")] == 1 / 16
  found = localisation.on_composites(cams, batch)
  np.testing.assert_allclose(found[Key("corner", "mine")], [3.5])
  assert Key("negative_quadrants_heatmap", "mine") in found
