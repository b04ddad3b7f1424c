"""Our models with the weights of their PyTorch twins."""

import jax.numpy as jnp
from flax import nnx

from gc_jax import models
from gc_jax.torch_io import names
from tests.torch_io import torch_models


def pair(name, num_classes, **fields):
  """Returns our model and PyTorch's, in evaluation mode, with one's weights.

  Args:
    name: a key of MODELS that `torch_models` has, too.
    num_classes: K.
    **fields: of both constructors, to make them narrow.
  """
  twin = torch_models.create(name, num_classes, **fields).eval()
  # Its shapes alone: every number is the twin's.
  make = models.MODELS[name].changed(**fields)
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: make(num_classes, rngs=nnx.Rngs(0)))
  )
  tensors = {k: v.numpy() for k, v in twin.state_dict().items()}
  filled = []
  for path, variable in nnx.to_flat_state(state):
    array = tensors[names.torch_key(make.network, path)]
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    filled.append(
      (path, variable.replace(jnp.asarray(array.transpose(*order))))
    )
  model = nnx.merge(graphdef, nnx.from_flat_state(filled))
  model.eval()
  return model, twin
