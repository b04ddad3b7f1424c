"""Arrays of pictures in, logits and maps out; and which arrays are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gc_jax
from gc_jax.attribution import METHODS
from gc_jax.data import image_files
from gc_jax.inference import arrays
from gc_jax.method import metrics
from gc_jax.report import pictures

K = 10


@pytest.fixture(scope="module")
def pixels(photographs):
  """Two photographs, 16 by 24 pixels."""
  names = ["astronaut.png", "rocket.jpg"]
  return np.stack(
    [image_files.read(photographs / name, (16, 24)) for name in names]
  )


def seen(net, pixels):
  """In training mode, with the statistics of photographs."""
  net.train()
  net.features(net.normalize(jnp.asarray(pixels)))
  return net


@pytest.fixture(scope="module")
def model(make_tiny, pixels):
  return seen(make_tiny("max"), pixels)


def in_evaluation(model):
  copy = nnx.clone(model)
  copy.eval()
  return copy


@pytest.fixture(scope="module")
def evaluated(model):
  """The same model, in evaluation mode."""
  return in_evaluation(model)


def assert_close(maps, expected, atol=1e-6):
  # Compiled otherwise, sums of float32 run in another order.
  np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=atol)


def test_the_public_names_are_those_of_the_contract():
  assert gc_jax.explain is arrays.explain
  assert gc_jax.predict is arrays.predict
  names = "METHODS MODELS cam class_names compose create explain load losses"
  names += " metrics overlay predict wrap places localize negative_quadrants"
  names += " consistency energy insertion deletion check train"
  assert set(gc_jax.__all__) == {*names.split()}
  assert all(hasattr(gc_jax, name) for name in gc_jax.__all__)


def test_predictions_are_the_models_own_logits_in_evaluation_mode(
  model, evaluated, pixels
):
  logits = gc_jax.predict(model, pixels)
  assert logits.shape == (2, K) and logits.dtype == jnp.float32
  features = evaluated.features(evaluated.normalize(jnp.asarray(pixels)))
  assert_close(logits, evaluated.classify(features), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_method_called_directly(make_for, pixels, method):
  model = seen(make_for(method)("max"), pixels)
  evaluated = in_evaluation(model)
  raw = gc_jax.explain(model, pixels, [3, 7], method, normalize=False)
  expected = nnx.jit(METHODS[method])(
    evaluated, jnp.asarray(pixels), jnp.array([[3], [7]])
  )
  assert raw.shape in ((2, 4, 6), (2, *pixels.shape[1:3]))  # cells or pixels
  assert raw.dtype == jnp.float32
  assert float(expected.sum((-2, -1)).min()) > 0
  assert_close(raw, expected[:, 0])
  normalized = gc_jax.explain(model, pixels, [3, 7], method)
  assert_close(normalized, metrics.as_distribution(expected)[:, 0])
  np.testing.assert_allclose(normalized.sum((1, 2)), 1, rtol=1e-5)
  assert float(normalized.min()) >= 0


def test_several_targets_have_a_map_each(model, pixels):
  targets = np.array([[3, 0, 3], [7, 9, 1]])
  several = gc_jax.explain(model, pixels, targets)
  assert several.shape == (2, 3, 4, 6)
  for p in range(3):
    assert_close(several[:, p], gc_jax.explain(model, pixels, targets[:, p]))


def test_bytes_and_fractions_of_any_precision_are_the_same_picture(
  model, pixels
):
  maps = gc_jax.explain(model, pixels, [3, 7])
  for dtype, atol in [(np.float64, 1e-5), (np.float16, 0.02)]:
    fractions = (pixels / 255).astype(dtype)
    found = gc_jax.explain(model, fractions, [3, 7])
    np.testing.assert_allclose(found, maps, atol=atol)
  on_device = gc_jax.explain(model, jnp.asarray(pixels), jnp.array([3, 7]))
  np.testing.assert_array_equal(on_device, maps)


def test_an_empty_map_becomes_uniform_and_its_raw_one_stays_empty(
  monkeypatch, model, pixels
):
  def empty(model, images, targets):
    del model, images
    return jnp.zeros((*targets.shape, 2, 3)).at[1].set(jnp.nan)

  monkeypatch.setitem(METHODS, "empty", empty)
  uniform = gc_jax.explain(model, pixels, [3, 7], "empty")
  np.testing.assert_allclose(uniform, np.full((2, 2, 3), 1 / 6), rtol=1e-6)
  raw = gc_jax.explain(model, pixels, [3, 7], "empty", normalize=False)
  np.testing.assert_array_equal(raw[0], 0)


def test_a_structure_a_method_and_a_shape_are_compiled_once(
  monkeypatch, make_tiny, model, pixels
):
  traced = []

  def counted(model, images, targets):
    traced.append((model.pooling, images.shape))
    return METHODS["gradcam"](model, images, targets)

  monkeypatch.setitem(METHODS, "counted", counted)
  for targets in ([3, 7], [0, 1]):
    for normalize in (True, False):
      gc_jax.explain(model, pixels, targets, "counted", normalize)
  # Another model of the same structure; in another mode, with other numbers.
  other = make_tiny("max", seed=1)
  gc_jax.explain(other, pixels[::-1], [3, 7], "counted")
  assert traced == [("max", (2, 16, 24, 3))]
  gc_jax.explain(model, pixels[:, :, :16], [3, 7], "counted")
  assert traced[1:] == [("max", (2, 16, 16, 3))]
  gc_jax.explain(make_tiny("average"), pixels, [3, 7], "counted")
  assert traced[2:] == [("average", (2, 16, 24, 3))]


def test_the_model_is_left_as_it_was(model, pixels):
  graphdef, before = nnx.split(model)
  before = jax.tree.map(np.array, before)
  gc_jax.explain(model, pixels, [3, 7])
  gc_jax.predict(model, pixels)
  assert nnx.graphdef(model) == graphdef  # training mode included
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_a_model_on_four_devices_explains_as_on_one(model, pixels):
  mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
  graphdef, state = nnx.split(model)
  everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
  spread = nnx.merge(graphdef, everywhere)
  found = gc_jax.explain(spread, pixels, [3, 7])
  assert_close(found, gc_jax.explain(model, pixels, [3, 7]))
  assert gc_jax.predict(spread, jnp.asarray(pixels)).shape == (2, K)


def test_the_predicted_class_is_explained_if_asked_for(model, pixels):
  asked = np.array([[arrays.PREDICTED, 4], [2, arrays.PREDICTED]])
  logits, cams = arrays.run(model, pixels, asked, ("gradcam",))
  predicted = np.asarray(logits).argmax(-1)
  targets = [[predicted[0], 4], [2, predicted[1]]]
  expected = gc_jax.explain(model, pixels, targets, "gradcam", normalize=False)
  assert_close(cams["gradcam"], expected)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda x: x[0], r"shape \(16, 24, 3\)\. For one picture, give images\[No"),
    (lambda x: x.transpose(0, 3, 1, 2), r"come last: transpose\(0, 2, 3, 1\)"),
    (lambda x: x[..., :1], r"shape \(2, 16, 24, 1\)\. Convert grey or RGBA"),
    (lambda x: x[..., 0], r"shape \(2, 16, 24\)\. Stack RGB pictures"),
    (lambda x: x[:0], r"hold at least one pixel; .* Leave empty batches"),
    (lambda x: x[:, :0], r"hold at least one pixel; .* \(2, 0, 24, 3\)"),
    (lambda x: x.astype(np.int64), r"must be uint8 or float; they are int64"),
    (lambda x: x / 2.0, r"Float images must be in \[0, 1\]; .*Divide 0..255"),
    (lambda x: x / 255 - 0.5, r"they are in \[-0\.5, .*do not normalise"),
    (lambda x: x / 255 * np.nan, r"they are in \[nan, nan\]"),
  ],
)
def test_images_that_are_no_batch_of_rgb_pictures_are_refused(
  model, pixels, change, message
):
  with pytest.raises(ValueError, match=message):
    gc_jax.predict(model, change(pixels))
  with pytest.raises(ValueError, match=message):
    gc_jax.explain(model, change(pixels), [3, 7])


@pytest.mark.parametrize(
  "targets, message",
  [
    ([3], r"each of the 2 images; they have shape \(1,\)"),
    (3, r"shape \(\)\. For one image and one class, give \[class\]"),
    ([[[3]], [[7]]], r"must be \[B\] or \[B P\].*shape \(2, 1, 1\)"),
    ([3, 10], r"must be in 0\.\.9, the model's classes; 10 is not"),
    ([-1, 3], r"-1 is not\. Count from 0\."),
    ([3.0, 7.0], r"must be integers, class ids; they are float64"),
    (["cat", "dog"], "must be ids .* names no classes; 'cat' is a name"),
  ],
)
def test_targets_that_are_no_classes_of_the_pictures_are_refused(
  model, pixels, targets, message
):
  with pytest.raises(ValueError, match=message):
    gc_jax.explain(model, pixels, targets)


def test_targets_may_be_names_of_classes(evaluated, pixels):
  named = nnx.clone(evaluated)
  named.class_names = (*"abcdefg", "café", "crane", "crane")
  assert gc_jax.class_names(named) == named.class_names
  assert gc_jax.class_names(evaluated) == ()
  for targets, ids in [
    (["a", "cafe\u0301"], [0, 7]),  # however an accent is stored
    (np.array([["a", "b"], ["c", "a"]]), [[0, 1], [2, 0]]),
  ]:
    found = gc_jax.explain(named, pixels, targets)
    np.testing.assert_array_equal(found, gc_jax.explain(named, pixels, ids))
  maps = np.ones((2, 3, 3), np.float32)
  for measured in (
    lambda classes: gc_jax.insertion(named, pixels, classes, maps, num_steps=2),
    lambda classes: gc_jax.check(named, pixels, classes, "gradcam"),
  ):
    assert str(measured(["a", "d"])) == str(measured([0, 3]))
  with pytest.raises(ValueError, match=r"Unknown labels='h'\. Known: a, b"):
    gc_jax.deletion(named, pixels, ["a", "h"], maps)
  with pytest.raises(ValueError, match=r"Unknown targets='h'\. Known: a, b"):
    gc_jax.explain(named, pixels, ["a", "h"])
  with pytest.raises(
    ValueError, match=r"2 are called 'crane'\. Give one of their ids: 8, 9"
  ):
    gc_jax.explain(named, pixels, ["a", "crane"])


def test_names_of_classes_stay_with_a_model_and_change_no_number(
  evaluated, pixels
):
  named = nnx.clone(evaluated)
  named.class_names = tuple("abcdefghij")
  graphdef, state = nnx.split(named)
  assert gc_jax.class_names(nnx.merge(graphdef, state)) == named.class_names
  assert jax.tree.structure(state) == jax.tree.structure(nnx.state(evaluated))
  hash(graphdef)  # as jit does
  np.testing.assert_array_equal(
    gc_jax.predict(named, pixels), gc_jax.predict(evaluated, pixels)
  )


def test_an_overlay_is_drawn_as_on_the_pages(pixels):
  rng = np.random.default_rng(0)
  maps = rng.random((2, 4, 6)).astype(np.float32)
  both = gc_jax.overlay(pixels, jnp.asarray(maps))
  assert both.dtype == np.uint8 and both.shape == pixels.shape
  for image, cam, drawn in zip(pixels, maps, both, strict=True):
    expected = pictures.heat_overlay(image, cam)
    np.testing.assert_array_equal(drawn, expected)
    assert (expected != image).any()
    for fractions in (image / 255, jnp.asarray(image) / 255):
      one = gc_jax.overlay(fractions, cam)
      np.testing.assert_array_equal(one, expected)
  large = rng.random(pixels.shape[1:3])  # float64, a map of pixels
  np.testing.assert_array_equal(
    gc_jax.overlay(pixels[0], large), pictures.heat_overlay(pixels[0], large)
  )


def test_a_map_of_half_precision_is_full_of_heat(pixels):
  """Its sum is above 65,504, the largest number of the type."""
  cam = np.full((8, 8), 5_000.0, np.float32)
  cam[:4] = 0
  np.testing.assert_array_equal(
    gc_jax.overlay(pixels[0], cam.astype(np.float16)),
    gc_jax.overlay(pixels[0], cam),
  )


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1 / 24])
def test_a_map_that_points_nowhere_is_no_heat(pixels, value):
  nowhere = np.full((4, 6), value, np.float32)
  somewhere = np.eye(4, 6, dtype=np.float32)
  drawn = gc_jax.overlay(pixels, np.stack([nowhere, somewhere]))
  bare = pixels[0]
  if value != 1 / 24:  # in words
    bare = pictures.heat_overlay(bare, np.zeros((4, 6), np.float32))
  np.testing.assert_array_equal(drawn[0], bare)
  assert (drawn[1] != pixels[1]).any()


@pytest.mark.parametrize(
  "image, cam, message",
  [
    (0, np.ones((1, 4, 6)), r"must be \[h w\], one for each .* \(1, 4, 6\)"),
    (..., np.ones((4, 6)), r"must be \[B h w\] with B = 2, .* \(4, 6\)"),
    (..., np.ones((3, 4, 6)), r"with B = 2.*shape \(3, 4, 6\)"),
    (..., np.ones((2, 3, 4, 6)), "Of several maps of an image, give one at a"),
    (0, np.ones((0, 6)), r"they have shape \(0, 6\)"),
    (0, np.ones((4, 6), int), "maps must be float; they are int64"),
    (0, -np.ones((4, 6)), "must be >= 0; the least value is -1. Take what sp"),
    ((0, 0), np.ones((4, 6)), r"images must be RGB \[B H W 3\]"),
  ],
)
def test_maps_that_do_not_belong_to_the_pictures_are_refused(
  pixels, image, cam, message
):
  with pytest.raises(ValueError, match=message):
    gc_jax.overlay(pixels[image], cam)


class Shrinking(nnx.Module):
  """Loses ten pixels before its features, as an unpadded stem does."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (11, 11), padding="VALID", rngs=rngs)
    self.fc = nnx.Linear(4, K, rngs=rngs)

  def normalize(self, images):
    return images.astype(jnp.float32) / 255

  def features(self, images):
    return self.conv(images)

  def classify(self, features):
    return self.fc(features.mean((1, 2)))


def test_pictures_too_small_for_the_architecture_say_what_is_enough(pixels):
  model = Shrinking(nnx.Rngs(0))
  message = r"at least 11 pixels high and wide .* they are 10 by 24\. Enlarge"
  with pytest.raises(ValueError, match=message):
    gc_jax.predict(model, pixels[:, :10])
  with pytest.raises(ValueError, match=message):
    gc_jax.explain(model, pixels[:, :10], [3, 7])
  assert gc_jax.predict(model, pixels[:, :11]).shape == (2, K)


def test_pixels_beside_the_last_patch_are_not_lost_without_a_word(
  make_tiny_vit,
):
  model = make_tiny_vit()
  images = jnp.zeros((1, 14, 16, 3))
  for explain in (
    lambda: gc_jax.explain(model, images, [3]),
    lambda: METHODS["gradcam"](model, images, jnp.array([[3]])),
    # Wrapped, as the model of somebody else.
    lambda: gc_jax.explain(
      gc_jax.wrap(model, at="encoder.layers.encoder_layer_1.ln_1"), images, [3]
    ),
  ):
    with pytest.raises(ValueError, match=r"by 4 pixels.* 14 by 16\. Resize"):
      explain()


def test_an_error_of_the_model_itself_is_not_blamed_on_the_size(pixels):
  class Broken(Shrinking):
    def classify(self, features):
      return self.fc(features.mean((1, 2))[:, :3])

  with pytest.raises(TypeError, match="dot_general"):
    gc_jax.predict(Broken(nnx.Rngs(0)), pixels)
