"""The sizes of maps that are not made are those of maps that are."""

import jax
import jax.numpy as jnp
import pytest

from gc_jax import models
from gc_jax.attribution import CONTROLS, METHODS, grids


@pytest.mark.parametrize("method", [*METHODS, *CONTROLS])
@pytest.mark.parametrize("name", ["resnet18", "alexnet", "squeezenet1_1"])
def test_they_are_the_sizes_of_maps(name, method, small_perceptrons):
  model = models.create(name, 3)
  model.eval()
  run = (METHODS | CONTROLS)[method]
  images = jax.ShapeDtypeStruct((1, 96, 131, 3), jnp.uint8)
  targets = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  cams = jax.eval_shape(lambda *x: run(model, *x), images, targets)
  assert grids([run], model, 96, 131) == {cams.shape[2:]}
