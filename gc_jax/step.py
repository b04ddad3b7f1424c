"""The train step, and the cheap evaluation beside it: pure functions to jit.

The method of the paper, read in a row: cam -> compose -> cam -> consistency.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gc_jax import cam as cams
from gc_jax import compose, losses
from gc_jax.evaluators import classification
from gc_jax.metrics import upsample
from gc_jax.models import pure_head
from gc_jax.state import TrainState
from gc_jax.types import Batch, Metrics

TARGET_DRAWS = ("category", "instance")


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised; the fields are those of configs/base.py.

  Attributes:
    num_classes: K.
    consistency: whether composites are made at all.
    classification_weight: factor of the cross-entropy.
    reduction: of the consistency loss over cells, "mean" or "sum".
    stop_gradient: whether the original's map is a fixed target.
    target_draw: of several present classes, how the explained one is drawn.
    compose_mode: a key of `compose.MODES`; a batch that brings distractors
      along has one composite for each image whatever it says.
    compose_groups: composites mix images within one of these equal, contiguous
      shares of the batch. With a multiple of the number of devices no image
      crosses from one to another.
  """

  num_classes: int
  consistency: bool
  classification_weight: float = 1.0
  reduction: str = "mean"
  stop_gradient: bool = False
  target_draw: str = "category"
  compose_mode: str = "packed"
  compose_groups: int = 1


def make_train_step(
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  objective: Objective,
  consistency_weight: optax.Schedule,
  key: PRNGKeyArray,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns one update as a pure function of state and batch.

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

    def loss_fn(params, probes):
      model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
      model.train()
      loss, metrics = _losses(model, batch, objective, weight, step_key, probes)
      _, _, batch_stats = nnx.split(model, nnx.Param, ...)
      return loss, (batch_stats, metrics)

    probes = _probes(graphdef, state, batch, objective)
    (_, (batch_stats, metrics)), (grads, probe_grads) = jax.value_and_grad(
      loss_fn, argnums=(0, 1), has_aux=True
    )(state.params, probes)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    metrics["train/grad_norm"] = _scalar(optax.tree.norm(grads))
    for name, grad in probe_grads.items():
      norm = optax.tree.norm(grad)
      metrics[f"train/grad_norm_features/{name}"] = _scalar(norm)
    state = TrainState(state.step + 1, params, batch_stats, opt_state)
    return state, metrics

  return train_step


def _losses(
  model: nnx.Module,
  batch: Batch,
  objective: Objective,
  weight: Float[Array, ""],
  key: PRNGKeyArray,
  probes: dict[str, Array],
) -> tuple[Float[Array, ""], Metrics]:
  """Returns the total loss and the metrics of one batch.

  Args:
    model: in training mode; its running statistics are updated in place, by
      the originals first and then by the composites (the release).
    batch: images and labels.
    objective: what is minimised.
    weight: λ.
    key: of the composites, the drawn targets and dropout.
    probes: zeros, added to the features each term sees (`_probes`).
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
  loss = objective.classification_weight * losses.masked_mean(
    classification, mask
  )
  metrics = {"train/classification_loss": _sums(classification, mask)}
  if "skipped" in batch:
    metrics["train/skipped_frac"] = _sums(batch["skipped"])

  if objective.consistency:
    consistency, pair_mask = _consistency_losses(
      model,
      # The originals are seen once: dropped out as for their logits.
      pure_head(model, key_dropout),
      images,
      features + probes["consistency"],
      batch,
      objective,
      key_composites,
    )
    loss += weight * losses.masked_mean(consistency, pair_mask)
    metrics["train/consistency_loss"] = _sums(consistency, pair_mask)
    metrics["train/masked_pairs_frac"] = _sums(1 - pair_mask)
    metrics["train/consistency_weight"] = _scalar(weight)
  metrics["train/loss"] = _scalar(loss)
  return loss, metrics


def _consistency_losses(
  model: nnx.Module,
  classify: Callable[[Array], Array],
  images: Float[Array, "B H W 3"],
  features: Float[Array, "B h w D"],
  batch: Batch,
  objective: Objective,
  key: PRNGKeyArray,
) -> tuple[Float[Array, "M P"], Float[Array, "M P"]]:
  """Returns the consistency loss of every (composite, class) pair and its mask.

  Args:
    model: in training mode, for the composites.
    classify: its head as it is for the originals.
    images: the originals, normalised.
    features: theirs.
    batch: labels and mask.
    objective: what is minimised.
    key: of the drawn targets, the composites and their dropout masks.

  Source: Pillai & Pirsiavash 2021, eq. 3-5.
  Differs: see `compose.packed`, `compose.independent`, `compose.supplied`.
  """
  key_target, key_layout, key_dropout = jax.random.split(key, 3)
  contains = classes_present(batch, objective.num_classes)
  if "distractors" in batch:
    target = batch["target"]  # what they were drawn against
  else:
    target = draw_target(key_target, batch, objective.target_draw)

  cam = _normalized_cam(classify, features, target[:, None])[:, 0]
  if objective.stop_gradient:
    cam = jax.lax.stop_gradient(cam)

  groups = objective.compose_groups
  grouped = lambda x: x.reshape(groups, -1, *x.shape[1:])
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  keys = jax.random.split(key_layout, groups)
  mask = batch["mask"] * contains.any(-1)
  tiles = grouped(images)
  if "distractors" in batch:
    layout = jax.vmap(compose.supplied)(
      keys, grouped(mask * batch["distractor_mask"])
    )
    distractors = model.normalize(flat(batch["distractors"]))
    tiles = jnp.concatenate([tiles, grouped(distractors)], axis=1)
  else:
    layout = jax.vmap(compose.MODES[objective.compose_mode])(
      keys, grouped(contains), grouped(target), grouped(mask)
    )
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


def classes_present(batch: Batch, num_classes: int) -> Array:
  """Returns `[B K]`, True where the image holds an object of the class."""
  if "labels" in batch:
    return batch["labels"] > 0
  return jax.nn.one_hot(batch["label"], num_classes, dtype=bool)


def draw_target(
  key: PRNGKeyArray, batch: Batch, target_draw: str
) -> Int[Array, "B"]:
  """Returns the class to explain in each image, one that is present.

  Args:
    key: the draw is a function of it.
    batch: single-label (the label itself) or multi-label.
    target_draw: "category" draws uniformly over the present classes (paper),
      "instance" in proportion to their objects (release).
  """
  if "labels" not in batch:
    return batch["label"]
  counts = batch["labels"]
  if target_draw == "category":
    counts = counts > 0
  return jax.random.categorical(key, jnp.log(counts.astype(jnp.float32)))


def make_classification_step(
  graphdef: nnx.GraphDef,
) -> Callable[[TrainState, Batch], dict[str, Metrics]]:
  """Returns the cheap evaluation as a pure function: predictions only."""

  def classification_step(state: TrainState, batch: Batch):
    model = eval_model(graphdef, state)
    logits = model.classify(model.features(model.normalize(batch["image"])))
    return {"classification": classification.sums(logits, batch)}

  return classification_step


def eval_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
  """Returns the model of a state, in evaluation mode."""
  model = nnx.merge(graphdef, state.params, state.batch_stats, copy=True)
  model.eval()
  return model


def _probes(graphdef, state, batch, objective) -> dict[str, Array]:
  """Returns zeros shaped as the features, one for each loss term.

  The gradient with respect to what is added to a term's features is the
  gradient of that term alone at the last convolutional layer: where the
  division by a map's sum does its damage. It costs no further pass.
  """

  def features(params, images):
    model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
    return model.features(model.normalize(images))

  shape = jax.eval_shape(features, state.params, batch["image"])
  names = ["classification"] + ["consistency"] * objective.consistency
  return {name: jnp.zeros(shape.shape, shape.dtype) for name in names}


def _sums(values: Array, mask: Array | None = None) -> tuple[Array, Array]:
  mask = jnp.ones_like(values) if mask is None else mask
  return (values * mask).sum(), mask.sum()


def _scalar(value: Array) -> tuple[Array, Array]:
  return value, jnp.ones(())
