"""The sizes of maps that are not made are those of maps that are."""

import jax
import jax.numpy as jnp
import pytest

from gc_jax import models
from gc_jax.attribution import CONTROLS, METHODS, grids, layers


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


def test_a_method_that_nobody_knows_is_asked_itself(make_tiny):
  def method(model, images, targets):
    del model
    return jnp.zeros((*targets.shape, images.shape[1] // 3, 7))

  net = make_tiny()
  net.eval()
  assert grids([method, METHODS["gradcam"]], net, 24, 16) == {(8, 7), (6, 4)}
  assert layers.grids(net, 24, 16) == {"maxpool": (6, 4), "layer1": (6, 4)}
