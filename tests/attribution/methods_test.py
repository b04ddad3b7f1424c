"""What holds for every explanation method, and what the control maps are."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.attribution import CONTROLS, METHODS, grids, unfit
from gc_jax.attribution.taps import in_float32
from gc_jax.method import metrics

TARGETS = jnp.array([[3, 0], [7, 7]])
CAMS = ("gradcam", "gradcam_elementwise", "gradcam_plus_plus", "layercam")
# Each method, and Grad-CAMs inside the trunk.
CASES = [(name, {}) for name in METHODS]
CASES += [(name, {"layer": "maxpool"}) for name in CAMS]


def pixels():
  values = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
  return jnp.asarray(values, jnp.uint8)


def jitted(model, name, **settings):
  run = nnx.jit(functools.partial(METHODS[name], **settings))
  return functools.partial(run, model)


@pytest.fixture(scope="module")
def model_for(make_for):
  @functools.cache
  def made(method):
    net = make_for(method)("max")
    # Statistics of pixels, so that some maps are not empty.
    net.train()
    net.features(net.normalize(pixels()))
    net.eval()
    return net

  return made


@pytest.fixture(scope="module")
def maps_for(model_for):
  """Returns a method's maps of both classes, each computed once."""

  @functools.cache
  def made(name, **settings):
    return jitted(model_for(name), name, **settings)(pixels(), TARGETS)

  return made


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_each_class_is_explained_alone_jitted_or_not_of_bytes_or_fractions(
  model_for, maps_for, name, settings
):
  model = model_for(name)
  before = jax.tree.map(np.array, nnx.state(model))
  both = maps_for(name, **settings)
  fractions = pixels().astype(jnp.float32) / 255
  alone = METHODS[name](model, fractions, TARGETS[:, 1:], **settings)
  assert both.dtype == jnp.float32 and both.min() >= 0 and both.max() > 0
  np.testing.assert_allclose(both[:, 1:], alone, rtol=1e-3, atol=1e-5)
  # The model is left as it was.
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_black_picture_one_logit_and_bfloat16_will_do(
  make_for, name, settings
):
  if name == "rise":
    settings = {"multi_label": True}  # one logit has no softmax
  model = make_for(name)("average", 1, dtype=jnp.bfloat16)
  model.eval()
  images = pixels().at[0].set(0)
  found = jitted(model, name, **settings)(images, jnp.zeros((2, 1), int))
  assert found.dtype == jnp.float32 and found.shape[:2] == (2, 1)
  assert jnp.isfinite(found).all() and (found >= 0).all()


# At the features, Grad-CAMs see what training sees, rounded by the trunk.
@pytest.mark.parametrize(
  ("name", "settings"), [c for c in CASES if c[0] not in CAMS or c[1]]
)
def test_nothing_is_rounded_inside_a_bfloat16_model(make_for, name, settings):
  found = []
  for dtype in (jnp.float32, jnp.bfloat16):
    model = make_for(name)("max", dtype=dtype)
    model.eval()
    found.append(jitted(model, name, **settings)(pixels(), TARGETS))
  assert model.dtype == jnp.bfloat16  # left as it was
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*CAMS, "cmwp", "excitation_backprop"])
def test_a_layer_is_chosen_by_its_name(make_tiny, name):
  model = make_tiny()
  model.eval()
  default = METHODS[name].layer(model)
  np.testing.assert_array_equal(
    METHODS[name](model, pixels(), TARGETS),
    METHODS[name](model, pixels(), TARGETS, layer=default),
  )
  with pytest.raises(ValueError, match=r"maxpool, layer1.*Did you mean 'lay"):
    METHODS[name](model, pixels(), TARGETS, layer="layer4")


RULES = {"cmwp", "excitation_backprop", "fullgrad"}


@pytest.mark.parametrize(
  ("name", "lacking"),
  [
    ("resnet18", {"attention_rollout"}),
    ("alexnet", {"attention_rollout"}),
    ("squeezenet1_1", {"attention_rollout"}),
    ("vit_tiny", RULES),
    ("convnext_tiny", {*RULES, "attention_rollout"}),
  ],
)
def test_what_holds_and_the_sizes_of_maps_are_known_before_any_is_made(
  name, lacking, small_models
):
  model = models.create(name, 3)
  model.eval()
  width = 131 if name != "vit_tiny" else 128  # of whole patches
  images = jax.ShapeDtypeStruct((1, 96, width, 3), jnp.uint8)
  targets = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  found = unfit(METHODS, model, images)
  assert {*found} == lacking
  assert all("must find" in why and "Use a" in why for why in found.values())
  graphdef, state = nnx.split(model)
  holding = {k: v for k, v in METHODS.items() if k not in lacking} | CONTROLS
  for run in holding.values():
    maps = lambda state, *args, run=run: run(nnx.merge(graphdef, state), *args)
    cams = jax.eval_shape(maps, state, images, targets)
    assert grids([run], model, 96, width) == {cams.shape[2:]}


# Controls look at neither model nor images.


def control(name):
  return CONTROLS[name].explain(None, None, TARGETS)


def test_the_uniform_map_is_uniform():
  np.testing.assert_array_equal(control("uniform"), np.ones((2, 2, 8, 8)))


def test_the_center_map_is_a_gaussian_a_quarter_of_the_side_wide():
  offset = (np.arange(8) + 0.5) / 8 - 0.5
  squares = offset[:, None] ** 2 + offset**2
  expected = np.exp(-squares / (2 * 0.25**2))
  found = control("center")
  assert found.shape == (2, 2, 8, 8)
  np.testing.assert_allclose(found[1, 0], expected, rtol=1e-5)
  np.testing.assert_array_equal(
    found, np.broadcast_to(found[0, 0], found.shape)
  )


@pytest.mark.parametrize("cell", range(4))
@pytest.mark.parametrize("name", CONTROLS)
def test_neither_control_knows_a_quadrant(name, cell):
  """A negative-quadrants heatmap of 75 is what looking at nothing scores."""
  cam = metrics.as_distribution(control(name))
  score = metrics.negative_quadrants_heatmap(cam, jnp.full((2, 2), cell))
  np.testing.assert_allclose(score, 0.75, rtol=1e-6)  # float32


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_float64_model_is_explained_in_float64(
  model_for, maps_for, name, settings
):
  model, narrow = model_for(name), maps_for(name, **settings)
  with jax.enable_x64(True):
    wide = nnx.clone(model)
    nnx.update(
      wide,
      jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), nnx.state(model)),
    )
    wide = in_float32(wide)
    found = jitted(wide, name, **settings)(pixels(), TARGETS)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, narrow, rtol=1e-3, atol=1e-4)


def test_a_model_in_training_mode_is_refused_and_left_as_it_was(make_tiny):
  net = make_tiny()
  net.train()
  before = jax.tree.map(np.array, nnx.state(net))
  for name in METHODS:
    with pytest.raises(ValueError, match=r"evaluation mode.*model\.eval\(\)"):
      METHODS[name](net, pixels(), TARGETS)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(net))


@pytest.mark.parametrize(
  ("targets", "message"),
  [
    ([3, 7], r"must be \[B P\].*\(2,\)\. .*give targets\[:, None\]"),
    ([[3], [10]], r"must be in 0\.\.9.*10 is not"),
  ],
)
def test_targets_that_are_no_classes_are_refused(
  model_for, targets, message, monkeypatch
):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  with pytest.raises(ValueError, match=message):
    METHODS["gradcam"](model_for("gradcam"), pixels(), jnp.array(targets))
