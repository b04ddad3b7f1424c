"""The train step: pure functions to jit.

The step knows one loss, classification; of guidance it knows that there are
terms (`training.guidance`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.method import losses
from gc_jax.method.types import Batch, Metrics
from gc_jax.models import network, pure_head
from gc_jax.training import accumulation, guidance
from gc_jax.training.accumulation import CLASSIFICATION, Part
from gc_jax.training.objective import Objective
from gc_jax.training.state import TrainState
from gc_jax.training.term import Seen


class Sums(NamedTuple):
  """What is added up over the parts of a batch.

  Attributes:
    grads: of the loss.
    loss: the part's share of it.
    squares: squared norms of each loss's gradient at the features.
    metrics: as they are logged.
  """

  grads: nnx.State
  loss: Array
  squares: dict[str, Array]
  metrics: Metrics


def make_train_step(
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  objective: Objective,
  weights: Mapping[str, optax.Schedule],
  key: PRNGKeyArray,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns one update as a pure function of state and batch.

  With `objective.accumulate_steps` above 1, the activations of one part of the
  batch at a time are in memory. The loss stays what it is of the whole: each
  loss is the mean over all that counts in the batch, in whichever parts it is.
  Three things are a part's own: what terms draw is drawn among its images,
  BatchNorm sees no others, and running statistics are updated once for each
  part, in turn.

  Args:
    graphdef: structure of the model, from `state.create`.
    tx: the optimizer.
    objective: what is minimised.
    weights: of each of its terms, the weight after a number of completed
      updates.
    key: everything random is a function of it and of the step.
  """
  draw = functools.partial(
    guidance.draw,
    objective.terms,
    objective.num_classes,
    objective.target_draw,
  )

  def train_step(state: TrainState, batch: Batch):
    weights_now = {name: weights[name](state.step) for name in objective.terms}
    sums_of_batch = accumulation.in_parts(
      objective.accumulate_steps,
      draw,
      functools.partial(
        _part_sums, graphdef, state.params, objective, weights_now
      ),
    )
    batch_stats, sums = sums_of_batch(
      state.batch_stats, batch, jax.random.fold_in(key, state.step)
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


def _part_sums(
  graphdef: nnx.GraphDef,
  params: nnx.State,
  objective: Objective,
  weights: Mapping[str, Float[Array, ""]],
  batch_stats: nnx.State,
  part: Part,
) -> tuple[nnx.State, Sums]:
  """Returns the running statistics after a part of a batch, and its sums."""
  num_images = len(part.batch["image"])
  bn_groups = num_images // (objective.bn_group or num_images)

  def loss_fn(params, probes):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    model.train(bn_groups=bn_groups, remat=objective.remat)
    network.hold_origins(model)
    loss, metrics = _losses(model, part, objective, weights, probes)
    _, _, after, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return loss, (after, metrics)

  probes = _probes(graphdef, params, batch_stats, part.batch, objective)
  (loss, (batch_stats, metrics)), (grads, probe_grads) = jax.value_and_grad(
    loss_fn, argnums=(0, 1), has_aux=True
  )(params, probes)
  squares = {
    name: optax.tree.norm(grad, squared=True)
    for name, grad in probe_grads.items()
  }
  return batch_stats, Sums(grads, loss, squares, metrics)


def _losses(
  model: nnx.Module,
  part: Part,
  objective: Objective,
  weights: Mapping[str, Float[Array, ""]],
  probes: dict[str, Array],
) -> tuple[Float[Array, ""], Metrics]:
  """Returns a part's share of the loss, and its metrics.

  Args:
    model: in training mode; its running statistics are updated in place, by
      the originals first and then by what terms send through it (the release).
    part: of a batch.
    objective: what is minimised.
    weights: of its terms, now.
    probes: zeros, added to the features that each loss sees (`_probes`).
  """
  batch, drawn, shares = part
  mask = batch["mask"]
  images = model.normalize(batch["image"])
  features = model.features(images)

  logits = model.classify(features + probes[CLASSIFICATION], drawn.dropout)
  if "labels" in batch:
    values = losses.binary_cross_entropy(logits, batch["labels"])
  else:
    values = losses.cross_entropy(logits, batch["label"])
  mean = shares[CLASSIFICATION] * losses.masked_mean(values, mask)
  loss = objective.classification_weight * mean
  metrics = {"train/classification_loss": _sums(values, mask)}
  if "skipped" in batch:
    metrics["train/skipped_frac"] = _sums(batch["skipped"])

  for name, settings in objective.terms.items():
    term, draw = guidance.TERMS[name], drawn.terms[name]
    seen = Seen(
      model,
      # The originals are seen once: dropped out as for their logits.
      pure_head(model, drawn.dropout),
      images,
      features + probes[name],
      batch,
      drawn.explained,
    )
    values = term.losses(settings, seen, draw, drawn.keys[name])
    mean = shares[name] * losses.masked_mean(values, draw.mask)
    loss += weights[name] * mean
    metrics[f"train/{name}_loss"] = _sums(values, draw.mask)
    metrics[f"train/{term.masked}"] = _sums(1 - draw.mask)
  return loss, metrics


def eval_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
  """Returns the model of a state, in evaluation mode."""
  model = nnx.merge(graphdef, state.params, state.batch_stats, copy=True)
  model.eval()
  return model


def _probes(
  graphdef, params, batch_stats, batch, objective
) -> dict[str, Array]:
  """Returns zeros shaped as the features, for each loss.

  The gradient with respect to what is added to a loss's features is the
  gradient of that loss alone at the last convolutional layer: where the
  division by a map's sum does its damage. It costs no further pass.
  """

  def features(params, images):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    return model.features(model.normalize(images))

  shape = jax.eval_shape(features, params, batch["image"])
  names = [CLASSIFICATION, *objective.terms]
  return {name: jnp.zeros(shape.shape, shape.dtype) for name in names}


def _sums(values: Array, mask: Array | None = None) -> tuple[Array, Array]:
  mask = jnp.ones_like(values) if mask is None else mask
  return (values * mask).sum(), mask.sum()


def _scalar(value: Array) -> tuple[Array, Array]:
  return value, jnp.ones(())
