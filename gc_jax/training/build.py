"""What a config asks for, made.

The model, the optimizer, the first state. Everything is derived here, when it
is used: an override of, say, the batch size then reaches the learning rate too.
"""

import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax import data, models
from gc_jax.inference.trained import Initial
from gc_jax.runtime import checkpoint, files
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.messages import class_differences, listed
from gc_jax.training.step import TrainState

_logger = logging.getLogger(__name__)


def compute_dtype(name: str, platform: str) -> jnp.dtype:
  """Returns the dtype of activations; "auto" is bfloat16 except on CPU."""
  if name == "auto":
    name = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(name)


def model_maker(
  config: ConfigDict, classes: data.Classes, platform: str
) -> Callable[[PRNGKeyArray], nnx.Module]:
  """Returns the function from a key to the config's model, initialised.

  The model will run on the platform "cpu", "gpu" or "tpu".
  """
  dtype = compute_dtype(config.compute_dtype, platform)

  def make(key):
    model = models.create(
      config.model.name, classes.count, dtype=dtype, key=key
    )
    model.multi_label = classes.multi_label
    return model

  return make


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """Returns the learning rate after a number of completed updates.

  A linear warm-up from 0, then "step" (multiplied by `step_factor` at each of
  `step_epochs`) or "cosine" (to 0 at the last step).
  """
  c = config.optim
  peak = c.lr_per_256 * config.batch_size / 256
  warmup_steps = round(c.warmup_epochs * steps_per_epoch)
  if c.schedule == "cosine":
    total_steps = round(config.num_epochs * steps_per_epoch)
    main = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup_steps))
  else:
    # Counted from the end of the warm-up, as `join_schedules` counts.
    boundaries = {
      round(epoch * steps_per_epoch) - warmup_steps: c.step_factor
      for epoch in c.step_epochs
    }
    main = optax.piecewise_constant_schedule(peak, boundaries)
  if not warmup_steps:
    return main
  # The first update already moves: from peak / n, not from 0.
  warmup = optax.linear_schedule(
    peak / warmup_steps, peak * (1 + 1 / warmup_steps), warmup_steps
  )
  return optax.join_schedules([warmup, main], [warmup_steps])


def optimizer(
  config: ConfigDict, steps_per_epoch: int
) -> optax.GradientTransformation:
  """Returns SGD with momentum and weight decay, in torch.optim.SGD's order.

  If `config.optim.clip_norm` > 0, the gradient is clipped by its global norm
  first. The decay is then added to it, before the momentum, for every
  parameter, biases and BatchNorm's included (the release).
  """
  c = config.optim
  return optax.chain(
    optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
    optax.add_decayed_weights(c.weight_decay),
    optax.sgd(learning_rate(config, steps_per_epoch), c.momentum),
  )


def create_state(
  make_model: Callable[[PRNGKeyArray], nnx.Module],
  tx: optax.GradientTransformation,
  sharding: jax.sharding.Sharding,
  key: PRNGKeyArray,
) -> tuple[nnx.GraphDef, TrainState]:
  """Returns the model's structure and the state of step 0.

  The state is made in place on the devices of `sharding`: no host ever holds
  a second copy. The key is from `models.init_key`.
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
  initial: Initial,
  state: TrainState,
  config: ConfigDict,
  class_names: Sequence[str],
) -> TrainState:
  """Returns the state of step 0 with the weights of --config.init_from.

  Variables of another shape stay as initialised. So does the whole head, if
  its classes are known to be others: each row would be another class's.
  """
  differences = ""
  if initial.class_names:
    differences = class_differences(initial.class_names, class_names)
  # Classes that have nothing in common need no list of their differences.
  is_akin = not set(initial.class_names).isdisjoint(class_names)
  with_head = config.init_head and not differences
  head = f"{'.'.join(initial.model.last_layer)}."
  given = dict(nnx.to_flat_state(nnx.state(initial.model)))
  anew = []

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
        anew.append(name)
      flat.append((path, own.replace(value)))
    return nnx.from_flat_state(flat)

  state = state.replace(
    params=start(state.params), batch_stats=start(state.batch_stats)
  )
  why = "of another size"
  if not config.init_head:
    why = "as --config.init_head=False says"
  elif differences:
    why = "of other classes"
  _logger.info(
    "Starting from %s%s%s",
    config.init_from,
    f"; {why}, so initialised anew: {listed(anew)}" if anew else "",
    f"\n{differences}" if differences and is_akin else "",
  )
  return state


def check_goes_on(
  config: ConfigDict,
  workdir: files.AnyPath,
  class_names: Sequence[str],
  total_steps: int,
) -> list[str]:
  """Checks that a run can go on from that of --config.go_on_from.

  Nothing is compiled, or written.

  Returns:
    Lines that say what is taken over, and which settings are others.

  Raises:
    ValueError: there is no such run, or it has another model, other classes, or
      as many steps already.
    CheckpointError: it has no checkpoint.
  """
  flag = f"--config.go_on_from={config.go_on_from}"
  source = files.as_path(config.go_on_from)
  if config.init_from:
    raise ValueError(
      f"{flag} takes over a run's weights, and --config.init_from="
      f"{config.init_from} others. Give one of the two."
    )
  if source.absolute() == workdir.absolute():
    raise ValueError(
      f"{flag} must be another run than --workdir={workdir}, which goes on by "
      "itself when its own command is given again."
    )
  saved = saved_config.read(source)
  name = saved_config.field(saved, "model.name")
  if name != config.model.name:
    raise ValueError(
      f"{flag} must be a run of --config.model.name={config.model.name}; it "
      f"trained {name!r}. Name that model, or start from its weights alone: "
      "--config.init_from."
    )
  names = checkpoint.read_meta(source).get("class_names", ())
  if names and (differences := class_differences(names, class_names)):
    raise ValueError(
      f"{flag} must have the classes of the data, in their order; it has "
      f"others:\n{differences}\nStart from its weights alone: "
      "--config.init_from."
    )
  step = checkpoint.last_step(source)
  if step >= total_steps:
    raise ValueError(
      f"{flag} has done {step:,} updates, and --config.num_epochs="
      f"{config.num_epochs:g} are {total_steps:,} in all. Ask for more epochs."
    )
  others = [
    line
    for line in saved_config.differences(saved, saved_config.to_dict(config))
    if not line.startswith("--config.go_on_from")
  ]
  return [
    f"going on from {source}, step {step:,}: its weights, running statistics, "
    "optimizer and step are taken over, and nothing there is changed",
    *others,
  ]


def num_params(state: TrainState) -> int:
  """Returns the number of trainable scalars."""
  return sum(leaf.size for leaf in jax.tree.leaves(state.params))
