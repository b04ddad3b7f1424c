"""Users' nets in use: explained, measured, compiled once; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gc_jax
from gc_jax.attribution import METHODS

SIDE = 8


def one_pixel():
  """A net of class 0 by far while pixel (2, 3) is bright, else of class 1."""

  def run(images, tap):
    score = jnp.where(tap(images)[:, 2, 3, 0] > 0.7, 50.0, -50.0)
    return jnp.stack([score, -score], 1)

  return gc_jax.wrap(run)


def pictures():
  """Two dark pictures, but for the pixel."""
  images = np.zeros((2, SIDE, SIDE, 3), np.float32)
  images[:, 2, 3] = 1.0
  return jnp.asarray(images)


def first_and_last():
  """Maps whose pixel (2, 3) is the brightest, and the darkest."""
  y, x = np.indices((SIDE, SIDE))
  peak = 1 / (1.0 + (y - 2) ** 2 + (x - 3) ** 2)
  return jnp.asarray(np.stack([peak, 2 - peak]), jnp.float32)


ALL = SIDE * SIDE  # each pixel a step


@pytest.mark.parametrize("jitted", [False, True])
def test_areas_of_a_net_that_sees_one_pixel_are_exact(jitted):
  net = one_pixel()
  both = lambda images, maps: (
    gc_jax.insertion(net, images, [0, 0], maps, num_steps=ALL),
    gc_jax.deletion(net, images, [0, 0], maps, num_steps=ALL),
  )
  run = jax.jit(both) if jitted else both
  shown, hidden = run(pictures(), first_and_last())
  half = 1 / (2 * ALL)  # of a step, by the trapezoid rule
  np.testing.assert_allclose(shown, [1 - half, half], atol=1e-6)
  np.testing.assert_allclose(hidden, [half, 1 - half], atol=1e-6)


def test_what_covers_a_pixel_and_what_a_score_is_can_be_said():
  net, images, maps = one_pixel(), pictures(), first_and_last()
  for grey in (0.9, [0.9, 0.0, 0.0]):  # bright: nothing is ever hidden
    found = gc_jax.deletion(net, images, [0, 0], maps, grey=grey)
    np.testing.assert_allclose(found, 1, atol=1e-6)
  half = gc_jax.wrap(lambda x, tap: 0 * tap(x)[:, 0, 0, :2] + np.log(3))
  for multi_label, expected in ((False, 1 / 2), (True, 3 / 4)):
    found = gc_jax.insertion(
      half, images, [0, 1], maps, multi_label=multi_label
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_output_is_a_sigmoid_that_must_be_said():
  """A softmax of one logit is 1, whatever the picture shows."""
  net = gc_jax.wrap(lambda x, tap: 9 * tap(x).mean((1, 2))[:, :1] - 0.1)
  images, maps = pictures(), first_and_last()
  rise = lambda **said: gc_jax.explain(
    net, images, [0, 0], "rise", normalize=False, num_masks=20, **said
  )
  shown = lambda **said: gc_jax.insertion(net, images, [0, 0], maps, **said)
  hidden = lambda **said: gc_jax.deletion(net, images, [0, 0], maps, **said)
  for run in (rise, shown, hidden):
    with pytest.raises(ValueError, match=r"it has one\. Give multi_label=True"):
      run()
  assert rise(multi_label=True).max() > 0
  assert 0.47 < float(shown(multi_label=True)[0]) < 0.53


def test_a_model_of_several_labels_is_known_as_one_when_it_is_wrapped(
  make_tiny,
):
  model = make_tiny("average")
  model.multi_label = True
  model.eval()
  images = np.full((2, 16, 16, 3), 200, np.uint8)
  maps = gc_jax.explain(model, images, [1, 2])
  areas = lambda of, **how: gc_jax.insertion(of, images, [1, 2], maps, **how)
  found = areas(gc_jax.wrap(model))
  np.testing.assert_array_equal(found, areas(model))
  np.testing.assert_array_equal(found, areas(model, multi_label=True))
  assert not np.allclose(found, areas(model, multi_label=False))


def test_a_model_of_ours_covers_pixels_with_the_mean_colour(make_tiny):
  model = make_tiny("average")
  model.eval()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  maps = gc_jax.explain(model, images, [1, 2])
  grey = np.float32([[[0.485, 0.456, 0.406]]])
  # One step: from the picture to the mean colour.
  ends = [images / np.float32(255), np.broadcast_to(grey, images.shape)]
  scores = [jax.nn.softmax(gc_jax.predict(model, x)) for x in ends]
  expected = [
    (scores[0][i, c] + scores[1][i, c]) / 2 for i, c in ((0, 1), (1, 2))
  ]
  found = gc_jax.deletion(model, images, [1, 2], maps, num_steps=1)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_model_of_ours_refuses_pixels_in_0_255_as_floats(make_tiny):
  """They would be normalised as if 1 were white: numbers of other pictures."""
  model = make_tiny("average")
  model.eval()
  images = np.full((4, 16, 16, 3), 200.0, np.float32)
  labels, key = np.arange(4), jax.random.key(0)
  maps = np.ones((4, 4, 4), np.float32)
  for run in (
    lambda: gc_jax.insertion(model, images, labels, maps),
    lambda: gc_jax.negative_quadrants(model, images, labels, key),
    lambda: gc_jax.consistency(model, images, labels, key),
    lambda: gc_jax.energy(model, images, labels, np.ones((4, 16, 16))),
    lambda: gc_jax.explain(gc_jax.wrap(model), images, labels),
  ):
    with pytest.raises(
      ValueError, match=r"must be in \[0, 1\].*Divide 0\.\.25"
    ):
      run()


def test_a_function_of_doubles_is_explained_in_doubles():
  with jax.enable_x64(True):
    images = jnp.asarray(pictures(), jnp.float64)
    for method in ("input_gradients", "gradcam"):
      maps = gc_jax.explain(one_pixel(), images, [0, 1], method)
      assert maps.dtype == jnp.float64


@pytest.mark.parametrize(
  ("labels", "maps", "settings", "message"),
  [
    ([0, 2], np.ones((2, 4, 4)), {}, r"labels must be in 0\.\.1.*; 2 is not"),
    ([0], np.ones((2, 4, 4)), {}, r"labels must be \[B\]"),
    ([[0], [1]], np.ones((2, 4, 4)), {}, r"labels must be \[B\], a class of"),
    ([0, 1], np.ones((1, 4, 4)), {}, r"maps must be \[B h w\].*\(1, 4, 4\)"),
    ([0, 1], np.ones((2, 1, 4, 4)), {}, r"maps must be \[B h w\]"),
    ([0, 1], np.ones((2, 4, 4), int), {}, "maps must be float; they are int"),
    ([0, 1], np.ones((2, 4, 4)), {"num_steps": 0}, "num_steps must be at lea"),
    ([0, 1], np.ones((2, 4, 4)), {"grey": (0.1, 0.2)}, "grey must be .* has 2"),
    ([0, 1], -np.ones((2, 4, 4)), {}, "maps must be >= 0; the least value is"),
  ],
)
def test_wrong_arguments_are_named(labels, maps, settings, message):
  for measure in (gc_jax.insertion, gc_jax.deletion):
    with pytest.raises(ValueError, match=message):
      measure(one_pixel(), pictures(), labels, maps, **settings)


# Explain: a method of one's own, settings, transformations, meshes.


class Net(nnx.Module):
  """A convolution and a head, as a user writes them."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 8, (3, 3), 2, rngs=rngs)
    self.head = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, images):
    return self.head(nnx.relu(self.conv(images)).mean((1, 2)))


@functools.cache
def net():
  return gc_jax.wrap(Net(nnx.Rngs(0)), at="conv")


def batch(count=8):
  return jax.random.uniform(jax.random.key(1), (count, 16, 16, 3))


LABELS = np.arange(8) % 5


def mean_activation(model, images, targets, *, power=1):
  """A method as a user writes it, of a wrapped model."""
  _, activations, _ = model(model.prepared(images))
  cam = jax.nn.relu(activations).mean(-1) ** power
  return jnp.repeat(cam[:, None], targets.shape[1], axis=1)


def test_a_function_is_a_method_and_takes_its_settings(monkeypatch):
  expected = jax.nn.relu(net()(batch())[1]).mean(-1)
  expected = expected / expected.sum((1, 2), keepdims=True)
  found = gc_jax.explain(net(), batch(), LABELS, mean_activation)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  raw = functools.partial(gc_jax.explain, normalize=False)
  once, twice = (
    raw(net(), batch(), LABELS, mean_activation, power=power)
    for power in (1, 2)
  )
  np.testing.assert_allclose(twice, once**2, rtol=1e-4)
  # Registered, it is a name like any other, in a line.
  monkeypatch.setitem(METHODS, "mine", METHODS["gradcam"])
  np.testing.assert_array_equal(
    raw(net(), batch(), LABELS, "mine"), raw(net(), batch(), LABELS, "gradcam")
  )


def test_settings_may_be_arrays(make_tiny):
  model = make_tiny("average")
  images = (255 * batch(2)).astype(np.uint8)
  for each, x in ((net(), batch(2)), (model, images)):
    first, again, other = (
      gc_jax.explain(
        each, x, [1, 2], "smoothgrad", num_samples=2, key=jax.random.key(seed)
      )
      for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-5


@pytest.mark.parametrize(
  ("method", "settings", "message"),
  [
    ("gradcamm", {}, r"Unknown method='gradcamm'.* Did you mean 'gradcam'"),
    ("gradcam", {"steps": 3}, "Grad-CAM takes no setting 'steps'; i"),
    ("rise", {"cells": [7]}, "cells must be a jax.Array, or a va"),
    ("smoothgrad", {"num_samples": 2.5}, "num_samples must be an"),
    (lambda model, images, targets: None, {}, "it returned a NoneType"),
    (
      lambda model, images, targets: images[..., 0],
      {},
      r"maps \[B P h w\].*it returned \(8, 16, 16\)",
    ),
  ],
)
def test_a_method_that_cannot_be_run_is_named(method, settings, message):
  with pytest.raises(ValueError, match=message):
    gc_jax.explain(net(), batch(), LABELS, method, **settings)


def test_logits_of_a_bfloat16_net_are_float32():
  """Rounded by the net itself, and not again."""
  weights = jnp.eye(3, 2, dtype=jnp.bfloat16)
  net = gc_jax.wrap(
    lambda x, tap: tap(x.astype(jnp.bfloat16)).mean((1, 2)) @ weights
  )
  logits = gc_jax.predict(net, pictures())
  assert logits.dtype == jnp.float32
  np.testing.assert_array_equal(logits, net.logits(pictures()))


def test_names_are_no_targets_of_a_model_that_has_none():
  with pytest.raises(
    ValueError, match=r"targets must be class ids.*'cat' came"
  ):
    gc_jax.explain(net(), batch(), ["cat"] * 8)
  with pytest.raises(ValueError, match=r"labels must be class ids.*'cat' came"):
    gc_jax.negative_quadrants(net(), batch(), ["cat"] * 8, jax.random.key(0))


def test_our_own_models_are_explained_inside_jit_and_meshes(make_tiny):
  model = make_tiny("average")
  images = batch()

  def both(images, labels):
    return gc_jax.predict(model, images), gc_jax.explain(model, images, labels)

  expected = both(images, LABELS)
  close = functools.partial(
    jax.tree.map, functools.partial(np.testing.assert_allclose, atol=1e-5)
  )
  close(jax.jit(both)(images, LABELS), expected)
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("data",), (kind,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
      given = jax.device_put((images, jnp.asarray(LABELS)), spread)
      for run in (both, jax.jit(both)):
        close(run(*given), expected)


class Counted(Net):
  """It appends to `RUNS` when Python runs it: when it is traced, then."""

  def __call__(self, images):
    RUNS.append(images.shape)
    return super().__call__(images)


RUNS = []


def test_a_thousand_batches_of_one_shape_are_compiled_once():
  model = gc_jax.wrap(Counted(nnx.Rngs(1)), at="conv")
  compiled = []

  def count(event, duration, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  images = np.asarray(batch())
  gc_jax.explain(model, images, LABELS, "layercam")
  RUNS.clear()
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    for i in range(1_000):
      gc_jax.explain(model, images + i, LABELS, "layercam")
    assert not compiled and not RUNS
    gc_jax.explain(model, images[:4], LABELS[:4], "layercam")
    assert compiled and RUNS  # another shape is seen
  finally:
    jax.monitoring.unregister_event_duration_listener(count)


# What is refused.


def training():
  model = nnx.Sequential(
    nnx.Conv(3, 5, (1, 1), rngs=nnx.Rngs(0)),
    nnx.BatchNorm(5, rngs=nnx.Rngs(0)),
    lambda x: x.mean((1, 2)),
  )
  model.train()
  return gc_jax.wrap(model, at="layers.1")


@pytest.mark.parametrize(
  "run",
  [
    lambda net: gc_jax.predict(net, batch()),
    lambda net: gc_jax.explain(net, batch(), LABELS),
    lambda net: gc_jax.insertion(net, batch(), LABELS, batch()[..., 0]),
    lambda net: gc_jax.check(net, batch()),
    lambda net: gc_jax.negative_quadrants(
      net, batch(), LABELS, jax.random.key(0)
    ),
  ],
)
def test_a_model_in_training_mode_is_not_measured(run):
  with pytest.raises(ValueError, match=r"evaluation mode.*model\.eval\(\)"):
    run(training())


@pytest.mark.parametrize(
  "run",
  [
    lambda x: gc_jax.predict(net(), x),
    lambda x: gc_jax.explain(net(), x, LABELS),
    lambda x: gc_jax.consistency(net(), x, LABELS, jax.random.key(0)),
    lambda x: gc_jax.insertion(net(), x, LABELS, batch()[..., 0]),
  ],
)
def test_images_of_the_other_layout_are_named_with_the_transposition(run):
  message = r"be \[8, 16, 16, 3\].*last: transpose\(0, 2, 3, 1\)\."
  with pytest.raises(ValueError, match=message):
    run(batch().transpose(0, 3, 1, 2))


def test_one_picture_is_no_batch():
  with pytest.raises(ValueError, match=r"give images\[None\]"):
    gc_jax.predict(net(), batch()[0])
  labels, covered = np.zeros(16, np.int32), np.ones((16, 16, 1))
  with pytest.raises(ValueError, match=r"give images\[None\]"):
    gc_jax.energy(net(), batch()[0], labels, covered)


def test_labels_of_a_loss_are_held_to_the_models_classes():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r"labels must be in 0\.\.4.*; 5 is not"):
    gc_jax.consistency(net(), batch(), LABELS + 1, key)
  with pytest.raises(ValueError, match="a column for each of the 5 classes"):
    gc_jax.energy(net(), batch(), np.ones((8, 4)), np.ones((8, 16, 16)), key)
  with pytest.raises(TypeError, match=r"it is a Net\. Give gc_jax\.wrap"):
    gc_jax.explain(Net(nnx.Rngs(0)), batch(), LABELS)
