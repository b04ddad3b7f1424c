"""What training carries from step to step, and how it is made."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import PRNGKeyArray


@struct.dataclass
class TrainState:
  """Everything a checkpoint must hold to go on exactly.

  Attributes:
    step: completed updates.
    params: trainable parameters, float32.
    batch_stats: all other model state: BatchNorm's running statistics.
    opt_state: the optimizer's.
  """

  step: Any  # a jax.Array, or what stands for it while jax lowers a step
  params: nnx.State
  batch_stats: nnx.State
  opt_state: optax.OptState


def create(
  make_model: Callable[[PRNGKeyArray], nnx.Module],
  tx: optax.GradientTransformation,
  sharding: jax.sharding.Sharding,
  key: PRNGKeyArray,
) -> tuple[nnx.GraphDef, TrainState]:
  """Returns the model's structure and the state of step 0.

  The state is made in place on the devices of `sharding`: no host ever holds
  a second copy.

  Args:
    make_model: builds the model, initialised from a key.
    tx: the optimizer.
    sharding: of every leaf.
    key: from `models.init_key`.
  """
  graphdef, _, _ = nnx.split(nnx.eval_shape(make_model, key), nnx.Param, ...)

  def init(key):
    _, params, batch_stats = nnx.split(make_model(key), nnx.Param, ...)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      opt_state=tx.init(params),
    )

  return graphdef, jax.jit(init, out_shardings=sharding)(key)


def started_from(
  state: TrainState, model: nnx.Module, with_head: bool = True
) -> tuple[TrainState, list[str]]:
  """Returns a fresh state with a model's variables, where shapes agree.

  Args:
    state: of step 0.
    model: the same architecture; its head may be of another size.
    with_head: whether the last layer's variables are taken from it, too.

  Returns:
    The state, and the names of the variables that stayed as initialised.
  """
  given = dict(nnx.to_flat_state(nnx.state(model)))
  head = "" if with_head else f"{'.'.join(model.last_layer)}."
  kept = []

  def start(variables: nnx.State) -> nnx.State:
    flat = []
    for path, own in nnx.to_flat_state(variables):
      value = own[...]
      name = ".".join(map(str, path))
      taken = with_head or not name.startswith(head)
      if taken and given[path].shape == value.shape:
        # A copy: the step gives its buffers away.
        value = jax.device_put(jnp.copy(given[path][...]), value.sharding)
      else:
        kept.append(name)
      flat.append((path, own.replace(value)))
    return nnx.from_flat_state(flat)

  state = state.replace(
    params=start(state.params), batch_stats=start(state.batch_stats)
  )
  return state, kept


def num_params(state: TrainState) -> int:
  """Returns the number of trainable scalars."""
  return sum(leaf.size for leaf in jax.tree.leaves(state.params))
