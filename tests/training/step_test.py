"""The train step, recomputed by hand, differentiated by hand, on devices."""

import dataclasses
import functools
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import quickstart
from gc_jax import models
from gc_jax.method import cam as cams
from gc_jax.method import compose
from gc_jax.method.losses import Field, Fields
from gc_jax.models import chain, network
from gc_jax.pods.program import KINDS, exchanges
from gc_jax.training import build, guidance
from gc_jax.training import step as steps
from gc_jax.training.composites import Settings
from gc_jax.training.step import Objective, TrainState
from gc_jax.training.term import NoSettings, Term

WEIGHT = 3.0  # λ
NUM_CLASSES = 10
# Two groups of eight. The same class twice in each, so that pairs clash.
LABEL = np.array([0, 1, 2, 3, 4, 5, 6, 0, 9, 8, 7, 6, 5, 4, 3, 9])


def pixels(count=16, side=16, seed=0):
  values = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3))
  return values.astype(np.uint8)


def single_label(label=LABEL):
  return {
    "image": jnp.asarray(pixels(len(label))),
    "label": jnp.asarray(label, jnp.int32),
    "mask": jnp.ones(len(label)),
  }


def multi_label(labels):
  return {
    "image": jnp.asarray(pixels(len(labels))),
    "labels": jnp.asarray(labels, jnp.int32),
    "mask": jnp.ones(len(labels)),
  }


def with_objects(batch, target=LABEL):
  """Brings rectangles as objects; those of images 2, 7 and 12 are unknown."""
  rows, columns = np.arange(16)[:, None], np.arange(16)[None]
  masks = [
    (rows >= i % 5) & (rows < 9) & (columns >= 3) & (columns < 7 + i % 7)
    if i % 5 != 2
    else np.zeros((16, 16), bool)
    for i in range(len(batch["mask"]))
  ]
  return batch | {
    "object_mask": jnp.asarray(np.stack(masks)),
    "target": jnp.asarray(target, jnp.int32),
  }


def objective(terms=("consistency",), **fields):
  """By fields of `Objective`, and those of composites' settings."""
  of_composites = {field.name for field in dataclasses.fields(Settings)}
  how = Settings(**{k: v for k, v in fields.items() if k in of_composites})
  rest = {k: v for k, v in fields.items() if k not in of_composites}
  given = {"consistency": how, "energy": NoSettings()}
  return Objective(NUM_CLASSES, {name: given[name] for name in terms}, **rest)


def make_step(model, goal, lr=1.0, weight=WEIGHT):
  """The step, not compiled, and its first state.

  Plain gradient descent: at a rate of 1 the parameters fall by the gradient.
  """
  graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
  tx = optax.sgd(lr)
  weights = dict.fromkeys(goal.terms, lambda _: jnp.float32(weight))
  step = steps.make_train_step(graphdef, tx, goal, weights, jax.random.key(7))
  state = TrainState(
    jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params)
  )
  return step, state


def mean(metrics, name):
  total, weight = metrics[f"train/{name}"]
  return float(total / weight)


# What a step computes, by hand: fixed layouts, closed forms, loops.

PACKED = compose.Layout(
  tiles=np.array([[3, 0, 7, 5], [1, 2, 6, 4]]),
  cell=np.array([[2, 0, 3, 1], [0, 1, 2, 3]]),
  mask=np.array([[1, 1, 0, 1], [1, 1, 1, 1]], np.float32),
)
INDEPENDENT = compose.Layout(
  tiles=np.array(
    [
      [0, 3, 4, 5],
      [2, 1, 3, 4],
      [7, 6, 2, 5],
      [4, 5, 6, 3],
      [1, 4, 0, 2],
      [0, 1, 5, 7],
      [6, 1, 2, 3],
      [5, 4, 3, 7],
    ]
  ),
  cell=np.array([[0], [1], [2], [3], [1], [2], [0], [3]]),
  mask=np.array([[1], [1], [1], [0], [1], [1], [1], [1]], np.float32),
)


LAYOUTS = {"packed": PACKED, "independent": INDEPENDENT}


def rotated(layout, offset):
  """The same places, other images: so that the groups differ."""
  return layout._replace(tiles=(layout.tiles + offset) % 8)


def fixed(layout):
  """A mode of composing that draws nothing."""

  def mode(key, contains, target, mask):
    del key, contains, mask
    rolled = rotated(layout, target[0])
    return jax.tree.map(jnp.asarray, rolled)

  return mode


def closed_form(features, kernel, target, pooling):
  """Normalised element-wise Grad-CAM of one image: [h w]."""
  height, width, channels = features.shape
  if pooling == "max":
    cells = jax.lax.stop_gradient(features).reshape(-1, channels)
    at_maxima = jax.nn.one_hot(jnp.argmax(cells, 0), height * width, axis=0)
    features = features * at_maxima.reshape(features.shape)
  else:
    features = features / (height * width)
  cam = jax.nn.relu((features * kernel[:, target][None, None]).sum(-1))
  return cam / (cam.sum() + 1e-8) + 1e-8


def composites_by_hand(images, layout):
  """Whole groups of eight, composite by composite."""
  composites = []
  for g in range(2):
    group = images[8 * g : 8 * g + 8]
    for tiles in rotated(layout, LABEL[8 * g]).tiles:
      rows = [
        np.concatenate([group[tiles[i]], group[tiles[i + 1]]], axis=1)
        for i in (0, 2)
      ]
      composites.append(np.concatenate(rows, axis=0))
  return np.stack(composites)


def consistency_by_hand(features, composite_features, kernel, pooling, layout):
  """The mean over unmasked pairs of the mean distance between the maps."""
  size = features.shape[1]
  total, count = 0.0, 0.0
  composite = 0
  for g in range(2):
    rolled = rotated(layout, LABEL[8 * g])
    for tiles, cells, valid in zip(*rolled, strict=True):
      for cell, counts in zip(cells, valid, strict=True):
        image = 8 * g + tiles[cell]
        own = closed_form(features[image], kernel, LABEL[image], pooling)
        row, column = divmod(int(cell), 2)
        expected = (
          jnp.zeros((2 * size, 2 * size))
          .at[
            row * size : (row + 1) * size, column * size : (column + 1) * size
          ]
          .set(own)
        )
        cam = closed_form(
          composite_features[composite], kernel, LABEL[image], pooling
        )
        total += counts * jnp.abs(expected - cam).mean()
        count += counts
      composite += 1
  return total / count


@functools.cache
def step_with(mode, pooling, make_tiny, stop_gradient=False):
  """The state after a step with a fixed layout, and its metrics."""
  goal = objective(
    mode=mode,
    groups=2,
    classification_weight=0.5,
    stop_gradient=stop_gradient,
  )
  step, state = make_step(make_tiny(pooling), goal)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(compose.MODES, mode, fixed(LAYOUTS[mode]))
    return jax.jit(step)(state, single_label())


@pytest.fixture(
  scope="module",
  params=[("packed", "average"), ("packed", "max"), ("independent", "average")],
  ids="-".join,
)
def case(request, make_tiny):
  """One step with a fixed layout, and the features it should have seen."""
  mode, pooling = request.param
  layout = LAYOUTS[mode]
  after, metrics = step_with(mode, pooling, make_tiny)
  model = make_tiny(pooling)
  model.train()
  images = model.normalize(jnp.asarray(pixels()))
  composites = jnp.asarray(composites_by_hand(np.asarray(images), layout))
  return types.SimpleNamespace(
    pooling=pooling,
    layout=layout,
    after=after,
    metrics=metrics,
    model=model,
    kernel=model.fc.kernel[...],
    images=images,
    composites=composites,
    features=model.features(images),
    composite_features=model.features(composites),
  )


def test_the_consistency_loss_is_what_a_hand_computes(case):
  by_hand = consistency_by_hand(
    case.features,
    case.composite_features,
    case.kernel,
    case.pooling,
    case.layout,
  )
  assert by_hand > 1e-3
  # Batch statistics and sums in another order of float32 operations.
  assert mean(case.metrics, "consistency_loss") == pytest.approx(
    float(by_hand), rel=1e-4
  )
  frac = 1 - case.layout.mask.mean()
  assert mean(case.metrics, "masked_pairs_frac") == pytest.approx(frac)


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_the_loss_is_the_weighted_sum_of_its_terms(case):
  logits = np.asarray(case.model.classify(case.features), np.float64)
  by_hand = -log_softmax(logits)[np.arange(16), LABEL].mean()
  classification = mean(case.metrics, "classification_loss")
  assert classification == pytest.approx(by_hand, rel=1e-4)
  assert mean(case.metrics, "loss") == pytest.approx(
    0.5 * classification + WEIGHT * mean(case.metrics, "consistency_loss"),
    rel=1e-5,
  )
  assert mean(case.metrics, "consistency_weight") == WEIGHT


def test_the_logged_gradients_are_those_of_each_term_alone(case):
  """With respect to the originals' features, weights included."""
  logits = np.asarray(case.model.classify(case.features), np.float64)
  error = np.exp(log_softmax(logits)) - np.eye(NUM_CLASSES)[LABEL]
  pooled = 0.5 * error / 16 @ np.asarray(case.kernel).T
  # Each channel's share goes to 16 cells alike, or all of it to one.
  norm = np.linalg.norm(pooled) / (4 if case.pooling == "average" else 1)
  logged = mean(case.metrics, "grad_norm_features/classification")
  assert logged == pytest.approx(norm, rel=1e-4)

  grad = jax.grad(consistency_by_hand)(
    case.features,
    case.composite_features,
    case.kernel,
    case.pooling,
    case.layout,
  )
  norm = WEIGHT * np.linalg.norm(grad)
  logged = mean(case.metrics, "grad_norm_features/consistency")
  # Signs of differences near zero may fall either way in float32.
  assert logged == pytest.approx(norm, rel=1e-3)


def test_running_statistics_see_originals_first_then_composites(case):
  """Running <- 0.9 (0.9 running + 0.1 originals) + 0.1 composites."""
  originals, composites = (
    np.asarray(case.model.conv1(x)) for x in (case.images, case.composites)
  )
  running = case.after.batch_stats["bn1"]
  unbiased = functools.partial(np.var, ddof=1)
  for name, start, of in (("mean", 0, np.mean), ("var", 1, unbiased)):
    first, second = of(originals, (0, 1, 2)), of(composites, (0, 1, 2))
    expected = 0.81 * start + 0.09 * first + 0.1 * second
    # The variance is a difference of float32 means.
    np.testing.assert_allclose(
      running[name][...], expected, rtol=1e-5, atol=1e-5
    )
    assert np.abs(0.01 * (first - second)).max() > 1e-4  # the order shows


def test_a_step_is_counted_and_moves_every_parameter(case):
  assert case.after.step == 1
  before = nnx.state(case.model, nnx.Param)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), before, case.after.params
  )
  assert all(jax.tree.leaves(moved))


def test_a_fixed_target_has_the_same_loss_and_another_gradient(make_tiny):
  free, free_metrics = step_with("packed", "average", make_tiny)
  stopped, stopped_metrics = step_with("packed", "average", make_tiny, True)
  for name in ("loss", "consistency_loss", "classification_loss"):
    assert mean(free_metrics, name) == pytest.approx(
      mean(stopped_metrics, name), rel=1e-5
    )
  assert mean(free_metrics, "grad_norm_features/consistency") > 1e-3
  assert mean(stopped_metrics, "grad_norm_features/consistency") == 0
  kernels = [s.params["fc"]["kernel"][...] for s in (free, stopped)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def energy_by_hand(kernel, features, batch, pooling):
  """The mean over images with an object of the mass outside of it."""
  outside = []
  for i, mask in enumerate(np.asarray(batch["object_mask"])):
    if not mask.any() or not batch["mask"][i]:
      continue
    cam = closed_form(features[i], kernel, batch["target"][i], pooling)
    covered = mask.reshape(4, 4, 4, 4).mean((1, 3))  # of cells of 4 x 4 pixels
    outside.append(1 - (cam * covered).sum() / cam.sum())
  return sum(outside) / len(outside)


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("several", [False, True])
def test_energy_and_its_gradients_are_what_a_hand_computes(
  make_tiny, pooling, several
):
  """Of the head's weights it has one through the map's own gradient alone."""
  if several:
    labels = np.eye(NUM_CLASSES, dtype=int)[LABEL]
    labels[:, 3] = 1
    batch = with_objects(multi_label(labels), np.where(LABEL % 2, 3, LABEL))
  else:
    batch = with_objects(single_label())
  batch["mask"] = batch["mask"].at[5].set(0)
  goal = objective(terms=("energy",), classification_weight=0.0)
  step, state = make_step(make_tiny(pooling), goal)
  after, metrics = jax.jit(step)(state, batch)

  model = make_tiny(pooling)
  model.train()
  features = model.features(model.normalize(batch["image"]))
  kernel = model.fc.kernel[...]
  loss, (of_kernel, of_features) = jax.value_and_grad(
    energy_by_hand, argnums=(0, 1)
  )(kernel, features, batch, pooling)
  assert 0.2 < loss < 0.95
  assert mean(metrics, "energy_loss") == pytest.approx(float(loss), rel=1e-4)
  assert mean(metrics, "loss") == pytest.approx(WEIGHT * float(loss), rel=1e-4)
  assert mean(metrics, "energy_weight") == WEIGHT
  # Three without an object, one of padding.
  assert metrics["train/energy_masked_frac"] == (4, 16)
  logged = mean(metrics, "grad_norm_features/energy")
  norm = WEIGHT * np.linalg.norm(of_features)
  assert logged == pytest.approx(norm, rel=1e-3) and norm > 1e-3
  moved = kernel - after.params["fc"]["kernel"][...]
  assert np.abs(moved).max() > 1e-4
  np.testing.assert_allclose(
    moved, WEIGHT * of_kernel, atol=1e-3 * np.abs(moved).max()
  )


def test_a_map_whose_gradient_is_stopped_teaches_the_head_nothing(
  make_tiny, monkeypatch
):
  """The control of the test before: what the head learns is second order."""
  free = cams.class_gradients
  monkeypatch.setattr(
    cams, "class_gradients", lambda *args: jax.lax.stop_gradient(free(*args))
  )
  goal = objective(terms=("energy",), classification_weight=0.0)
  step, state = make_step(make_tiny(), goal)
  after, metrics = jax.jit(step)(state, with_objects(single_label()))
  before = state.params["fc"]["kernel"][...]
  np.testing.assert_array_equal(before, after.params["fc"]["kernel"][...])
  assert mean(metrics, "grad_norm_features/energy") > 1e-3


def test_the_loss_of_a_recipe_with_two_terms_is_the_sum_of_three(make_tiny):
  goal = objective(terms=("consistency", "energy"), groups=2)
  step, state = make_step(make_tiny(), goal)
  _, metrics = jax.jit(step)(state, with_objects(single_label()))
  parts = [
    mean(metrics, f"{name}_loss")
    for name in ("classification", "consistency", "energy")
  ]
  assert min(parts) > 1e-3
  assert mean(metrics, "loss") == pytest.approx(
    parts[0] + WEIGHT * (parts[1] + parts[2]), rel=1e-5
  )
  assert {
    "train/consistency_weight",
    "train/energy_weight",
    "train/masked_pairs_frac",
    "train/energy_masked_frac",
    "train/grad_norm_features/consistency",
    "train/grad_norm_features/energy",
  } < metrics.keys()


def test_a_term_that_the_step_never_heard_of_is_minimised(
  make_tiny, monkeypatch
):
  """The least there is to say of one: every image counts, nothing is drawn."""
  toy = Term(
    title="the mass of the map",
    fields=Fields(
      weight=Field("toy_weight", 0.0), ramp=Field("toy_ramp_epochs", 0.0)
    ),
    losses=lambda settings, seen, drawn, key: seen.cam().sum((1, 2)),
    masked="toy_masked_frac",
  )
  monkeypatch.setitem(guidance.TERMS, "toy", toy)
  goal = Objective(NUM_CLASSES, {"toy": NoSettings()}, accumulate_steps=2)
  step, state = make_step(make_tiny(), goal, lr=0.01)
  step, seen = jax.jit(step), []
  batch = single_label()
  batch["mask"] = batch["mask"].at[3].set(0)
  for _ in range(4):
    state, metrics = step(state, batch)
    seen.append(mean(metrics, "toy_loss"))
    assert metrics["train/toy_masked_frac"] == (1, 16)
    assert mean(metrics, "loss") == pytest.approx(
      mean(metrics, "classification_loss") + WEIGHT * seen[-1], rel=1e-5
    )
  assert seen[0] > seen[-1] > 0


def test_without_any_object_energy_is_nothing_and_finite(make_tiny):
  batch = with_objects(single_label())
  batch["object_mask"] = jnp.zeros_like(batch["object_mask"])
  goal = objective(terms=("energy",))
  step, state = make_step(make_tiny(), goal)
  after, metrics = jax.jit(step)(state, batch)
  assert metrics["train/energy_loss"] == (0, 0)
  assert metrics["train/energy_masked_frac"] == (16, 16)
  assert mean(metrics, "loss") == mean(metrics, "classification_loss")
  assert mean(metrics, "grad_norm_features/energy") == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize(
  "mode, pooling, terms",
  [
    ("packed", "max", ("consistency", "energy")),
    ("independent", "average", ("consistency",)),
  ],
)
def test_the_gradient_is_the_finite_difference(
  make_tiny, monkeypatch, mode, pooling, terms
):
  """Of the whole loss, in float64, along three random directions.

  Where the code says float32 it means "not bfloat16"; here it gets float64.
  """
  with jax.enable_x64(True):
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    model = make_tiny(pooling, dtype=jnp.float64)
    nnx.update(
      model,
      jax.tree.map(lambda x: x.astype(jnp.float64), nnx.state(model)),
    )
    step, state = make_step(model, objective(terms, mode=mode, groups=2))
    step = jax.jit(step)
    batch = with_objects(single_label())
    after, metrics = step(state, batch)
    assert metrics["train/loss"][0].dtype == jnp.float64
    grads = jax.tree.map(jnp.subtract, state.params, after.params)

    def loss_at(distance, direction):
      params = jax.tree.map(
        lambda p, d: p + distance * d, state.params, direction
      )
      moved = dataclasses.replace(state, params=params)
      return float(step(moved, batch)[1]["train/loss"][0])

    rng = np.random.default_rng(0)
    h = 3e-7  # no unit switches on or off on so short a way
    for _ in range(3):
      direction = jax.tree.map(lambda x: rng.normal(size=x.shape), grads)
      products = jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)
      slope = float(sum(jax.tree.leaves(products)))
      measured = (loss_at(h, direction) - loss_at(-h, direction)) / (2 * h)
      # The rounding of a loss of some units, 1e-15, over h; h^2 is less.
      assert measured == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_supplied_distractors_are_composed_as_those_of_the_batch(
  make_tiny, monkeypatch
):
  """The same pictures, brought along: the same loss, the same update."""
  expected, expected_metrics = step_with("independent", "average", make_tiny)
  distractors = np.zeros((16, 3, 16, 16, 3), np.uint8)
  counts = np.zeros(16, np.float32)
  tiles, cells = np.zeros((2, 8, 4), int), np.zeros((2, 8, 1), int)
  for g in range(2):
    layout = rotated(INDEPENDENT, LABEL[8 * g])
    for row, (cell,), (mask,) in zip(*layout, strict=True):
      image = row[cell]
      distractors[8 * g + image] = pixels()[8 * g + np.delete(row, cell)]
      # 2 tells the second group from the first; any above 0 counts.
      counts[8 * g + image] = mask * (g + 1)
      others = 8 + 3 * image + np.arange(3)
      tiles[g, image] = np.insert(others, cell, image)
      cells[g, image] = cell

  def supplied(key, mask):
    del key
    g = (mask.max() > 1).astype(int)
    valid = (mask[:, None] > 0).astype(jnp.float32)
    return compose.Layout(jnp.asarray(tiles)[g], jnp.asarray(cells)[g], valid)

  monkeypatch.setattr(compose, "supplied", supplied)
  goal = objective(mode="independent", groups=2, classification_weight=0.5)
  step, state = make_step(make_tiny("average"), goal)
  after, metrics = jax.jit(step)(
    state, single_label() | supplied_with(distractors, counts)
  )
  for name in expected_metrics:
    # Composites come in another order: float32 sums over the batch.
    assert mean(metrics, name.removeprefix("train/")) == pytest.approx(
      mean(expected_metrics, name.removeprefix("train/")), rel=1e-4
    )
  for leaf, other in zip(
    jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True
  ):
    np.testing.assert_allclose(leaf, other, atol=1e-4)


def supplied_with(distractors, counts, target=LABEL):
  """Entries of a batch that brings its distractors along."""
  return {
    "distractors": jnp.asarray(distractors),
    "distractor_mask": jnp.asarray(counts, jnp.float32),
    "target": jnp.asarray(target, jnp.int32),
  }


def test_skipped_pictures_are_counted(make_tiny):
  step, state = make_step(make_tiny(), objective(terms=()))
  skipped = jnp.zeros(16).at[3].set(2)
  _, metrics = jax.jit(step)(state, single_label() | {"skipped": skipped})
  assert metrics["train/skipped_frac"] == (2, 16)


# Several present classes.


@pytest.fixture(scope="module")
def unlabelled(make_tiny):
  """A step on six images of different classes and two of none."""
  labels = np.zeros((8, NUM_CLASSES), int)
  labels[range(6), [1, 2, 3, 4, 5, 9]] = [1, 2, 1, 1, 3, 1]
  labels[1, 8] = 2
  step, state = make_step(make_tiny("max"), objective())
  after, metrics = jax.jit(step)(state, multi_label(labels))
  return labels, after, metrics


def test_an_image_without_a_class_is_classified_but_not_explained(unlabelled):
  _, after, metrics = unlabelled
  assert metrics["train/masked_pairs_frac"] == (2, 8)
  assert metrics["train/consistency_loss"][1] == 6
  assert metrics["train/classification_loss"][1] == 8
  for leaf in jax.tree.leaves(after):
    assert np.isfinite(leaf).all()


def test_several_labels_are_classified_by_binary_cross_entropy(
  unlabelled, make_tiny
):
  labels, _, metrics = unlabelled
  model = make_tiny("max")
  model.train()
  features = model.features(model.normalize(jnp.asarray(pixels(8))))
  logits = np.asarray(model.classify(features), np.float64)
  present = labels > 0
  by_hand = np.log1p(np.exp(np.where(present, -logits, logits))).mean()
  assert mean(metrics, "classification_loss") == pytest.approx(
    by_hand, rel=1e-4
  )


# What is compiled.


# name -> fields of the objective, for a batch of 32
VARIANTS = {
  "independent": {"mode": "independent"},
  "grouped": {"bn_group": 8},  # one group on each of four devices
  "grouped over two devices": {"bn_group": 16},
  "two terms, accumulated": {
    "terms": ("consistency", "energy"),
    "accumulate_steps": 2,
    "bn_group": 4,
    "remat": True,
  },
}
MODES = [*compose.MODES, "supplied", *list(VARIANTS)[1:]]


@pytest.fixture(scope="module")
def compiled(make_tiny):
  """The step compiled for some devices, its state, and a batch of 32."""
  cache = {}

  def compile_step(mode, num_devices):
    if (mode, num_devices) in cache:
      return cache[mode, num_devices]
    supplied = mode == "supplied"
    kind = "independent" if supplied else "packed"
    goal = objective(**{"mode": kind, "groups": 4} | VARIANTS.get(mode, {}))
    step, state = make_step(make_tiny("max"), goal, lr=0.1)
    mesh = jax.make_mesh((num_devices,), ("data",), (AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("data"))
    batch = single_label(np.tile(LABEL, 2))
    if supplied:
      distractors = pixels(96, seed=1).reshape(32, 3, 16, 16, 3)
      batch |= supplied_with(distractors, np.ones(32), np.tile(LABEL, 2))
    if "energy" in goal.terms:
      batch = with_objects(batch, np.tile(LABEL, 2))
    batch = jax.device_put(batch, divided)
    state = jax.device_put(state, everywhere)
    jitted = jax.jit(step, out_shardings=everywhere)
    cache[mode, num_devices] = (
      jitted.lower(state, batch).compile(),
      state,
      batch,
    )
    return cache[mode, num_devices]

  return compile_step


def abstract(name):
  """An architecture's structure, and the shapes of its variables."""
  make = lambda key: models.create(name, NUM_CLASSES, key=key)
  model = nnx.eval_shape(make, models.init_key(0))
  return nnx.split(model, nnx.Param, ...)


def compiled_for(name, side=64, **fields):
  """The step of an architecture on 8 pictures, not to be run."""
  graphdef, params, batch_stats = abstract(name)
  tx = optax.sgd(0.1, momentum=0.9)
  goal = objective(**fields)
  weights = dict.fromkeys(goal.terms, lambda _: jnp.ones(()))
  step = steps.make_train_step(graphdef, tx, goal, weights, jax.random.key(0))
  state = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    params,
    batch_stats,
    jax.eval_shape(tx.init, params),
  )
  batch = {
    "image": jax.ShapeDtypeStruct((8, side, side, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    "mask": jax.ShapeDtypeStruct((8,), jnp.float32),
    "object_mask": jax.ShapeDtypeStruct((8, side, side), jnp.bool_),
  }
  return jax.jit(step).lower(state, batch).compile()


def shapes(text):
  """The sizes of every array that a line of HLO produces."""
  dims = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]", text)
  return [tuple(map(int, filter(None, d.split(",")))) for d in dims]


@pytest.mark.parametrize(
  "name, side",
  [
    (quickstart.get_config().model.name, 64),
    # Four compilations.
    pytest.param("resnet18", 224, marks=pytest.mark.large),
  ],
)
def test_a_step_costs_one_plain_step_two_or_five(name, side):
  """Energy passes nothing more through the network; consistency passes once
  more, over B / 4 composites of four images or over B.
  """
  steps_of = {
    "plain": compiled_for(name, side, terms=()),
    "energy": compiled_for(name, side, terms=("energy",)),
    **{mode: compiled_for(name, side, mode=mode) for mode in compose.MODES},
  }
  flops = {k: step.cost_analysis()["flops"] for k, step in steps_of.items()}
  assert 1 < flops["energy"] / flops["plain"] < 1.01
  assert 2 < flops["packed"] / flops["plain"] <= 2.05
  # Above 5: the larger the picture, the fewer of a kernel's cells fall off it.
  assert 4.5 <= flops["independent"] / flops["plain"] < 6

  for mode, step in steps_of.items():
    composite = (2 * side, 2 * side, 3)
    made = any(s[1:] == composite for s in shapes(step.as_text()))
    assert made == (mode in compose.MODES)  # without the loss, no composite


@pytest.mark.parametrize("mode", MODES)
def test_four_devices_compute_what_one_does(compiled, mode):
  losses = {}
  for num_devices in (1, 4):
    step, state, batch = compiled(mode, num_devices)
    for _ in range(3):
      state, metrics = step(state, batch)
      for name in ("loss", "classification_loss", "consistency_loss"):
        losses.setdefault(num_devices, []).append(mean(metrics, name))
  # Float32 sums in another order, through three updates.
  np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_no_image_crosses_from_device_to_device(compiled, mode):
  """What is exchanged is smaller than one picture of 16 x 16 x 3."""
  found = exchanges(compiled(mode, 4)[0].as_text())
  # Gradients, at least.
  assert any(each.kind == "all-reduce" for each in found)
  for each in found:
    for shape in each.shapes:
      assert np.prod(shape, dtype=int) < 16 * 16 * 3, each


DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\(")


def exchanged_before_a_convolution(text):
  """Sizes of exchanged arrays, more than one number, that one depends on."""
  computations = re.split(r"\n(?=\S)", text)
  convolving = {
    re.match(r"(?:ENTRY )?%?([\w.-]+)", body)[1]
    for body in computations
    if re.search(r" convolution\(", body)
  }
  found = []
  for body in computations:
    lines = [line for line in body.splitlines() if DEFINED.match(line)]
    reached = {}  # instruction -> sizes it depends on
    for line in lines:
      name, produced, kind = DEFINED.match(line).groups()
      names = set(re.findall(r"%([\w.-]+)", line.partition("=")[2]))
      sizes = set().union(*(reached.get(other, set()) for other in names))
      if kind == "convolution" or names & convolving:
        found += sizes
      if is_exchange(kind):
        exchanged = [s for s in shapes(produced) if np.prod(s, dtype=int) > 1]
        # Of several that travel together, each is told apart below.
        sizes = sizes if produced.startswith("(") else sizes | {*exchanged}
      elif kind == "get-tuple-element" and names & tuples(lines):
        sizes = sizes | {s for s in shapes(produced) if np.prod(s) > 1}
      reached[name] = sizes
  return found


def is_exchange(kind):
  return kind.removesuffix("-start") in KINDS


def tuples(lines):
  """Names of exchanges of several arrays at once."""
  return {
    DEFINED.match(line)[1]
    for line in lines
    if is_exchange(DEFINED.match(line)[3]) and DEFINED.match(line)[2][0] == "("
  }


def test_with_a_group_a_device_no_layer_waits_for_another_device(compiled):
  """Gradients, running statistics and counts: nothing else is exchanged."""
  step, state, _ = compiled("grouped", 4)
  text = step.as_text()
  assert not exchanged_before_a_convolution(text)
  found = exchanges(text)
  assert {each.kind for each in found} == {"all-reduce"}
  count = sum(
    np.prod(shape, dtype=int) for each in found for shape in each.shapes
  )
  gradients = build.num_params(state)
  statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
  # Of originals and of composites, where the compiler does not add them up
  # first; and a handful of sums.
  assert gradients <= count <= 2 * gradients + 4 * statistics + 20
  # The same reading of a step with statistics of the whole batch sees them.
  assert (1, 8) in exchanged_before_a_convolution(
    compiled("packed", 4)[0].as_text()
  )


# A batch in parts, or in groups: what it computes, and what it holds.


def make_chain(dropout_rate=0.0):
  """A net without BatchNorm; pictures of 16 pixels give 4x4 cells."""
  return chain.Chain(
    ((4, 3, 2, 1), chain.POOL),
    NUM_CLASSES,
    pool_window=2,
    grid=2,
    hidden=8,
    drops_features=True,
    dropout_rate=dropout_rate,
    conv_init=network.TORCH_INIT,
    linear_init=network.TORCH_INIT,
    rngs=nnx.Rngs(models.init_key(0)),
  )


def interleaved(tree, num_parts):
  """The batch of which the parts are the contiguous ones of `tree`."""
  return jax.tree.map(
    lambda x: (
      x.reshape(num_parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    ),
    tree,
  )


def assert_same_update(ours, theirs, atol=1e-6):
  (after, metrics), (expected, expected_metrics) = ours, theirs
  for leaf, other in zip(
    jax.tree.leaves(after), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=atol)
  assert metrics.keys() == expected_metrics.keys()
  for name in metrics:
    np.testing.assert_allclose(
      metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name
    )


def test_four_parts_update_as_one_batch_does_padding_included():
  """At a rate of 1 parameters fall by the gradient: here to 1e-6."""
  batch = single_label()
  # Padding falls unevenly on the parts: 4, 3, 2 and 3 images count.
  batch["mask"] = batch["mask"].at[jnp.array([1, 2, 6, 15])].set(0)
  results = []
  for parts in (1, 4):
    goal = objective(terms=(), accumulate_steps=parts)
    step, state = make_step(make_chain(), goal)
    results.append(jax.jit(step)(state, batch))
  assert_same_update(*results)
  assert results[1][1]["train/classification_loss"][1] == 12


def test_pictures_with_an_object_weigh_alike_in_whichever_part_they_are():
  """Of the parts 4, 1, 2 and 2 count: not the mean of the parts' means."""
  batch = with_objects(single_label())
  batch["mask"] = batch["mask"].at[jnp.array([1, 5, 9, 6])].set(0)
  results = []
  for parts in (1, 4):
    goal = objective(terms=("energy",), accumulate_steps=parts)
    step, state = make_step(make_chain(), goal)
    results.append(jax.jit(step)(state, batch))
  assert_same_update(*results)
  assert results[1][1]["train/energy_loss"][1] == 9


def uneven(layout):
  """Fixed, with five pairs masked where the first image is not of class 0."""

  def mode(key, contains, target, mask):
    drawn = fixed(layout)(key, contains, target, mask)
    fewer = drawn.mask.at[1].set(0)
    return drawn._replace(
      mask=jnp.where(target[0] == LABEL[0], drawn.mask, fewer)
    )

  return mode


def test_two_parts_update_as_two_groups_of_one_batch_do(monkeypatch):
  """Each pair weighs the same, in whichever part and among however many."""
  monkeypatch.setitem(compose.MODES, "packed", uneven(PACKED))
  batch = single_label()
  results = []
  for parts in (1, 2):
    goal = objective(groups=2 // parts, accumulate_steps=parts)
    step, state = make_step(make_chain(), goal)
    # The groups are contiguous, the parts are taken in turns.
    results.append(jax.jit(step)(state, interleaved(batch, parts)))
  assert results[0][1]["train/consistency_loss"][1] == 7 + 3
  assert_same_update(*results)


def test_the_parts_of_a_batch_draw_composites_and_dropout_of_their_own():
  """Two parts of the same images: two losses, not one twice."""
  batch = jax.tree.map(lambda x: jnp.repeat(x[:8], 2, axis=0), single_label())

  def step_on(batch, parts):
    goal = objective(accumulate_steps=parts)
    step, state = make_step(make_chain(dropout_rate=0.5), goal)
    return jax.jit(step)(state, batch)[1]["train/classification_loss"]

  total, count = step_on(batch, 2)
  assert count == 16
  half, _ = step_on(jax.tree.map(lambda x: x[::2], batch), 1)
  assert abs(float(total - 2 * half)) > 1e-3


def test_groups_and_parts_are_normalized_each_by_itself(make_tiny, monkeypatch):
  """A group: half a gradient of each, and the mean of running statistics.

  A part: the same gradients, but running statistics of one after the other.
  """
  full = PACKED._replace(mask=np.ones_like(PACKED.mask))
  monkeypatch.setitem(compose.MODES, "packed", fixed(full))
  batch = single_label()
  halves = [jax.tree.map(lambda x, i=i: x[i : i + 8], batch) for i in (0, 8)]
  step, start = make_step(make_tiny("max"), objective(groups=1))
  step = jax.jit(step)
  alone = [step(start, half) for half in halves]
  mean_of = lambda *x: sum(x) / len(x)
  params = jax.tree.map(mean_of, *(state.params for state, _ in alone))

  goal = objective(groups=2, bn_group=8)
  grouped, metrics = jax.jit(make_step(make_tiny("max"), goal)[0])(start, batch)
  goal = objective(accumulate_steps=2)
  accumulated, of_parts = jax.jit(make_step(make_tiny("max"), goal)[0])(
    start, interleaved(batch, 2)
  )
  for state in (grouped, accumulated):
    for leaf, other in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
    ):
      # The division by a variance, in another order of float32 sums.
      np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-4)
  for name in ("loss", "classification_loss", "consistency_loss"):
    expected = np.mean([mean(own, name) for _, own in alone])
    assert mean(metrics, name) == pytest.approx(expected, rel=1e-5)
    assert mean(of_parts, name) == pytest.approx(expected, rel=1e-5)

  in_turns, _ = step(
    dataclasses.replace(start, batch_stats=alone[0][0].batch_stats), halves[1]
  )
  statistics = jax.tree.map(mean_of, *(state.batch_stats for state, _ in alone))
  for found, expected, batches in (
    (grouped.batch_stats, statistics, 2),
    (accumulated.batch_stats, in_turns.batch_stats, 4),
  ):
    for name in ("mean", "var"):
      np.testing.assert_allclose(
        found["bn1"][name][...], expected["bn1"][name][...], rtol=1e-5
      )
    assert found["bn1"]["num_batches_tracked"][...] == batches


@pytest.mark.parametrize("mode", compose.MODES)
def test_what_is_computed_anew_gives_the_same_update(make_tiny, mode):
  results = []
  for remat in (False, True):
    goal = objective(mode=mode, groups=2, remat=remat)
    step, state = make_step(make_tiny("average"), goal, lr=0.1)
    batch = single_label()
    assert ("remat" in str(jax.make_jaxpr(step)(state, batch))) == remat
    results.append(jax.jit(step)(state, batch))
  assert_same_update(*results)


def test_the_parts_of_a_batch_need_less_memory():
  name = quickstart.get_config().model.name
  whole, parts = (
    compiled_for(name, accumulate_steps=count).memory_analysis()
    for count in (1, 2)
  )
  assert parts.temp_size_in_bytes < whole.temp_size_in_bytes


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vgg16"])
def test_recomputation_keeps_a_third_less_for_the_backward_pass(name):
  """Of what jax keeps: XLA's CPU compiler merges what is computed twice."""
  graphdef, params, rest = abstract(name)
  images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)

  def kept(remat):
    def features(params, rest, images):
      model = nnx.merge(graphdef, params, rest, copy=True)
      model.train(remat=remat)
      return model.features(images)

    backward = jax.eval_shape(
      lambda *args: jax.vjp(features, *args)[1], params, rest, images
    )
    variables = {leaf.shape for leaf in jax.tree.leaves((params, rest))}
    return sum(
      leaf.size
      for leaf in jax.tree.leaves(backward)
      if leaf.shape not in variables
    )

  assert 0 < kept(True) < 2 / 3 * kept(False)


# Dropout.


def test_the_originals_are_dropped_out_once_and_composites_anew(monkeypatch):
  """Logits and map of the originals come from one forward pass."""
  model = chain.Chain(
    ((4, 3, 2, 1), chain.POOL),
    NUM_CLASSES,
    pool_window=3,
    grid=1,
    hidden=8,
    drops_features=True,
    conv_init=network.TORCH_INIT,
    linear_init=network.TORCH_INIT,
    rngs=nnx.Rngs(models.init_key(0)),
  )
  calls, keys = itertools.count(), {}
  dropout = network.dropout

  def recorded(x, rate, key):
    record = functools.partial(keys.__setitem__, next(calls))
    jax.debug.callback(
      lambda data: record(tuple(np.asarray(data))), jax.random.key_data(key)
    )
    return dropout(x, rate, key)

  monkeypatch.setattr(network, "dropout", recorded)
  step, state = make_step(model, objective(groups=2))
  step = jax.jit(step)
  state, _ = step(state, single_label())
  jax.effects_barrier()
  # Two layers each: the logits, the originals' maps, the composites'.
  first = [keys[i] for i in range(6)]
  assert first[:2] == first[2:4]
  assert len(keys) == 6 and len(set(first)) == 4
  keys.clear()
  step(state, single_label())
  jax.effects_barrier()
  assert keys and not set(first) & set(keys.values())  # another step, others
