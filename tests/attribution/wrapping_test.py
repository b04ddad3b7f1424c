"""Models of other libraries give the maps of ours, with the same weights."""

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax
from gc_jax.attribution import METHODS
from gc_jax.models.pixels import normalize_pixels
from tests.attribution import foreign

TARGETS = jnp.array([[0, 1], [2, 3]])
# Of pixels: a wrapped model's are its own, normalised here, not ours.
OF_PIXELS = ("input_gradients", "integrated_gradients", "smoothgrad", "rise")
OF_LAYERS = [
  name for name in METHODS if name not in (*OF_PIXELS, "attention_rollout")
]
CAMS = ("gradcam_elementwise", "gradcam", "gradcam_plus_plus", "layercam")
AT = {"layer": "layer2"}
LIBRARIES = ("nnx", "linen", "equinox", "function", "pair", "vit")


def pixels():
  return jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))


@functools.cache
def ours():
  model = gc_jax.create("resnet8-small", 5)
  model.train()  # statistics of pixels, so that maps are not empty
  model.features(2 * jax.random.normal(jax.random.key(1), (8, 32, 32, 3)))
  model.eval()
  return model


@functools.cache
def own_vit():
  """A ViT of ours with all its weights random."""
  model = foreign.own_vit()
  for number, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(model))):
    noise = jax.random.normal(
      jax.random.key(number), variable.shape, variable.dtype
    )
    variable[...] = variable[...] + 0.2 * noise
  return model


def made(library, dtype=jnp.float32, side=32):
  """Returns a wrapped model with our weights, and its images."""
  model = own_vit() if library == "vit" else ours()
  images = normalize_pixels(pixels()[:, :side, :side]).astype(dtype)
  weights = jax.tree.map(lambda x: x.astype(dtype), foreign.weights_of(model))
  if library == "vit":
    net = foreign.linen_vit(weights)
    grid = side // 4, side // 4
    return gc_jax.wrap(net, at="ln_1_1", grid=grid, prefix=1), images
  if library == "keras":
    net = foreign.keras_net(weights, jnp.dtype(dtype).name)
    return gc_jax.wrap(net, at="layer2.1.out"), images
  if library == "nnx":
    return gc_jax.wrap(foreign.nnx_net(weights), at="layer2.1"), images
  if library == "linen":
    return gc_jax.wrap(foreign.linen_net(weights), at="layer2_1"), images
  if library == "equinox":
    net = gc_jax.wrap(foreign.eqx_net(weights), at=lambda m: m.layer2[1])
    return net, jnp.moveaxis(images, -1, 1)
  if library == "pair":
    return gc_jax.wrap((model.features, model.classify)), images
  return gc_jax.wrap(foreign.function_net(weights)), images


@functools.partial(jax.jit, static_argnums=(3, 4))
def maps_of(net, images, targets, methods, settings=()):
  return {
    name: METHODS[name](net, images, targets, **dict(settings))
    for name in methods
  }


OF_VIT = (*CAMS, "attention_rollout")


@functools.cache
def reference(is_vit=False):
  """The maps of our own model, of every method that holds for it."""
  graphdef, state = nnx.split(own_vit() if is_vit else ours())
  at = AT if not is_vit else {}
  run = lambda state, images: {
    name: METHODS[name](
      nnx.merge(graphdef, state),
      images,
      TARGETS,
      **(at if METHODS[name].layer else {}),
    )
    for name in (OF_VIT if is_vit else OF_LAYERS)
  }
  return jax.jit(run)(state, pixels())


@pytest.mark.parametrize("library", LIBRARIES)
def test_maps_are_those_of_our_own_model(library):
  net, images = made(library)
  wanted = reference(library == "vit")
  found = maps_of(net, images, TARGETS, tuple(wanted))
  for name, expected in wanted.items():
    scale = float(expected.max())
    assert scale > 0
    np.testing.assert_allclose(
      found[name] / scale, expected / scale, atol=1e-4, err_msg=name
    )


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("input_gradients", ()),
    ("smoothgrad", (("num_samples", 2),)),
    ("rise", (("num_masks", 9),)),
  ],
)
def test_maps_of_pixels_are_the_same_in_every_library(name, settings):
  run = lambda net, x: maps_of(net, x, TARGETS, (name,), settings)[name]
  expected = run(*made("function"))
  scale = float(expected.max())
  for library in ("nnx", "equinox"):
    found = run(*made(library))
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_integrated_gradients_of_a_wrapped_model_start_at_zero():
  net, images = made("function")
  run = jax.jit(METHODS["integrated_gradients"].divide)
  _, found, score = run(net, images, TARGETS)
  change = net(images)[0] - net(jnp.zeros_like(images))[0]
  np.testing.assert_allclose(
    score, jnp.take_along_axis(change, TARGETS, 1), rtol=1e-4
  )
  np.testing.assert_allclose(found, score, rtol=0.05)


@pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])
def test_places_are_listed_with_the_shapes_of_their_outputs(library):
  weights = foreign.weights_of(ours())
  model = {
    "nnx": foreign.nnx_net,
    "linen": foreign.linen_net,
    "equinox": foreign.eqx_net,
  }[library](weights)
  shape = (2, 3, 32, 32) if library == "equinox" else (2, 32, 32, 3)
  found = gc_jax.places(model, jax.ShapeDtypeStruct(shape, jnp.float32))
  last = {"nnx": "layer2.1", "linen": "layer2_1", "equinox": "layer2.1"}[
    library
  ]
  expected = (2, 64, 4, 4) if library == "equinox" else (2, 4, 4, 64)
  assert found[last].shape == expected
  assert found["fc"].shape == (2, 5)
  assert len(found) >= 12


def test_the_layers_of_our_own_models_are_places():
  found = gc_jax.places(ours(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8))
  assert [*found] == ["maxpool", "layer1", "layer2"]


class Tokens(nnx.Module):
  """A class token and 3x4 patches; a dense layer mixes their channels."""

  def __init__(self, rngs):
    self.embed = nnx.Conv(3, 8, (4, 4), 4, padding="VALID", rngs=rngs)
    self.block = nnx.Linear(8, 8, rngs=rngs)
    self.head = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, images):
    x = self.embed(images)
    x = x.reshape(len(x), -1, 8)
    x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
    return self.head(nnx.relu(self.block(x)).mean(1))


def test_tokens_become_the_cells_of_a_grid():
  model = Tokens(nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(0), (2, 12, 16, 3))
  net = gc_jax.wrap(model, at="block", grid=(3, 4), prefix=1)
  _, activations, _ = net(images)
  assert activations.shape == (2, 3, 4, 8)
  x = model.embed(images).reshape(2, -1, 8)
  np.testing.assert_allclose(
    activations.reshape(2, 12, 8), model.block(x), atol=1e-6
  )
  # The gradient at the grid alone; the class token has none.
  _, _, gradients, _ = net.looked(images, jnp.array([[1], [2]]))
  on = (
    (activations > 0)[:, None]
    * model.head.kernel[...].T[jnp.array([[1], [2]])][:, :, None, None]
    / 13
  )
  np.testing.assert_allclose(gradients, on, atol=1e-6)
  with pytest.raises(ValueError, match=r"\[B 0\+3\*4 D\] tokens.*\(2, 13, 8\)"):
    gc_jax.wrap(model, at="block", grid=(3, 4))(images)
  with pytest.raises(ValueError, match=r"must be a grid of cells.*prefix=n"):
    gc_jax.wrap(model, at="block")(images)


def test_a_place_that_is_unknown_twice_passed_or_never_passed_is_named():
  class Twice(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 3, (1, 1), rngs=rngs)
      self.spare = nnx.Conv(3, 3, (1, 1), rngs=rngs)

    def __call__(self, images):
      return self.conv(self.conv(images)).mean((1, 2))

  model, images = Twice(nnx.Rngs(0)), pixels()
  with pytest.raises(ValueError, match=r"Unknown at='conf'.*gc_jax\.places"):
    gc_jax.wrap(model, at="conf")
  with pytest.raises(ValueError, match="passes 'conv' more often"):
    gc_jax.wrap(model, at="conv")(images)
  with pytest.raises(ValueError, match="must pass the place 'spare'"):
    gc_jax.wrap(model, at="spare")(images)
  with pytest.raises(ValueError, match="at must name a place"):
    gc_jax.wrap(model)
  with pytest.raises(ValueError, match="prefix= goes with grid="):
    gc_jax.wrap(model, at="conv", prefix=1)
  with pytest.raises(TypeError, match="it is a dict"):
    gc_jax.wrap({"a": 1})
  with pytest.raises(TypeError, match="it is the class Twice"):
    gc_jax.wrap(Twice)
  assert gc_jax.places(model, images) == {}
  with pytest.raises(TypeError, match=r"take the images and a tap.*\(x\)"):
    gc_jax.wrap(lambda x: x.mean((1, 2)))
  with pytest.raises(TypeError, match=r"this one comes from jax\.jit"):
    gc_jax.wrap(jax.jit(lambda x, tap: tap(x).mean((1, 2))))
  with pytest.raises(TypeError, match="model is wrapped already"):
    gc_jax.wrap(gc_jax.wrap(model, at="conv"), at="conv")
  with pytest.raises(ValueError, match=r"return logits \[B K\].*a tuple"):
    gc_jax.wrap(lambda x, tap: (tap(x), x))(images)
  with pytest.raises(ValueError, match=r"For one picture, give images\[None\]"):
    gc_jax.places(model, images[0])
  linen = foreign.linen_net(foreign.weights_of(ours()))
  with pytest.raises(TypeError, match="without its variables"):
    gc_jax.wrap(linen[0], at="layer2")
  with pytest.raises(TypeError, match=r"a bound LinenNet: give model\.unbind"):
    gc_jax.wrap(linen[0].bind(linen[1]), at="layer2")
  with pytest.raises(ValueError, match="must pass the place 'layer9'"):
    gc_jax.wrap(linen, at="layer9")(images)


def test_a_method_without_a_rule_names_the_operation():
  def smooth(images, tap):
    x = tap(jnp.tanh(images))
    return jnp.tanh(x.mean((1, 2)) @ jnp.ones((3, 5)))

  net = gc_jax.wrap(smooth)
  for name in ("cmwp", "excitation_backprop", "fullgrad"):
    with pytest.raises(ValueError, match=r"'tanh' of activations.*Grad-CAM"):
      METHODS[name](net, pixels(), TARGETS)
  assert METHODS["gradcam"](net, pixels(), TARGETS).shape == (2, 2, 32, 32)


def test_the_users_module_is_left_as_it_was_and_statistics_come_back():
  model = foreign.nnx_net(foreign.weights_of(ours()))
  model.train()
  before = jax.tree.map(np.array, nnx.state(model))
  kinds = [type(module) for _, module in nnx.iter_modules(model)]
  net = gc_jax.wrap(model, at="layer2.1")
  _, _, after = net(normalize_pixels(pixels()))
  assert kinds == [type(module) for _, module in nnx.iter_modules(model)]
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
  model(normalize_pixels(pixels()))  # what the user's own call does
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    net.call.state(after),
    nnx.state(model),
  )


@pytest.mark.parametrize("library", ["nnx", "linen", "function"])
def test_explaining_costs_a_forward_pass_and_the_tails_gradient(library):
  net, images = made(library)

  def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

  explained = flops(
    lambda net, x: gc_jax.explain(net, x, jnp.array([0, 2]), "gradcam"),
    net,
    images,
  )
  forward = flops(lambda net, x: net(x)[0], net, images)
  tail = flops(
    lambda x, w: jax.vjp(lambda x: x.mean((1, 2)) @ w, x)[1](jnp.ones((2, 5))),
    jnp.zeros((2, 4, 4, 64)),
    jnp.zeros((64, 5)),
  )
  assert explained <= 1.05 * (forward + tail)


def test_explain_predict_and_quadrants_take_wrapped_models():
  net, images = made("function")
  own = ours()
  np.testing.assert_allclose(
    gc_jax.predict(net, images), gc_jax.predict(own, pixels()), atol=1e-4
  )
  found = gc_jax.explain(net, images, [1, 2], "gradcam")
  expected = gc_jax.explain(own, pixels(), [1, 2], "gradcam", layer="layer2")
  np.testing.assert_allclose(found, expected, atol=1e-5)
  inside = jax.jit(
    lambda x: gc_jax.explain(net, x, jnp.array([1, 2]), "gradcam")
  )
  np.testing.assert_allclose(inside(images), expected, atol=1e-5)
  for wrong in (-1, 5):
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.4"):
      gc_jax.explain(net, images, [0, wrong])
  found = gc_jax.negative_quadrants(net, images, [1, 2], jax.random.key(0))
  assert found.shape == (2,) and ((found >= 0) & (found <= 1)).all()
  alone = gc_jax.negative_quadrants(net, images, [1, 1], jax.random.key(0))
  assert np.isnan(alone).all()


def test_a_redefined_method_is_compiled_anew(monkeypatch):
  net, images = made("function")
  before = gc_jax.explain(net, images, [1, 2], "layercam")
  flat = lambda model, images, targets: jnp.ones((*targets.shape, 2, 2))
  entry = METHODS["layercam"]
  monkeypatch.setitem(METHODS, "layercam", type(entry)("Flat", flat))
  assert before.shape == (2, 4, 4)
  for model, x in ((net, images), (ours(), pixels())):
    after = gc_jax.explain(model, x, [1, 2], "layercam")
    np.testing.assert_allclose(after, 0.25)


def test_a_function_whose_weights_change_is_not_remembered():
  weights = jnp.ones((3, 5))
  net = gc_jax.wrap(lambda images, tap: tap(images).mean((1, 2)) @ weights)
  assert gc_jax.predict(net, pixels()).any()
  weights = jnp.zeros((3, 5))
  assert not gc_jax.predict(net, pixels()).any()


class LinenDropout(nn.Module):
  @nn.compact
  def __call__(self, images, train):
    x = nn.Conv(4, (3, 3), name="conv")(images)
    return nn.Dense(5)(nn.Dropout(0.5, deterministic=not train)(x).mean((1, 2)))


def test_settings_of_a_linen_call_are_given_to_it():
  model, images = LinenDropout(), pixels()
  variables = model.init(jax.random.key(0), images, False)
  rngs = {"dropout": jax.random.key(1)}
  net = gc_jax.wrap((model, variables), at="conv", train=True, rngs=rngs)
  np.testing.assert_allclose(
    jax.jit(lambda net: net(images)[0])(net),
    model.apply(variables, images, True, rngs=rngs),
    rtol=1e-5,
  )


def test_an_equinox_model_with_a_state_gives_the_new_one():
  class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __call__(self, image, state):
      x, state = self.norm(self.conv(image), state)
      return jax.nn.relu(x).mean((1, 2)), state

  def make(key):
    return Net(
      eqx.nn.Conv2d(3, 5, 3, key=key),
      eqx.nn.BatchNorm(5, axis_name="images", mode="ema"),
    )

  model, state = eqx.nn.make_with_state(make)(jax.random.key(0))
  images = jnp.moveaxis(pixels(), -1, 1)
  net = gc_jax.wrap((model, state), at="norm")
  logits, activations, after = net(images)
  expected, new = jax.vmap(
    model, axis_name="images", in_axes=(0, None), out_axes=(0, None)
  )(images, state)
  np.testing.assert_allclose(logits, expected, rtol=1e-5)
  assert activations.shape == (2, 30, 30, 5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    net.call.state(after),
    new,
  )


def row_between(x, value):
  return jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=value)


# What puts numbers in the place of activations, after a normalisation.
CUT = {
  "relu6": lambda x: jax.nn.relu6(9 * x),
  "clip": lambda x: jnp.clip(x, -0.5, 0.5),
  "clamp": lambda x: jax.lax.clamp(-0.5, x, 0.5),
  "floor": lambda x: jnp.maximum(x, 0.3),
  "where": lambda x: jnp.where(x > 0, x, 0.25),
  "pad": lambda x: row_between(x, 1.0),
  "maximum": lambda x: (
    row_between(2 * x + 1, -jnp.inf).reshape(2, 5, 2, 8, 3).max(2)
  ),
  "token": lambda x: jnp.concatenate([x, jnp.ones((2, 1, 8, 3))], 1),
}


def cut(name):
  weights = jax.random.normal(jax.random.key(0), (3, 5))
  net = gc_jax.wrap(lambda x, tap: CUT[name](tap(x)).mean((1, 2)) @ weights)
  return net, jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


@pytest.mark.parametrize("name", CUT)
def test_fullgrad_counts_the_numbers_that_take_the_place_of_activations(name):
  maps, found, score = METHODS["fullgrad"].divide(*cut(name), TARGETS)
  np.testing.assert_allclose(found, score, atol=1e-5)
  assert np.isfinite(maps).all()


@pytest.mark.parametrize("name", ["relu6", "clip", "clamp"])
def test_probability_passes_units_that_are_cut_off_above(name):
  net, images = cut(name)
  found = METHODS["excitation_backprop"](net, jnp.abs(images), TARGETS)
  np.testing.assert_allclose(found.sum((-2, -1)), 1, rtol=1e-5)


def test_what_falls_as_an_activation_rises_has_no_rule():
  weights = jnp.ones((3, 5))
  images = 1 + pixels()
  over = gc_jax.wrap(lambda x, tap: (2 / tap(x)).mean((1, 2)) @ weights)
  less = gc_jax.wrap(lambda x, tap: (2 - tap(x)).mean((1, 2)) @ weights)
  for name, net, operation in (
    ("fullgrad", over, "div"),
    ("excitation_backprop", over, "div"),
    ("excitation_backprop", less, "sub"),
  ):
    with pytest.raises(ValueError, match=f"'{operation}' of activations"):
      METHODS[name](net, images, TARGETS)


@pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])
def test_a_model_that_is_wrapped_anew_is_not_compiled_anew(library):
  treedefs = [jax.tree.structure(made(library)[0]) for _ in range(2)]
  assert treedefs[0] == treedefs[1]
  assert hash(treedefs[0]) == hash(treedefs[1])


def test_a_module_that_two_share_is_known_under_both_paths():
  class Block(nnx.Module):
    def __init__(self, norm):
      self.norm = norm

    def __call__(self, x):
      return x

  class Sharing(nnx.Module):
    def __init__(self, rngs):
      conv = nnx.Conv(3, 5, (1, 1), rngs=rngs)
      self.first, self.second = Block(conv), Block(conv)

    def __call__(self, images):
      return self.second.norm(self.first(images)).mean((1, 2))

  model, images = Sharing(nnx.Rngs(0)), pixels()
  found = gc_jax.places(model, images)
  assert found["second.norm"].shape == found["first.norm"].shape
  maps = [
    gc_jax.explain(gc_jax.wrap(model, at=f"{block}.norm"), images, [0, 1])
    for block in ("first", "second")
  ]
  np.testing.assert_array_equal(*maps)


TRACES = []


@dataclasses.dataclass
class Sizes:  # cannot be hashed
  channels: list[int]


class Configured(nnx.Module):
  """Of the form that our own models have, with a config of its own."""

  def __init__(self, channels, rngs):
    self.sizes = nnx.static(Sizes([channels]))
    self.conv = nnx.Conv(3, channels, (3, 3), rngs=rngs)
    self.fc = nnx.Linear(channels, 5, rngs=rngs)

  def normalize(self, images):
    return 2 * images

  def features(self, images):
    return nnx.relu(self.conv(images))

  def classify(self, features, key=None):
    return self.fc(features.mean((1, 2)) * self.sizes.channels[0])

  def __call__(self, images):
    TRACES.append(images.shape)
    return self.classify(self.features(self.normalize(images)))


def test_models_whose_attributes_cannot_be_hashed_are_compiled_once():
  model, images = Configured(4, nnx.Rngs(0)), pixels()
  net = gc_jax.wrap(model, at="conv")
  expected = gc_jax.predict(net, images)
  np.testing.assert_allclose(gc_jax.predict(model, images), expected, rtol=1e-5)
  assert gc_jax.explain(model, images, [0, 1]).shape == (2, 32, 32)
  gc_jax.explain(net, images, [0, 1])
  TRACES.clear()
  again = gc_jax.wrap(model, at="conv")
  gc_jax.explain(again, images, [0, 1])
  # The classes are counted, which traces; nothing is compiled.
  assert len(TRACES) <= 1
  model.sizes.channels[0] = 8  # what a list holds is compared
  changed = gc_jax.predict(gc_jax.wrap(model, at="conv"), images)
  np.testing.assert_allclose(changed, 2 * expected, rtol=1e-4)


class Scaling(nnx.Module):
  """Scales integers itself, and takes floats in [0, 1]."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.fc = nnx.Linear(4, 5, rngs=rngs)

  def __call__(self, images):
    if images.dtype == jnp.uint8:
      images = images.astype(jnp.float32) / 255
    return self.fc(nnx.relu(self.conv(images)).mean((1, 2)))


def test_a_model_gets_integers_as_they_are():
  model = Scaling(nnx.Rngs(0))
  net = gc_jax.wrap(model, at="conv")
  images = (255 * jnp.tile(pixels(), (2, 1, 1, 1))).astype(jnp.uint8)
  floats, labels, key = images / 255, jnp.arange(4), jax.random.key(0)
  for run in (
    lambda x: gc_jax.predict(net, x),
    lambda x: gc_jax.explain(net, x, labels, normalize=False),
    lambda x: gc_jax.consistency(net, x, labels, key).loss,
    lambda x: gc_jax.negative_quadrants(net, x, labels, key),
  ):
    np.testing.assert_allclose(run(images), run(floats), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(
    gc_jax.predict(net, images), model(images), rtol=1e-5
  )
  assert gc_jax.places(model, images)["conv"].dtype == jnp.float32
  for name in (*OF_PIXELS, "fullgrad"):
    with pytest.raises(ValueError, match=r"must be floats here.*uint8.*/ 255"):
      gc_jax.explain(net, images, labels, name)
  for area in (gc_jax.insertion, gc_jax.deletion):
    with pytest.raises(ValueError, match=r"must be floats here.*uint8"):
      area(net, images, labels, jnp.ones((4, 2, 2)))
  with pytest.raises(ValueError, match=r"one array of floats; it is of uint8"):
    gc_jax.wrap(lambda x, tap: tap(x).mean((1, 2)))(images)
