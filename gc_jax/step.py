"""The train step: pure functions to jit.

The method of the paper, read in a row: cam -> compose -> cam -> consistency.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax import accumulation, compose, drawing, losses
from gc_jax import cam as cams
from gc_jax.drawing import Drawn
from gc_jax.metrics import upsample
from gc_jax.models import layers, pure_head
from gc_jax.objective import Objective
from gc_jax.state import TrainState
from gc_jax.types import Batch, Metrics


class Sums(NamedTuple):
  """What is added up over the parts of a batch.

  Attributes:
    grads: of the loss.
    loss: the part's share of it.
    squares: squared norms of each term's gradient at the features.
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
  consistency_weight: optax.Schedule,
  key: PRNGKeyArray,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns one update as a pure function of state and batch.

  With `objective.accumulate_steps` above 1, the activations of one part of the
  batch at a time are in memory. The loss stays what it is of the whole: each
  term is the mean over all images, or all unmasked pairs, of the batch, in
  whichever parts they are. Three things are a part's own: composites are drawn
  among its images, BatchNorm sees no others, and running statistics are
  updated once for each part, in turn.

  Args:
    graphdef: structure of the model, from `state.create`.
    tx: the optimizer.
    objective: what is minimised.
    consistency_weight: λ after a number of completed updates.
    key: composites and drawn targets are a function of it and of the step.
  """

  def train_step(state: TrainState, batch: Batch):
    weight = consistency_weight(state.step)
    step_key = jax.random.fold_in(key, state.step)

    def of_part(batch_stats, part):
      return _part_sums(
        graphdef, state.params, batch_stats, part, objective, weight
      )

    num_parts = objective.accumulate_steps
    if num_parts == 1:
      drawn = drawing.draw(objective, batch, step_key)
      part = batch, step_key, drawn, accumulation.Shares(1.0, 1.0)
      batch_stats, sums = of_part(state.batch_stats, part)
    else:
      batches = accumulation.divided(batch, num_parts)
      keys = jax.random.split(step_key, num_parts)
      drawn = jax.vmap(functools.partial(drawing.draw, objective))(
        batches, keys
      )
      parts = batches, keys, drawn, accumulation.shares_of(batches, drawn)
      batch_stats, sums = accumulation.sum_over(
        of_part, state.batch_stats, parts
      )

    grads, metrics = sums.grads, dict(sums.metrics)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    metrics["train/loss"] = _scalar(sums.loss)
    if objective.consistency:
      metrics["train/consistency_weight"] = _scalar(weight)
    metrics["train/grad_norm"] = _scalar(optax.tree.norm(grads))
    for name, square in sums.squares.items():
      metrics[f"train/grad_norm_features/{name}"] = _scalar(jnp.sqrt(square))
    state = TrainState(state.step + 1, params, batch_stats, opt_state)
    return state, metrics

  return train_step


def _part_sums(
  graphdef: nnx.GraphDef,
  params: nnx.State,
  batch_stats: nnx.State,
  part: tuple[Batch, PRNGKeyArray, Drawn | None, accumulation.Shares],
  objective: Objective,
  weight: Float[Array, ""],
) -> tuple[nnx.State, Sums]:
  """Returns the running statistics after a part of a batch, and its sums."""
  batch, key, drawn, shares = part
  bn_groups = len(batch["image"]) // (objective.bn_group or len(batch["image"]))

  def loss_fn(params, probes):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    model.train(bn_groups=bn_groups, remat=objective.remat)
    layers.hold_origins(model)
    loss, metrics = _losses(
      model, batch, objective, weight, key, probes, drawn, shares
    )
    _, _, after, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return loss, (after, metrics)

  probes = _probes(graphdef, params, batch_stats, batch, objective)
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
  batch: Batch,
  objective: Objective,
  weight: Float[Array, ""],
  key: PRNGKeyArray,
  probes: dict[str, Array],
  drawn: Drawn | None,
  shares: accumulation.Shares,
) -> tuple[Float[Array, ""], Metrics]:
  """Returns a part's share of the loss, and its metrics.

  Args:
    model: in training mode; its running statistics are updated in place, by
      the originals first and then by the composites (the release).
    batch: images and labels of the part.
    objective: what is minimised.
    weight: λ.
    key: of dropout.
    probes: zeros, added to the features each term sees (`_probes`).
    drawn: the part's composites, where there are any.
    shares: factors that make of the part's means its shares of the batch's.
  """
  key_dropout, key_composites = jax.random.split(key)
  mask = batch["mask"]
  images = model.normalize(batch["image"])
  features = model.features(images)

  logits = model.classify(features + probes["classification"], key_dropout)
  if "labels" in batch:
    classification = losses.binary_cross_entropy(logits, batch["labels"])
  else:
    classification = losses.cross_entropy(logits, batch["label"])
  mean = shares.images * losses.masked_mean(classification, mask)
  loss = objective.classification_weight * mean
  metrics = {"train/classification_loss": _sums(classification, mask)}
  if "skipped" in batch:
    metrics["train/skipped_frac"] = _sums(batch["skipped"])

  if drawn is not None:
    consistency, pair_mask = _consistency_losses(
      model,
      # The originals are seen once: dropped out as for their logits.
      pure_head(model, key_dropout),
      images,
      features + probes["consistency"],
      batch,
      objective,
      key_composites,
      drawn,
    )
    mean = shares.pairs * losses.masked_mean(consistency, pair_mask)
    loss += weight * mean
    metrics["train/consistency_loss"] = _sums(consistency, pair_mask)
    metrics["train/masked_pairs_frac"] = _sums(1 - pair_mask)
  return loss, metrics


def _consistency_losses(
  model: nnx.Module,
  classify: Callable[[Array], Array],
  images: Float[Array, "B H W 3"],
  features: Float[Array, "B h w D"],
  batch: Batch,
  objective: Objective,
  key: PRNGKeyArray,
  drawn: Drawn,
) -> tuple[Float[Array, "M P"], Float[Array, "M P"]]:
  """Returns the consistency loss of every (composite, class) pair and its mask.

  Args:
    model: in training mode, for the composites.
    classify: its head as it is for the originals.
    images: the originals, normalised.
    features: theirs.
    batch: brings distractors along, or not.
    objective: what is minimised.
    key: of the composites' dropout masks.
    drawn: the targets and the layout.

  Source: Pillai & Pirsiavash 2021, eq. 3-5.
  Differs: see `compose.packed`, `compose.independent`, `compose.supplied`.
  """
  _, _, key_dropout = drawing.composite_keys(key)
  target, layout = drawn
  cam = _normalized_cam(classify, features, target[:, None])[:, 0]
  if objective.stop_gradient:
    cam = jax.lax.stop_gradient(cam)

  grouped = functools.partial(drawing.grouped, objective)
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  tiles = grouped(images)
  if "distractors" in batch:
    distractors = model.normalize(flat(batch["distractors"]))
    tiles = jnp.concatenate([tiles, grouped(distractors)], axis=1)
  composites = flat(jax.vmap(compose.assemble)(layout, tiles))
  explained = flat(jax.vmap(jnp.take)(grouped(target), layout.explained))

  composite_cam = _normalized_cam(
    pure_head(model, key_dropout), model.features(composites), explained
  )
  cam, composite_cam = _at_one_scale(cam, composite_cam, *images.shape[1:3])
  expected = flat(jax.vmap(compose.expected_cam)(layout, grouped(cam)))
  pair_losses = losses.consistency_loss(
    expected, composite_cam, objective.reduction
  )
  return pair_losses, flat(layout.mask)


def _normalized_cam(classify, features, target):
  gradients = cams.class_gradients(classify, features, target)
  return cams.normalize_cam(
    cams.elementwise_grad_cam(features[:, None], gradients)
  )


def _at_one_scale(
  cam: Float[Array, "B h w"],
  composite_cam: Float[Array, "M P h2 w2"],
  height: int,
  width: int,
) -> tuple[Float[Array, "B y x"], Float[Array, "M P y2 x2"]]:
  """Returns both maps such that a composite's is twice as high and wide.

  It is so where strides divide the image. Poolings without padding, AlexNet's,
  make 6x6 cells of 224 pixels but 13x13 of 448: then both maps, each already
  normalised, are enlarged to pixels, and not normalised again.

  Source: the release's AlexNet.
  """
  if composite_cam.shape[-2:] == (2 * cam.shape[-2], 2 * cam.shape[-1]):
    return cam, composite_cam
  return (
    upsample(cam, height, width),
    upsample(composite_cam, 2 * height, 2 * width),
  )


def eval_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
  """Returns the model of a state, in evaluation mode."""
  model = nnx.merge(graphdef, state.params, state.batch_stats, copy=True)
  model.eval()
  return model


def _probes(
  graphdef, params, batch_stats, batch, objective
) -> dict[str, Array]:
  """Returns zeros shaped as the features, one for each loss term.

  The gradient with respect to what is added to a term's features is the
  gradient of that term alone at the last convolutional layer: where the
  division by a map's sum does its damage. It costs no further pass.
  """

  def features(params, images):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    return model.features(model.normalize(images))

  shape = jax.eval_shape(features, params, batch["image"])
  names = ["classification"] + ["consistency"] * objective.consistency
  return {name: jnp.zeros(shape.shape, shape.dtype) for name in names}


def _sums(values: Array, mask: Array | None = None) -> tuple[Array, Array]:
  mask = jnp.ones_like(values) if mask is None else mask
  return (values * mask).sum(), mask.sum()


def _scalar(value: Array) -> tuple[Array, Array]:
  return value, jnp.ones(())
