"""The train step: pure functions to jit.

The step knows one loss, classification; of guidance it knows only that there
are terms (`guidance.TERMS`).
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax.method import losses
from gc_jax.method.types import Batch, Metrics
from gc_jax.models import network, pure_head
from gc_jax.training import guidance
from gc_jax.training.guidance import Drawn
from gc_jax.training.term import Draw, Seen

_CLASSIFICATION = "classification"
# Variables that a step makes and that no state holds.
_NOT_KEPT = nnx.Any(network.Origin, nnx.Intermediate)


@struct.dataclass
class TrainState:
  """Everything a checkpoint must hold to go on exactly."""

  step: Any  # completed updates: an array, or its stand-in while jax lowers
  params: nnx.State  # trainable, float32
  batch_stats: nnx.State  # all other model state: running statistics
  opt_state: optax.OptState


class _Part(NamedTuple):
  """A part of a batch, or the whole of it."""

  batch: Batch
  drawn: Drawn
  # Loss -> the part's share of all that counts in the batch: the batch's mean
  # is the sum over parts of share times mean.
  shares: dict[str, Array | float]


class _Sums(NamedTuple):
  """What is added up over the parts of a batch."""

  grads: nnx.State
  loss: Array
  squares: dict[str, Array]  # norms of each loss's gradient at the features
  metrics: Metrics


def make_train_step(
  config: ConfigDict,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  num_devices: int,
  steps_per_epoch: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns one update as a pure function of state and batch.

  With `config.accumulate_steps` above 1, only the activations of one part of
  the batch are in memory at a time. The loss stays that of the whole batch:
  each loss is the mean over all that counts in it, in whichever parts it is.
  Three things are a part's own: terms draw among its images only, BatchNorm
  sees no others, and the running statistics are updated once for each part, in
  turn.

  Everything random is a function of `config.seed` and the step. The weights of
  terms follow `steps_per_epoch`; a batch is divided over `num_devices`.
  """
  key = jax.random.key(config.seed)
  weights = guidance.weights(config, steps_per_epoch)
  settings = guidance.settings(config, num_devices)
  draw = functools.partial(
    guidance.draw, settings, num_classes, config.loss.target_draw
  )

  def train_step(state: TrainState, batch: Batch):
    weights_now = {name: weights[name](state.step) for name in settings}
    batch_stats, sums = _batch_sums(
      config.accumulate_steps,
      draw,
      functools.partial(
        _part_sums, config, graphdef, state.params, settings, weights_now
      ),
      state.batch_stats,
      batch,
      jax.random.fold_in(key, state.step),
    )
    grads, metrics = sums.grads, dict(sums.metrics)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    metrics["train/loss"] = _scalar(sums.loss)
    for name, weight in weights_now.items():
      metrics[f"train/{name}_weight"] = _scalar(weight)
    metrics["train/grad_norm"] = _scalar(optax.tree.norm(grads))
    for name, square in sums.squares.items():
      metrics[f"train/grad_norm_features/{name}"] = _scalar(jnp.sqrt(square))
    state = TrainState(state.step + 1, params, batch_stats, opt_state)
    return state, metrics

  return train_step


def gradients(
  config: ConfigDict,
  model: nnx.Module,
  batch: Batch,
  key: PRNGKeyArray,
  *,
  num_classes: int,
  given: Mapping[str, Draw] = types.MappingProxyType({}),
) -> tuple[dict[str, Float[Array, ""]], nnx.State]:
  """Returns the losses of one train step by name, and its gradient.

  For a loop of your own, to be jitted there. It is what `make_train_step` does
  with a batch in one part on one device, with weights at the end of their ramp,
  up to the optimizer. The model is seen in training mode, and not changed.

  Args:
    config: of a recipe; its sections `model`, `loss` and `compose` count.
    model: one of `MODELS`.
    batch: with `target`, if a class of yours is to be explained.
    key: of all that is random. The train step's is
      `jax.random.fold_in(jax.random.key(config.seed), step)`.
    num_classes: K.
    given: term to draw, where nothing is to be drawn: for composites of yours
      `{"consistency": composites.given(layout)}`, by positions in the batch.
      Where that brings distractors, positions are those of `compose.supplied`.

  Returns:
    The means "classification" and of each term with weight, "consistency", and
    their weighted sum "loss"; the gradient of the latter with respect to every
    `nnx.Param`.

  Raises:
    ValueError: something is given of a term without weight, or the groups of
      BatchNorm do not divide the batch.
  """
  settings = guidance.settings(config, 1)
  size, num_images = config.model.bn_group, len(batch["image"])
  if size and num_images % size:
    raise ValueError(
      f"--config.model.bn_group={size} must divide the {num_images} images of "
      "the batch. Use 0 for one group, or another batch."
    )
  if without := sorted(given.keys() - settings.keys()):
    raise ValueError(
      f"What is given must be of terms with weight, {[*settings]}; "
      f"{', '.join(without)} has none. Set it in config.loss, or leave it out."
    )
  weights = {
    name: jnp.asarray(config.loss[term.fields.weight.name], jnp.float32)
    for name, term in guidance.chosen(config).items()
  }
  graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
  _, sums = _batch_sums(
    1,
    functools.partial(
      guidance.draw, settings, num_classes, config.loss.target_draw, given=given
    ),
    functools.partial(_part_sums, config, graphdef, params, settings, weights),
    batch_stats,
    batch,
    key,
  )
  means = {"loss": sums.loss}
  for name in [_CLASSIFICATION, *settings]:
    total, count = sums.metrics[f"train/{name}_loss"]
    means[name] = total / jnp.maximum(count, 1.0)
  return means, sums.grads


def _batch_sums(
  num_parts: int,
  draw: Callable[[Batch, PRNGKeyArray], Drawn],
  part_sums: Callable[[nnx.State, _Part], tuple[nnx.State, _Sums]],
  batch_stats: nnx.State,
  batch: Batch,
  key: PRNGKeyArray,
) -> tuple[nnx.State, _Sums]:
  """Returns the running statistics after all parts, and the sums over them."""
  if num_parts == 1:
    drawn = draw(batch, key)
    shares = dict.fromkeys([_CLASSIFICATION, *drawn.terms], 1.0)
    return part_sums(batch_stats, _Part(batch, drawn, shares))

  # Part i has every `num_parts`-th example from the i-th on: a share of each
  # device's, so that none moves to another.
  batch = jax.tree.map(
    lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch
  )
  drawn = jax.vmap(draw)(batch, jax.random.split(key, num_parts))
  masks = {name: term.mask for name, term in drawn.terms.items()}
  masks[_CLASSIFICATION] = batch["mask"]
  counts = {k: mask.reshape(num_parts, -1).sum(1) for k, mask in masks.items()}
  shares = {k: n / jnp.maximum(n.sum(), 1.0) for k, n in counts.items()}
  parts = _Part(batch, drawn, shares)

  first = jax.tree.map(lambda x: x[0], parts)
  _, shapes = jax.eval_shape(part_sums, batch_stats, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(carry, part):
    batch_stats, total = carry
    batch_stats, sums = part_sums(batch_stats, part)
    return (batch_stats, jax.tree.map(jnp.add, total, sums)), None

  (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), parts)
  return batch_stats, sums


def _part_sums(
  config: ConfigDict,
  graphdef: nnx.GraphDef,
  params: nnx.State,
  settings: Mapping[str, Any],
  weights: Mapping[str, Float[Array, ""]],
  batch_stats: nnx.State,
  part: _Part,
) -> tuple[nnx.State, _Sums]:
  """Returns the running statistics after a part of a batch, and its sums."""
  num_images = len(part.batch["image"])
  bn_groups = num_images // (config.model.bn_group or num_images)

  def loss_fn(params, probes):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    model.train(bn_groups=bn_groups, remat=config.model.remat)
    network.hold_origins(model)
    loss, metrics = _losses(config, model, settings, weights, part, probes)
    _, _, _, after = nnx.split(model, nnx.Param, _NOT_KEPT, ...)
    return loss, (after, metrics)

  probes = _probes(graphdef, params, batch_stats, part)
  (loss, (batch_stats, metrics)), (grads, probe_grads) = jax.value_and_grad(
    loss_fn, argnums=(0, 1), has_aux=True
  )(params, probes)
  squares = {
    name: optax.tree.norm(grad, squared=True)
    for name, grad in probe_grads.items()
  }
  return batch_stats, _Sums(grads, loss, squares, metrics)


def _probes(graphdef, params, batch_stats, part: _Part) -> dict[str, Array]:
  """Returns zeros shaped as the features, for each loss.

  Each loss sees the features plus its own zeros. The gradient with respect to
  these is that of the loss alone at the last convolutional layer, where the
  division by a map's sum does its damage. It costs no further pass.
  """

  def features(params, images):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    return model.features(model.normalize(images))

  shape = jax.eval_shape(features, params, part.batch["image"])
  return {name: jnp.zeros(shape.shape, shape.dtype) for name in part.shares}


def _losses(
  config: ConfigDict,
  model: nnx.Module,
  settings: Mapping[str, Any],
  weights: Mapping[str, Float[Array, ""]],
  part: _Part,
  probes: dict[str, Array],
) -> tuple[Float[Array, ""], Metrics]:
  """Returns a part's share of the loss, and its metrics.

  The running statistics of the model, in training mode, are updated in place:
  first by the originals, then by what terms send through it (the release).
  """
  batch, drawn, shares = part
  mask = batch["mask"]
  images = model.normalize(batch["image"])
  features = model.features(images)

  logits = model.classify(features + probes[_CLASSIFICATION], drawn.dropout)
  if "labels" in batch:
    values = losses.binary_cross_entropy(logits, batch["labels"])
  else:
    values = losses.cross_entropy(logits, batch["label"])
  mean = shares[_CLASSIFICATION] * losses.masked_mean(values, mask)
  loss = config.loss.classification_weight * mean
  metrics = {"train/classification_loss": _sums(values, mask)}
  if "skipped" in batch:
    metrics["train/skipped_frac"] = _sums(batch["skipped"])

  for name, draw in drawn.terms.items():
    term = guidance.TERMS[name]
    seen = Seen(
      model,
      # The originals are seen once: dropped out as for their logits.
      pure_head(model, drawn.dropout),
      images,
      features + probes[name],
      batch,
      drawn.explained,
    )
    values = term.losses(settings[name], seen, draw, drawn.keys[name])
    mean = shares[name] * losses.masked_mean(values, draw.mask)
    loss += weights[name] * mean
    metrics[f"train/{name}_loss"] = _sums(values, draw.mask)
    metrics[f"train/{term.masked}"] = _sums(1 - draw.mask)
  return loss, metrics


def _sums(values: Array, mask: Array | None = None) -> tuple[Array, Array]:
  mask = jnp.ones_like(values) if mask is None else mask
  return (values * mask).sum(), mask.sum()


def _scalar(value: Array) -> tuple[Array, Array]:
  return value, jnp.ones(())


def eval_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
  """Returns the model of a state, in evaluation mode."""
  model = nnx.merge(graphdef, state.params, state.batch_stats, copy=True)
  model.eval()
  return model
