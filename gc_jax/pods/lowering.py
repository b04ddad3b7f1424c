"""A recipe's train step, lowered for devices that need not be here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gc_jax import data, models
from gc_jax.data import training_example
from gc_jax.method.types import Batch
from gc_jax.runtime import parallel
from gc_jax.training import config as configs
from gc_jax.training import guidance, optim, recipe
from gc_jax.training import state as states
from gc_jax.training.state import TrainState

# Schedules need a length of an epoch. It is a constant of the program, on which
# neither shapes nor costs depend.
_STEPS_PER_EPOCH = 1_000


def lower(
  config: ConfigDict, mesh: Mesh, classes: data.Classes
) -> tuple[jax.stages.Lowered, TrainState, Batch]:
  """Returns the train step of a recipe, and the shapes of its arguments.

  Args:
    config: resolved.
    mesh: its devices need not be here.
    classes: of the data.

  Raises:
    ValueError: the config does not allow the run.
  """
  configs.validate(config, mesh.size)
  goal = recipe.objective(config, classes.count, mesh.size)
  tx = optim.optimizer(config, _STEPS_PER_EPOCH)
  graphdef, state = abstract_state(
    recipe.model_maker(config, classes.count, platform(mesh)), tx, mesh
  )
  batch = abstract_batch(config, classes, mesh)
  step = recipe.jitted_train_step(config, graphdef, tx, goal, _STEPS_PER_EPOCH)
  # Nothing but the lowering: on a mesh that is not here no array can be made.
  with jax.set_mesh(mesh):
    return step.lower(state, batch), state, batch


def abstract_state(
  make_model: Callable[..., nnx.Module], tx, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
  """Returns the structure of a model and the shapes of `state.create`.

  Args:
    make_model: builds the model, initialised from a key.
    tx: the optimizer.
    mesh: the state is on all its devices.
  """
  everywhere = parallel.replicated(mesh)
  graphdef = None

  def create(key):
    nonlocal graphdef
    graphdef, state = states.create(make_model, tx, everywhere, key)
    return state

  state = jax.eval_shape(create, models.init_key(0))
  return graphdef, jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
  )


def abstract_batch(
  config: ConfigDict, classes: data.Classes, mesh: Mesh
) -> Batch:
  """Returns the shapes of a batch of `data.pipeline.train_batches`.

  Args:
    config: resolved.
    classes: of the data.
    mesh: the batch is divided over its devices.
  """
  count, side = config.batch_size, config.data.image_size
  shapes = {
    "image": ((side, side, 3), jnp.uint8),
    "mask": ((), jnp.float32),
  }
  if classes.multi_label:
    shapes["labels"] = ((classes.count,), jnp.int32)
  else:
    shapes["label"] = ((), jnp.int32)
  shapes |= training_example.extra_shapes(guidance.needs(config), side)
  if config.data.on_error == "skip":
    shapes["skipped"] = ((), jnp.float32)
  return {
    name: jax.ShapeDtypeStruct(
      (count, *shape), dtype, sharding=parallel.divided(mesh)
    )
    for name, (shape, dtype) in shapes.items()
  }


def platform(mesh: Mesh) -> str:
  """Returns "cpu", "gpu" or "tpu"."""
  return mesh.devices.flat[0].platform
