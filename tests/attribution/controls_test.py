"""Control maps: what a metric says of a map that looks at nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax.attribution import CONTROLS, METHODS
from gc_jax.method import metrics

TARGETS = jnp.array([[3, 0, 1], [7, 7, 2]])


def maps(name):
  """The maps; whoever looks at the model or the images fails."""
  return CONTROLS[name](None, None, TARGETS)


@pytest.fixture(autouse=True)
def accept_no_model(monkeypatch):
  """The unchecked functions: there is no model to hand over."""
  for name, control in CONTROLS.items():
    monkeypatch.setitem(CONTROLS, name, control.explain.__wrapped__)


def test_names_are_apart_from_the_methods():
  assert not CONTROLS.keys() & METHODS.keys()


@pytest.mark.parametrize("name", CONTROLS)
def test_every_pair_has_the_same_map(name):
  cam = maps(name)
  assert cam.shape[:2] == TARGETS.shape and cam.min() >= 0
  np.testing.assert_array_equal(cam, np.broadcast_to(cam[0, 0], cam.shape))


def test_the_uniform_map_is_uniform():
  np.testing.assert_array_equal(maps("uniform"), 1)


def test_the_center_map_falls_off_alike_on_all_sides():
  cam = np.asarray(maps("center")[0, 0])
  np.testing.assert_array_equal(cam, cam[::-1])
  np.testing.assert_array_equal(cam, cam.T)
  middle = cam[:4, 3]
  assert (np.diff(middle) > 0).all()


def test_the_center_map_is_a_gaussian_a_quarter_of_the_side_wide():
  cam = np.asarray(maps("center")[0, 0], np.float64)
  offset = (np.arange(8) + 0.5) / 8 - 0.5
  # log(a / b) = (b's distance^2 - a's) / (2 sigma^2)
  ratio = np.log(cam[3, 3] / cam[3, 0])
  assert ratio == pytest.approx((offset[0] ** 2 - offset[3] ** 2) * 8)


@pytest.mark.parametrize("cell", range(4))
@pytest.mark.parametrize("name", CONTROLS)
def test_neither_knows_a_quadrant(name, cell):
  """A negative-quadrants heatmap of 75 is what looking at nothing scores."""
  cam = metrics.as_distribution(maps(name))
  score = metrics.negative_quadrants_heatmap(cam, jnp.full((2, 3), cell))
  np.testing.assert_allclose(score, 0.75, rtol=1e-6)  # float32
