"""What a config asks for: its model, its objective, its compiled update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax import models
from gc_jax.training import guidance, optim
from gc_jax.training import step as steps
from gc_jax.training.objective import Objective


def objective(
  config: ConfigDict, num_classes: int, num_devices: int
) -> Objective:
  """Returns what the config minimises."""
  return Objective(
    num_classes=num_classes,
    terms={
      name: term.settings(config, num_devices)
      for name, term in guidance.chosen(config).items()
    },
    classification_weight=config.loss.classification_weight,
    target_draw=config.loss.target_draw,
    accumulate_steps=config.accumulate_steps,
    bn_group=config.model.bn_group,
    remat=config.model.remat,
  )


def weights(
  config: ConfigDict, steps_per_epoch: int
) -> dict[str, optax.Schedule]:
  """Returns of each term the weight after a number of completed updates."""
  return {
    name: optim.ramped(
      config.loss[term.fields.weight.name],
      config.loss[term.fields.ramp.name],
      steps_per_epoch,
    )
    for name, term in guidance.chosen(config).items()
  }


def model_maker(
  config: ConfigDict, num_classes: int, platform: str
) -> Callable[[PRNGKeyArray], nnx.Module]:
  """Returns what builds the config's model, initialised from a key.

  Args:
    config: resolved.
    num_classes: K.
    platform: "cpu", "gpu" or "tpu", what it will run on.
  """
  dtype = compute_dtype(config.compute_dtype, platform)
  return lambda key: models.create(
    config.model.name, num_classes, dtype=dtype, key=key
  )


def jitted_train_step(
  config: ConfigDict,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  goal: Objective,
  steps_per_epoch: int,
) -> jax.stages.Wrapped:
  """Returns the update of `step.make_train_step`, to call or to compile.

  Args:
    config: resolved.
    graphdef: structure of the model.
    tx: the optimizer.
    goal: from `objective`.
    steps_per_epoch: of the schedules.
  """
  return jax.jit(
    steps.make_train_step(
      graphdef,
      tx,
      goal,
      weights(config, steps_per_epoch),
      jax.random.key(config.seed),
    ),
    donate_argnums=0,
  )


def compute_dtype(name: str, platform: str) -> jnp.dtype:
  """Returns the dtype of activations; "auto" is bfloat16 except on CPU."""
  if name == "auto":
    name = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(name)
