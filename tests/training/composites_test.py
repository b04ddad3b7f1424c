"""The consistency term beside its step: sizes of maps, and what it asks."""

import jax.numpy as jnp
import numpy as np

from configs import quickstart
from gc_jax.training import composites


def test_the_maps_of_unequal_grids_are_enlarged_and_not_normalised_again():
  """Uniform ones of 6x6 and 13x13 then sum to 1393.8 and 1187.6 (release)."""
  cam = jnp.full((2, 6, 6), 1 / 36)
  composite_cam = jnp.full((2, 1, 13, 13), 1 / 169)
  cam, composite_cam = composites.at_one_scale(cam, composite_cam, 224, 224)
  assert cam.shape == (2, 224, 224)
  assert composite_cam.shape == (2, 1, 448, 448)
  np.testing.assert_allclose(cam.sum((1, 2)), 1393.8, atol=0.05)
  np.testing.assert_allclose(composite_cam.sum((2, 3)), 1187.6, atol=0.05)
  equal = jnp.ones((2, 7, 7)), jnp.ones((2, 1, 14, 14))
  same = composites.at_one_scale(*equal, 224, 224)
  assert same[0] is equal[0] and same[1] is equal[1]


def test_settings_are_those_of_the_recipe():
  config = quickstart.get_config("gc")
  assert composites.settings(config, 4) == composites.Settings(groups=4)
  config.loss.reduction = "sum"
  config.loss.stop_gradient = True
  config.compose.mode = "independent"
  config.compose.groups = 8
  settings = composites.settings(config, 4)
  assert settings == composites.Settings("sum", True, "independent", 8)


def test_distractors_are_needed_where_they_come_from_the_whole_set():
  config = quickstart.get_config("gc")
  assert composites.needs(config) == ()
  config.compose.distractors = "dataset"
  assert composites.needs(config) == ("distractors",)
