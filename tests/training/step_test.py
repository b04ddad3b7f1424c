"""The numbers of a train step, recomputed and differentiated by hand."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import special

from gc_jax.method import cam as cams
from gc_jax.method import compose, losses
from gc_jax.method.fields import FIELDS, Field, Fields
from gc_jax.models import chain, network, pure_head
from gc_jax.training import composites, guidance
from gc_jax.training.step import gradients
from gc_jax.training.term import Term, elementwise_cam
from tests.training.small import (
  BY_CLASS,
  INDEPENDENT,
  LABEL,
  LAYOUTS,
  NUM_CLASSES,
  WEIGHT,
  assert_close,
  batch_of,
  fixed,
  make_chain,
  make_step,
  mean,
  pixels,
  recipe,
  rotated,
  run_step,
  with_distractors,
  with_objects,
)


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
    holds = rolled.holds
    if holds is None:
      holds = np.eye(4, dtype=bool)[rolled.cell]
    for tiles, cells, valid, held in zip(*rolled[:3], holds, strict=True):
      for cell, counts, held_by in zip(cells, valid, held, strict=True):
        image = 8 * g + tiles[cell]
        # The features of the holders in their cells; nothing in the others.
        grid = jnp.zeros((2 * size, 2 * size, features.shape[-1]))
        inside = np.zeros((2 * size, 2 * size), bool)
        for c in np.flatnonzero(held_by):
          row, column = divmod(int(c), 2)
          place = (
            slice(row * size, (row + 1) * size),
            slice(column * size, (column + 1) * size),
          )
          grid = grid.at[place].set(features[8 * g + tiles[c]])
          inside[place] = True
        own = closed_form(grid, kernel, LABEL[image], pooling)
        expected = jnp.where(inside, own, 0)
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
  config = recipe(
    "consistency",
    compose__mode=mode,
    groups=2,
    loss__classification_weight=0.5,
    loss__stop_gradient=stop_gradient,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(compose.MODES, mode, fixed(LAYOUTS[mode]))
    return run_step(make_tiny(pooling), config, batch_of())


@pytest.fixture(
  scope="module",
  params=[
    ("packed", "average"),
    ("packed", "max"),
    ("independent", "average"),
    ("packed_by_class", "average"),
    ("packed_by_class", "max"),
  ],
  ids="-".join,
)
def case(request, make_tiny):
  """One step with a fixed layout, and the features it should have seen."""
  mode, pooling = request.param
  after, metrics = step_with(mode, pooling, make_tiny)
  model = make_tiny(pooling)
  model.train()
  images = model.normalize(jnp.asarray(pixels()))
  composites = composites_by_hand(np.asarray(images), LAYOUTS[mode])
  composites = jnp.asarray(composites)
  return types.SimpleNamespace(
    pooling=pooling,
    masked_frac=1 - LAYOUTS[mode].mask.mean(),
    by_hand=functools.partial(
      consistency_by_hand,
      composite_features=model.features(composites),
      kernel=model.fc.kernel[...],
      pooling=pooling,
      layout=LAYOUTS[mode],
    ),
    after=after,
    metrics=metrics,
    model=model,
    kernel=model.fc.kernel[...],
    images=images,
    composites=composites,
    features=model.features(images),
  )


def test_the_consistency_loss_is_the_one_computed_by_hand(case):
  by_hand = case.by_hand(case.features)
  assert by_hand > 1e-3
  # Batch statistics and sums in another order of float32 operations.
  assert mean(case.metrics, "consistency_loss") == pytest.approx(
    float(by_hand), rel=1e-4
  )
  masked_frac = mean(case.metrics, "masked_pairs_frac")
  assert masked_frac == pytest.approx(case.masked_frac)


def test_the_loss_is_the_weighted_sum_of_its_terms(case):
  logits = np.asarray(case.model.classify(case.features), np.float64)
  by_hand = -special.log_softmax(logits, 1)[np.arange(16), LABEL].mean()
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
  error = special.softmax(logits, 1) - np.eye(NUM_CLASSES)[LABEL]
  pooled = 0.5 * error / 16 @ np.asarray(case.kernel).T
  # Each channel's share goes to 16 cells alike, or all of it to one.
  norm = np.linalg.norm(pooled) / (4 if case.pooling == "average" else 1)
  logged = mean(case.metrics, "grad_norm_features/classification")
  assert logged == pytest.approx(norm, rel=1e-4)

  norm = WEIGHT * np.linalg.norm(jax.grad(case.by_hand)(case.features))
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


@pytest.mark.parametrize(
  ("pooling", "several"), [("average", False), ("max", True)]
)
def test_energy_and_its_gradients_are_those_computed_by_hand(
  make_tiny, pooling, several
):
  """The head's weights have one through the map's own gradient alone."""
  batch = with_objects(batch_of())
  if several:
    labels = np.eye(NUM_CLASSES, dtype=int)[LABEL]
    labels[:, 3] = 1
    batch = with_objects(batch_of(labels=labels), np.where(LABEL % 2, 3, LABEL))
  batch["mask"] = batch["mask"].at[5].set(0)
  config = recipe("energy", loss__classification_weight=0.0)
  after, metrics = run_step(make_tiny(pooling), config, batch)

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
  config = recipe("energy", loss__classification_weight=0.0)
  step, state = make_step(make_tiny(), config)
  after, metrics = jax.jit(step)(state, with_objects(batch_of()))
  before = state.params["fc"]["kernel"][...]
  np.testing.assert_array_equal(before, after.params["fc"]["kernel"][...])
  assert mean(metrics, "grad_norm_features/energy") > 1e-3


def test_a_term_that_the_step_never_heard_of_is_minimised(
  make_tiny, monkeypatch
):
  """The shortest entry there is: every image counts, nothing is drawn."""
  fields = Fields(
    "mass of the map", Field("toy_weight", 0.0), Field("toy_ramp_epochs", 0.0)
  )
  toy = Term(
    fields=fields,
    losses=lambda settings, seen, drawn, key: seen.cam().sum((1, 2)),
    masked="toy_masked_frac",
  )
  monkeypatch.setitem(FIELDS, "toy", fields)
  monkeypatch.setitem(guidance.TERMS, "toy", toy)
  config = recipe("toy", accumulate_steps=2)
  step, state = make_step(make_tiny(), config, lr=0.01)
  step, seen = jax.jit(step), []
  batch = batch_of()
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
  batch = with_objects(batch_of())
  batch["object_mask"] = jnp.zeros_like(batch["object_mask"])
  after, metrics = run_step(make_tiny(), recipe("energy"), batch)
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
    ("packed_by_class", "max", ("consistency",)),
  ],
)
def test_the_gradient_is_the_finite_difference(make_tiny, mode, pooling, terms):
  """Of the whole loss, in float64, along three random directions."""
  with jax.enable_x64(True):
    model = make_tiny(pooling, dtype=jnp.float64)
    nnx.update(
      model,
      jax.tree.map(lambda x: x.astype(jnp.float64), nnx.state(model)),
    )
    step, state = make_step(model, recipe(*terms, compose__mode=mode, groups=2))
    step = jax.jit(step)
    batch = with_objects(batch_of())
    after, metrics = step(state, batch)
    assert metrics["train/loss"][0].dtype == jnp.float64
    by_terms = sum(WEIGHT * mean(metrics, f"{name}_loss") for name in terms)
    assert mean(metrics, "loss") == pytest.approx(
      mean(metrics, "classification_loss") + by_terms
    )
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
    for row, (cell,), (mask,) in zip(*layout[:3], strict=True):
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
  config = recipe(
    "consistency",
    compose__mode="independent",
    groups=2,
    loss__classification_weight=0.5,
  )
  batch = with_distractors(batch_of(), distractors, counts)
  after, metrics = run_step(make_tiny("average"), config, batch)
  for name in expected_metrics:
    # Composites come in another order: float32 sums over the batch.
    assert mean(metrics, name.removeprefix("train/")) == pytest.approx(
      mean(expected_metrics, name.removeprefix("train/")), rel=1e-4
    )
  assert_close(after.params, expected.params, atol=1e-4)


def test_images_of_several_classes_or_none_are_classified_but_not_all_explained(
  make_tiny,
):
  """Six of several classes, two of none; three broken pictures are counted."""
  labels = np.zeros((8, NUM_CLASSES), int)
  labels[range(6), [1, 2, 3, 4, 5, 9]] = [1, 2, 1, 1, 3, 1]
  labels[1, 8] = 2
  batch = batch_of(labels=labels) | {"skipped": jnp.zeros(8).at[3].set(3)}
  after, metrics = run_step(make_tiny("max"), recipe("consistency"), batch)
  assert metrics["train/masked_pairs_frac"] == (2, 8)
  assert metrics["train/consistency_loss"][1] == 6
  assert metrics["train/classification_loss"][1] == 8
  assert metrics["train/skipped_frac"] == (3, 8)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))

  model = make_tiny("max")
  model.train()
  features = model.features(model.normalize(batch["image"]))
  logits = np.asarray(model.classify(features), np.float64)
  by_hand = np.log1p(np.exp(np.where(labels > 0, -logits, logits))).mean()
  assert mean(metrics, "classification_loss") == pytest.approx(
    by_hand, rel=1e-4
  )


def test_the_originals_are_dropped_out_once_and_composites_anew(monkeypatch):
  """Logits and map of the originals come from one forward pass."""
  model = make_chain(pool_window=3, grid=1, dropout_rate=0.5)
  calls, keys = itertools.count(), {}
  dropout = network.dropout

  def recorded(x, rate, key):
    record = functools.partial(keys.__setitem__, next(calls))
    jax.debug.callback(
      lambda data: record(tuple(np.asarray(data))), jax.random.key_data(key)
    )
    return dropout(x, rate, key)

  monkeypatch.setattr(network, "dropout", recorded)
  step, state = make_step(model, recipe("consistency", groups=2))
  step = jax.jit(step)
  state, _ = step(state, batch_of())
  jax.effects_barrier()
  # Two layers each: the logits, the originals' maps, the composites'.
  first = [keys[i] for i in range(6)]
  assert first[:2] == first[2:4]
  assert len(keys) == 6 and len(set(first)) == 4
  keys.clear()
  step(state, batch_of())
  jax.effects_barrier()
  assert keys and not set(first) & set(keys.values())  # another step, others


# Handed to a loop of one's own.


def gradients_of(model, config, batch, layout=None):
  given = {} if layout is None else {"consistency": composites.given(layout)}
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  own = functools.partial(
    gradients, config, num_classes=NUM_CLASSES, given=given
  )
  return nnx.jit(own)(model, batch, key)


def assert_same_step(model, found, after, metrics):
  """Of a rate of 1; sums of float32 in another order."""
  values, grads = found
  for name in values:
    logged = name if name == "loss" else f"{name}_loss"
    assert float(values[name]) == pytest.approx(mean(metrics, logged), rel=1e-5)
  steps = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), after.params)
  scale = float(optax.tree.norm(grads))
  assert_close(grads, steps, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  ("mode", "pooling"),
  [
    ("packed", "max"),
    ("independent", "average"),
    ("packed_by_class", "max"),
  ],
)
def test_a_layout_that_is_handed_over_gives_the_gradient_of_its_step(
  make_tiny, mode, pooling
):
  halves = [rotated(LAYOUTS[mode], LABEL[8 * g]) for g in range(2)]
  halves[1] = halves[1]._replace(tiles=halves[1].tiles + 8)
  layout = jax.tree.map(lambda *x: np.concatenate(x), *halves)
  config = recipe("consistency", loss__classification_weight=0.5)
  model = make_tiny(pooling)
  found = gradients_of(model, config, batch_of(), layout)
  assert set(found[0]) == {"loss", "classification", "consistency"}
  assert_same_step(model, found, *step_with(mode, pooling, make_tiny))


def test_without_a_layout_the_gradient_is_that_of_the_steps_own_draws():
  model = make_chain(dropout_rate=0.5)
  config = recipe("consistency", "energy")
  batch = with_objects(batch_of())
  found = gradients_of(model, config, batch)
  assert_same_step(model, found, *run_step(model, config, batch))


def test_a_layout_needs_no_batch_that_the_mode_divides(make_tiny):
  """Six images, and one composite of four of them."""
  batch = batch_of(np.arange(6))
  layout = compose.Layout([[5, 0, 1, 2]], [[0]], [[1.0]])
  layout = compose.Layout(*map(np.array, layout[:3]))
  config = recipe("consistency", groups=2)
  values, _ = gradients_of(make_tiny(), config, batch, layout)
  assert values["consistency"] > 0


def small_squeezenet(pooling):
  """A map a class is pooled, behind a dropout; no BatchNorm."""
  return chain.SqueezeNet(
    NUM_CLASSES,
    chain=((4, 3, 2, 1), chain.POOL, (2, 3)),
    pooling=pooling,
    rngs=nnx.Rngs(0),
  )


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_where_all_hold_the_class_the_map_is_the_heads_of_all_features(
  pooling, monkeypatch
):
  monkeypatch.setattr(network, "dropout", lambda x, rate, key: x)
  model, batch = small_squeezenet(pooling), batch_of(np.array([1, 1, 2, 2]))
  layout = compose.Layout(
    np.array([[2, 0, 3, 1]]),
    np.array([[0, 1, 2, 3]]),
    np.ones((1, 4), np.float32),
    np.ones((1, 4, 4), bool),
  )
  found, _ = gradients_of(model, recipe("consistency"), batch, layout)
  images = model.normalize(batch["image"])
  target = batch["label"][layout.tiles]
  expected, seen = (
    cams.normalize_cam(elementwise_cam(pure_head(model), features, target))
    for features in (
      compose.assemble(layout, model.features(images)),
      model.features(compose.assemble(layout, images)),
    )
  )
  by_hand = losses.consistency_loss(expected, seen).mean()
  assert by_hand > 1e-4
  assert float(found["consistency"]) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("kind", ["average", "max", "perceptron", "dropped"])
def test_of_distinct_classes_both_packings_have_one_loss(make_tiny, kind):
  """Also of a perceptron after poolings that leave unequal grids."""
  model = {
    "average": make_tiny,
    "max": lambda: make_tiny("max"),
    "perceptron": lambda: make_chain(pool_window=3, dropout_rate=0.5),
    "dropped": lambda: small_squeezenet("max"),
  }[kind]()
  label = np.random.default_rng(0).permutation(NUM_CLASSES)[:8]
  contains = jax.nn.one_hot(label, NUM_CLASSES, dtype=bool)
  layout = compose.packed_by_class(
    jax.random.key(0), contains, jnp.asarray(label), jnp.ones(8)
  )
  config, batch = recipe("consistency"), batch_of(label)
  found, grads = gradients_of(model, config, batch, layout)
  # Without `holds`, equation 4.
  expected, expected_grads = gradients_of(
    model, config, batch, layout._replace(holds=None)
  )
  assert found["consistency"] > 0 and found.keys() == expected.keys()
  for name, loss in found.items():
    # A compiler may round the last digit of two programs in two ways.
    assert float(loss) == pytest.approx(float(expected[name]), rel=1e-6), name
  for leaf, other in zip(
    *map(jax.tree.leaves, (grads, expected_grads)), strict=True
  ):
    # Sums over the batch in another order.
    scale = float(jnp.abs(other).max())
    np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * scale)


def test_a_layout_with_holders_that_has_an_image_twice_is_refused(make_tiny):
  layout = BY_CLASS._replace(tiles=np.array([[3, 0, 7, 5], [1, 2, 6, 0]]))
  with pytest.raises(ValueError, match=r"one cell .*; image 0 is in 2\."):
    gradients_of(make_tiny(), recipe("consistency"), batch_of(), layout)


def test_a_layout_without_a_consistency_loss_is_refused(make_tiny):
  with pytest.raises(ValueError, match=r"\['energy'\]; consistency has none"):
    gradients_of(make_tiny(), recipe("energy"), batch_of(), LAYOUTS["packed"])


def test_a_gradient_by_groups_that_do_not_divide_the_batch_is_refused(
  make_tiny,
):
  for size in (3, 64):
    config = recipe("consistency")
    config.model.bn_group = size
    with pytest.raises(ValueError, match=f"bn_group={size} must divide the 16"):
      gradients_of(make_tiny(), config, batch_of())
