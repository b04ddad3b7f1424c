"""Every public function under every transformation, against the plain call.

A row is a function of arrays, and arrays. Transformations are its parameters;
each compares values, so that a function that only runs does not pass.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gc_jax
from gc_jax.attribution import METHODS
from gc_jax.data import geometry
from gc_jax.method import cam, compose, curves, losses, metrics
from gc_jax.method.types import GridAnnotation
from gc_jax.models import init_key
from gc_jax.models.resnet import ResNet, basic_block

B, K, KEY = 4, 5, jax.random.key(0)
RNG = np.random.default_rng(0)
FEATURES = RNG.random((B, 3, 4, 6), np.float32)
MAPS = RNG.random((B, 4, 4), np.float32)
PIXELS = RNG.random((B, 8, 8), np.float32)
IMAGES = RNG.random((B, 16, 16, 3), np.float32)
MASKS = RNG.random((B, 8, 8)) > 0.6
LOGITS = RNG.normal(size=(B, K)).astype(np.float32)
LABELS = np.arange(B, dtype=np.int32)
COUNTS = np.eye(K, dtype=np.int32)[LABELS] * 2
COUNTS[:, 4] = [0, 1, 0, 3]
ONES = np.ones(B, np.float32)
HEAD = RNG.normal(size=(6, K)).astype(np.float32)
TILES = np.array([[2, 0, 3, 1]] * B, np.int32)
CELLS = np.arange(B, dtype=np.int32)
FLAGS = np.eye(4, dtype=bool)[CELLS][:, None]


class Row(NamedTuple):
  """A function, its arrays (each with an axis of B), and what holds of it."""

  function: Callable
  arrays: tuple
  # Arrays that it is differentiated by; of others its value is a step.
  wrt: tuple[int, ...] = ()
  # What comes first and has no axis of B: the variables of a model.
  model: Any = ()
  # Stands for the function where derivatives are taken; None: itself.
  smooth: Callable | None = None


def layout(tiles, cell, holds=None):
  ones = jnp.ones((len(tiles), 1), jnp.float32)
  return compose.Layout(tiles, cell[:, None], ones, holds)


def classify(head, features):
  pooled = jnp.square(features).mean((1, 2))
  return pooled @ head.astype(pooled.dtype)


def annotated():
  near = [geometry.dilate(mask, 2.0) for mask in MASKS]
  found = map(
    lambda mask, near: geometry.on_grid(mask, near, (4, 4)), MASKS, near
  )
  return tuple(np.stack(each) for each in zip(*found, strict=True))


class TwoConvs(nnx.Module):
  """A network that a user might write."""

  def __init__(self, rngs):
    # No bias is 0, where FullGrad has a kink.
    bias = nnx.initializers.normal(0.3)
    conv = functools.partial(nnx.Conv, padding=1, bias_init=bias, rngs=rngs)
    self.conv1 = conv(3, 4, (3, 3), 2)
    self.norm = nnx.BatchNorm(
      4, use_running_average=True, bias_init=bias, rngs=rngs
    )
    self.conv2 = conv(4, 6, (3, 3), 2)
    self.fc = nnx.Linear(6, K, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu(self.norm(self.conv1(images)))
    return self.fc(nnx.relu(self.conv2(x)).mean((1, 2)))


def narrow(dtype=jnp.float32):
  model = ResNet(
    (1,),
    basic_block,
    K,
    width=4,
    stem_kernel=3,
    dtype=dtype,
    rngs=nnx.Rngs(init_key(0)),
  )
  model.train()
  model.features(model.normalize(jnp.asarray(IMAGES)))
  model.eval()
  return nnx.split(model)


WRAPPED = gc_jax.wrap(TwoConvs(nnx.Rngs(3)), at="conv2")
SETTINGS = {
  "integrated_gradients": {"steps": 2},
  "smoothgrad": {"num_samples": 2},
  "rise": {"num_masks": 3, "cells": 2},
}


def maps_of(make, methods, model, images, targets):
  return {
    name: METHODS[name](
      make(model), images, targets[:, None], **SETTINGS.get(name, {})
    )
    for name in methods
  }


HOLDING = [name for name in METHODS if name != "attention_rollout"]
# RISE has a kink where all masks of a pixel are alike.
SMOOTH = [name for name in HOLDING if name != "rise"]


OWN, OWN_STATE = narrow()
merged = functools.partial(nnx.merge, OWN)
pairwise = functools.partial(Row, wrt=(0, 1))
ROWS = {
  "cam.at_least_float32": Row(cam.at_least_float32, (MAPS,), (0,)),
  "cam.class_gradients": Row(
    lambda x, y: cam.class_gradients(
      functools.partial(classify, HEAD), x, y[:, None]
    ),
    (FEATURES, LABELS),
    (0,),
  ),
  "cam.grad_cam": pairwise(cam.grad_cam, (FEATURES, FEATURES.mean((1, 2)))),
  "cam.elementwise_grad_cam": pairwise(
    cam.elementwise_grad_cam, (FEATURES, FEATURES - 0.4)
  ),
  "cam.normalize_cam": Row(cam.normalize_cam, (MAPS,), (0,)),
  **{
    f"compose.{name}": Row(
      functools.partial(getattr(compose, name), KEY), (COUNTS, LABELS, ONES)
    )
    for name in ("independent", "packed", "packed_by_class")
  },
  "compose.supplied": Row(functools.partial(compose.supplied, KEY), (ONES,)),
  "compose.place": Row(compose.place, (PIXELS.reshape(B, 4, 4, 4),), (0,)),
  "compose.assemble": Row(
    lambda x, t, c: compose.assemble(layout(t, c), x),
    (IMAGES, TILES, CELLS),
    (0,),
  ),
  "compose.expected_cam": Row(
    lambda x, t, c: compose.expected_cam(layout(t, c), x),
    (MAPS, TILES, CELLS),
    (0,),
  ),
  "compose.expected_by_class": Row(
    lambda x, t, c, holds: compose.expected_by_class(layout(t, c, holds), x),
    (PIXELS.reshape(B, 1, 4, 4, 4), TILES, CELLS, FLAGS),
    (0,),
  ),
  "compose.at_one_scale": pairwise(
    lambda x, y: compose.at_one_scale(x, y[:, None], 8, 8), (MAPS, MAPS[:, 1:])
  ),
  "curves.area_under": Row(
    lambda y: curves.area_under(jnp.linspace(0, 1, 4, dtype=y.dtype), y),
    (MAPS,),
    (0,),
  ),
  "curves.enlarged": Row(lambda x: curves.enlarged(x, 7, 9), (MAPS,), (0,)),
  "curves.curves": Row(
    lambda x, y, m: curves.curves(
      lambda x: jax.nn.softmax(x.mean((1, 2)) @ jnp.ones((3, K), x.dtype)),
      x,
      jnp.zeros_like(x),
      y[:, None],
      m[:, None],
      num_steps=2,
    ),
    (IMAGES, LABELS, MAPS),
  ),
  "losses.cross_entropy": Row(losses.cross_entropy, (LOGITS, LABELS), (0,)),
  "losses.binary_cross_entropy": Row(
    losses.binary_cross_entropy, (LOGITS, COUNTS), (0,)
  ),
  "losses.consistency_loss": pairwise(
    losses.consistency_loss, (MAPS, MAPS[::-1])
  ),
  "losses.energy_loss": pairwise(losses.energy_loss, (MAPS, MAPS[::-1])),
  "losses.masked_mean": Row(
    losses.masked_mean, (LOGITS[:, 0], np.float32([1, 0, 1, 1])), (0,)
  ),
  "metrics.upsample": Row(lambda x: metrics.upsample(x, 7, 9), (MAPS,), (0,)),
  "metrics.is_empty": Row(metrics.is_empty, (MAPS,)),
  "metrics.as_distribution": Row(metrics.as_distribution, (MAPS,), (0,)),
  "metrics.dilate": Row(lambda x: metrics.dilate(x, 2.0), (MASKS,)),
  "metrics.pointing_game": Row(metrics.pointing_game, (PIXELS, MASKS)),
  "metrics.stochastic_pointing_game": Row(
    lambda x, m: metrics.stochastic_pointing_game(KEY, x, m, 4),
    (PIXELS, MASKS),
  ),
  "metrics.content_heatmap": Row(
    metrics.content_heatmap, (PIXELS, MASKS), (0,)
  ),
  "metrics.grid_content_heatmap": pairwise(
    metrics.grid_content_heatmap, (MAPS, annotated()[0], annotated()[2])
  ),
  "metrics.grid_pointing_game": Row(
    lambda x, *each: metrics.grid_pointing_game(x, GridAnnotation(*each)),
    (MAPS, *annotated()),
  ),
  "metrics.negative_quadrants_heatmap": Row(
    metrics.negative_quadrants_heatmap, (MAPS, CELLS), (0,)
  ),
  "gc_jax.localize, masks": Row(
    lambda x, m: gc_jax.localize(x, masks=m, tolerance_px=2.0), (MAPS, MASKS)
  ),
  "gc_jax.localize, boxes": Row(
    lambda x, b: (
      gc_jax.localize(x, boxes=b, size=(8, 8), tolerance_px=2.0).content_heatmap
    ),
    (MAPS, np.array([[[0, 1, 5, 6]]] * B, np.float32)),
    (0,),
  ),
  "gc_jax.predict": Row(gc_jax.predict, (IMAGES,), (0,), WRAPPED),
  "gc_jax.explain": Row(gc_jax.explain, (IMAGES, LABELS), (0,), WRAPPED),
  "gc_jax.negative_quadrants": Row(
    lambda net, x, y: gc_jax.negative_quadrants(net, x, y, KEY),
    (IMAGES, LABELS),
    (0,),
    WRAPPED,
  ),
  **{
    f"gc_jax.{name}": Row(
      functools.partial(getattr(gc_jax, name), num_steps=2),
      (IMAGES, LABELS, MAPS),
      (),
      WRAPPED,
    )
    for name in ("insertion", "deletion")
  },
  **{
    f"gc_jax.consistency, {mode}": Row(
      lambda net, x, y, mode=mode: gc_jax.consistency(
        net, x, y, KEY, mode=mode
      )[:3],
      (IMAGES, LABELS),
      (0,),
      WRAPPED,
    )
    for mode in ("packed", "independent")
  },
  "gc_jax.energy": Row(
    lambda net, x, y, m: gc_jax.energy(net, x, y, m)[:3],
    (IMAGES, LABELS, np.kron(MASKS, np.ones((2, 2))) > 0),
    (0,),
    WRAPPED,
  ),
  "METHODS, wrapped": Row(
    functools.partial(maps_of, lambda net: net, HOLDING),
    (IMAGES, LABELS),
    (0,),
    WRAPPED,
    functools.partial(maps_of, lambda net: net, SMOOTH),
  ),
  "METHODS, of ours": Row(
    functools.partial(maps_of, merged, HOLDING),
    (IMAGES, LABELS),
    (0,),
    OWN_STATE,
    # The others compute these again, or nothing of the model's own layers.
    functools.partial(maps_of, merged, ("cmwp", "gradcam", "fullgrad")),
  ),
}

# What takes no arrays on devices, or is a table, a class or a settings' name.
APART = {
  "gc_jax.check",  # a table in words
  "gc_jax.class_names",
  "gc_jax.create",
  "gc_jax.load",
  "gc_jax.overlay",  # draws with numpy and OpenCV
  "gc_jax.places",
  "gc_jax.train",
  "gc_jax.wrap",
  "cam.wider",  # of types
  "metrics.accuracy",
}


def test_every_public_function_has_a_row():
  modules = cam, compose, curves, losses, metrics
  found = {
    f"{module.__name__.rpartition('.')[2]}.{name}"
    for module in modules
    for name, one in vars(module).items()
    if inspect.isfunction(one)
    and one.__module__ == module.__name__
    and not name.startswith("_")
  }
  found |= {
    f"gc_jax.{name}"
    for name in gc_jax.__all__
    if inspect.isfunction(getattr(gc_jax, name))
  }
  assert found == {name.partition(",")[0] for name in ROWS if "." in name} | (
    APART
  )


def converted(tree, dtype):
  is_real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return jax.tree.map(
    lambda x: x.astype(dtype) if is_real(x) else x,
    jax.tree.map(jnp.asarray, tree),
  )


def call(row, model, arrays):
  return row.function(*([] if row.model == () else [model]), *arrays)


@functools.cache
def compiled(name):
  return jax.jit(functools.partial(call, ROWS[name]))


@functools.cache
def plain(name):
  """What one call gives; of models it is compiled, or would take minutes."""
  row = ROWS[name]
  run = functools.partial(call, row) if row.model == () else compiled(name)
  arrays = jax.tree.map(jnp.asarray, row.arrays)
  return jax.tree.map(np.asarray, run(row.model, arrays))


def assert_close(found, expected, rtol=1e-4, atol=1e-5):
  compare = lambda a, b: np.testing.assert_allclose(
    np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
  )
  jax.tree.map(compare, found, expected)


every = pytest.mark.parametrize("name", ROWS)


@every
def test_strict_types_ranks_and_no_nans(name):
  """Compiled, and of a model in a batch of its own; nothing is promoted."""
  row = ROWS[name]
  arrays = jax.tree.map(jnp.asarray, row.arrays)
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
    jax.debug_nans(True),
  ):
    found = jax.jit(functools.partial(call, row))(row.model, arrays)
    assert_close(found, plain(name))


@every
def test_vmap(name):
  """Over two batches, of which one is the other turned around."""
  row = ROWS[name]
  both = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), row.arrays)
  over = jax.vmap(functools.partial(call, row, row.model))
  found = jax.jit(over)(both) if row.model else over(both)
  assert_close(jax.tree.map(lambda x: x[0], found), plain(name))
  turned = compiled(name)(
    row.model, jax.tree.map(lambda x: x[::-1], row.arrays)
  )
  assert_close(jax.tree.map(lambda x: x[1], found), turned)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@every
def test_inputs_divided_over_four_devices(name, axis_type):
  """Compiled; and inside the mesh, what is no model op by op."""
  row = ROWS[name]
  mesh = jax.make_mesh((4,), ("data",), (axis_type,))
  arrays = jax.device_put(
    row.arrays, NamedSharding(mesh, PartitionSpec("data"))
  )
  model = jax.device_put(row.model, NamedSharding(mesh, PartitionSpec()))
  run = functools.partial(call, row)
  assert_close(jax.jit(run)(model, arrays), plain(name))
  if not name.startswith("METHODS"):  # all of them take a while to compile
    inside = run if row.model == () else jax.jit(run)
    with jax.set_mesh(mesh):
      assert_close(inside(model, arrays), plain(name))


@every
def test_bfloat16(name):
  """Against float32 of what is left of the numbers."""
  row = ROWS[name]
  rounded = converted(row.arrays, jnp.bfloat16)
  found = jax.jit(functools.partial(call, row))(row.model, rounded)
  expected = compiled(name)(row.model, converted(rounded, jnp.float32))
  jax.tree.map(lambda x: np.testing.assert_(jnp.isfinite(x).all()), found)
  assert_close(found, expected, rtol=0.1, atol=0.05)


# They give a network pixels in float32, which Flax's promote.
OF_PIXELS = {"gc_jax.insertion", "gc_jax.deletion", "METHODS, wrapped"}


@pytest.mark.parametrize(
  "name", sorted(ROWS.keys() - OF_PIXELS - {"METHODS, of ours"})
)
def test_strict_types_in_bfloat16(name):
  """Of weights, too."""
  row = ROWS[name]
  model, arrays = converted((row.model, row.arrays), jnp.bfloat16)
  with jax.numpy_dtype_promotion("strict"):
    found = jax.jit(functools.partial(call, row))(model, arrays)
  jax.tree.map(lambda x: np.testing.assert_(jnp.isfinite(x).all()), found)


def test_strict_types_of_our_own_network_in_bfloat16():
  model = nnx.merge(*narrow(jnp.bfloat16))
  maps = jnp.asarray(MAPS, jnp.bfloat16)
  images, labels = jnp.asarray(IMAGES, jnp.bfloat16), jnp.asarray(LABELS)
  boxes = jnp.array([[[1, 1, 5, 6]]] * B)
  with jax.numpy_dtype_promotion("strict"):
    found = [
      gc_jax.predict(model, images),
      gc_jax.insertion(model, images, labels, maps, num_steps=2),
      gc_jax.explain(model, images, labels, "cmwp"),
      gc_jax.explain(model, images, labels, "input_gradients"),
      gc_jax.localize(maps, boxes=boxes, size=(8, 8)),
    ]
    assert gc_jax.check(model, images, labels, "fullgrad")["fullgrad"].holds
  jax.tree.map(lambda x: np.testing.assert_(jnp.isfinite(x).all()), found)


@every
def test_float64_and_its_derivatives(name):
  """Values are float32's; both modes agree, with a finite difference too."""
  row = ROWS[name]
  with jax.enable_x64(True):
    arrays = converted(row.arrays, jnp.float64)
    model = converted(row.model, jnp.float64)
    found = jax.jit(functools.partial(call, row))(model, arrays)
    assert_close(found, plain(name), rtol=1e-3, atol=1e-4)
    if row.wrt:
      check_derivatives(row, model, arrays)


def check_derivatives(row, model, arrays):
  leaves, tree = jax.tree.flatten(model)
  real = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, float)]
  at = [leaves[i] for i in real] + [arrays[i] for i in row.wrt]
  to = [
    jnp.cos(7 * jnp.arange(x.size) + i).reshape(x.shape) / 9
    for i, x in enumerate(at)
  ]
  row = row._replace(function=row.smooth or row.function)

  def value(at):
    moved = dict(zip(real, at[: len(real)], strict=True))
    here = jax.tree.unflatten(
      tree, [moved.get(i, x) for i, x in enumerate(leaves)]
    )
    others = dict(zip(row.wrt, at[len(real) :], strict=True))
    found = call(row, here, [others.get(i, x) for i, x in enumerate(arrays)])
    reals = [
      x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, float)
    ]
    return [jnp.vdot(jnp.cos(jnp.arange(x.size)), x) for x in reals]

  @jax.jit
  def derivatives(at):
    forward = jax.jvp(value, (at,), (to,))[1]
    weights = [1.0 + i for i in range(len(forward))]
    total = lambda at: sum(map(lambda w, v: w * v, weights, value(at)))
    reverse = sum(map(jnp.vdot, jax.grad(total)(at), to))
    move = lambda step: [x + step * d for x, d in zip(at, to, strict=True)]
    step = 1e-6
    ends = value(move(step)), value(move(-step))
    difference = [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
    total = sum(map(jnp.multiply, weights, forward))
    return forward, difference, total, reverse

  forward, difference, total, reverse = derivatives(at)
  assert any(forward)
  np.testing.assert_allclose(forward, difference, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(total, reverse, rtol=1e-6)
