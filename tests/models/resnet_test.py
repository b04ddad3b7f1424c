"""ResNets: torchvision's sizes, names and shapes; modes and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models

# torchvision's own numbers, at 1,000 classes.
NUM_PARAMS = {
  "resnet18": 11_689_512,
  "resnet34": 21_797_672,
  "resnet50": 25_557_032,
  "resnet101": 44_549_160,
}


@functools.cache
def abstract(name, num_classes=1_000):
  """The model's shapes: nothing is drawn, nothing allocated."""
  key = models.init_key(0)
  return nnx.eval_shape(
    lambda key: models.create(name, num_classes, key=key), key
  )


def names(model):
  return {
    ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))
  }


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_parameters_are_as_many_as_torchvisions(name):
  params = nnx.state(abstract(name), nnx.Param)
  num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert num_params == NUM_PARAMS[name]


def torchvision_names(stage_sizes, num_convs, first_has_shortcut):
  """Names of its modules that hold weights; ours of leaves beside each."""
  conv, norm = (
    ["kernel"],
    [
      "scale",
      "bias",
      "mean",
      "var",
      "num_batches_tracked",
    ],
  )
  modules = {"conv1": conv, "bn1": norm, "fc": ["kernel", "bias"]}
  for stage, num_blocks in enumerate(stage_sizes, 1):
    for block in range(num_blocks):
      prefix = f"layer{stage}.{block}"
      for i in range(1, num_convs + 1):
        modules[f"{prefix}.conv{i}"] = conv
        modules[f"{prefix}.bn{i}"] = norm
      if block == 0 and (stage > 1 or first_has_shortcut):
        modules[f"{prefix}.downsample.0"] = conv
        modules[f"{prefix}.downsample.1"] = norm
  return {f"{module}.{leaf}" for module in modules for leaf in modules[module]}


def test_names_are_torchvisions():
  basic = torchvision_names((2, 2, 2, 2), 2, first_has_shortcut=False)
  assert "layer2.0.downsample.0.kernel" in basic
  assert names(abstract("resnet18")) == basic
  bottleneck = torchvision_names((3, 4, 6, 3), 3, first_has_shortcut=True)
  assert names(abstract("resnet50")) == bottleneck


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
  block = abstract("resnet50").layer2[0]
  assert block.conv1.strides == 1 and block.conv1.kernel.shape[:2] == (1, 1)
  assert block.conv2.strides == 2 and block.conv2.kernel.shape[:2] == (3, 3)


def torch_size(size):
  """floor((n + 2 p - k) / s) + 1, five times: stem, pool, three stages."""
  for kernel, pad in ((7, 3), (3, 1), (3, 1), (3, 1), (3, 1)):
    size = (size + 2 * pad - kernel) // 2 + 1
  return size


@pytest.mark.parametrize("size", [(224, 224), (448, 448), (187, 251)])
def test_the_feature_grid_is_pytorchs(size):
  graphdef, state = nnx.split(abstract("resnet18"))

  def features(state, images):
    model = nnx.merge(graphdef, state)
    model.eval()
    return model.features(images)

  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  grid = jax.eval_shape(features, state, images).shape
  assert grid == (1, *map(torch_size, size), 512)
  assert torch_size(224) == 7 and torch_size(448) == 14


def test_every_architecture_comes_with_both_poolings():
  # The perceptrons of AlexNet and VGG16 have no global pooling to replace.
  plain = {name for name in models.MODELS if not name.endswith("-gmp")}
  plain -= {"alexnet", "vgg16"}
  maximum = {name for name in models.MODELS if name.endswith("-gmp")}
  assert maximum == {f"{name}-gmp" for name in plain}
  for name in plain & {"resnet8-small", "resnet18"}:
    average, maximum = abstract(name), abstract(f"{name}-gmp")
    assert (average.pooling, maximum.pooling) == ("average", "max")
    assert names(average) == names(maximum)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_the_smallest_picture_leaves_a_cell_and_a_smaller_one_none(name):
  def cells(side):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    graphdef, state = nnx.split(abstract(name))
    features = lambda state, x: nnx.merge(graphdef, state).features(x)
    try:
      return jax.eval_shape(features, state, image).shape[1]
    except (TypeError, ValueError):  # a window larger than what is left
      return 0

  smallest = models.MODELS[name].min_px
  assert cells(smallest) > 0
  assert smallest == 1 or cells(smallest - 1) == 0


def images(count=2, size=16, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3))
  return jnp.asarray(pixels, jnp.uint8)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_logits_are_float32_whatever_the_compute_dtype(make_tiny, pooling):
  logits = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    model = make_tiny(pooling, dtype=dtype)
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
      assert leaf.dtype == jnp.float32
    model.eval()
    features = model.features(model.normalize(images()))
    assert features.dtype == dtype and features.shape == (2, 4, 4, 8)
    assert features.min() >= 0
    logits[dtype] = model.classify(features)
    assert logits[dtype].dtype == jnp.float32
    # Pooled in float32, too: a bfloat16 mean would lose five digits.
    np.testing.assert_allclose(
      logits[dtype], model.classify(features.astype(jnp.float32)), rtol=1e-6
    )
  # Three convolutions of 8-bit numbers.
  np.testing.assert_allclose(
    logits[jnp.float32], logits[jnp.bfloat16], atol=0.05
  )


def test_training_updates_the_running_statistics_and_evaluation_does_not(
  make_tiny,
):
  model = make_tiny()

  def stats_after(mode):
    getattr(model, mode)()
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    before = jax.tree.map(np.array, before)
    model.features(model.normalize(images()))
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    return jax.tree.leaves(same)

  assert stats_after("eval") == [True] * 9
  assert stats_after("train") == [False] * 9


def test_running_statistics_are_those_of_the_batch(make_tiny):
  model = make_tiny()
  model.train()
  batch = model.normalize(images())
  before_norm = np.asarray(model.conv1(batch))
  model.features(batch)
  # PyTorch's momentum of 0.1, from mean 0 and variance 1.
  np.testing.assert_allclose(
    model.bn1.mean[...], 0.1 * before_norm.mean((0, 1, 2)), atol=1e-6
  )
  np.testing.assert_allclose(
    model.bn1.var[...],
    0.9 + 0.1 * before_norm.var((0, 1, 2), ddof=1),
    rtol=1e-5,
  )


def test_in_evaluation_each_image_stands_alone(make_tiny):
  model = make_tiny()
  model.eval()
  together = model.features(model.normalize(images(3)))
  alone = model.features(model.normalize(images(3)[1:2]))
  # Sums of another order in float32.
  np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


def test_the_pure_head_is_the_head(make_tiny):
  model = make_tiny("max")
  features = jax.random.uniform(jax.random.key(0), (2, 4, 4, 8))
  np.testing.assert_array_equal(
    models.pure_head(model)(features), model.classify(features)
  )
