"""Weights randomised from the head down, and the rank correlation of maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from gc_jax import models
from gc_jax.attribution import randomization


def made(name):
  model = models.create(name, 3)
  model.eval()
  return model


def numbers(model):
  """Path -> array of every variable but the count of batches."""
  return {
    path: np.asarray(variable[...])
    for path, variable in nnx.to_flat_state(nnx.state(model))
    if path[-1] != "num_batches_tracked"
  }


def test_stages_go_from_the_head_down(small_models):
  stages = randomization.stages
  assert stages(made("resnet8-small")) == ("fc", "layer2", "layer1", "conv1")
  assert stages(made("alexnet")) == (
    *("classifier.6", "classifier.4", "classifier.1"),
    *("features.10", "features.8", "features.6", "features.3", "features.0"),
  )
  fires = [f"features.{i}" for i in (12, 11, 10, 9, 7, 6, 4, 3, 0)]
  assert stages(made("squeezenet1_1")) == ("classifier.1", *fires)
  blocks = ("encoder_layer_1", "encoder_layer_0")
  assert stages(made("vit_tiny")) == ("heads", *blocks, "conv_proj")
  parts = [f"features.{i}" for i in reversed(range(8))]
  assert stages(made("convnext_tiny")) == ("classifier", *parts)


class Stranger(nnx.Module):
  """A network that says nothing of itself."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.middle = nnx.List([nnx.Conv(4, 4, (3, 3), rngs=rngs)])
    self.scale = nnx.Param(jnp.ones(()))
    self.answer = nnx.Linear(4, 3, rngs=rngs)


def test_a_model_that_says_nothing_is_taken_by_its_attributes():
  model = Stranger(nnx.Rngs(0))
  assert randomization.stages(model) == ("answer", "middle", "stem")
  before = numbers(model)
  after = numbers(randomization.randomized(model, "middle", jax.random.key(1)))
  changed = {p[0] for p in before if not np.array_equal(before[p], after[p])}
  assert changed == {"answer", "middle"}


@pytest.mark.parametrize(
  "name", ["resnet8-small", "alexnet", "vit_tiny", "convnext_tiny"]
)
def test_down_to_a_stage_everything_changes_and_nothing_below(
  name, small_models
):
  model = made(name)
  # Norms and biases as after training.
  rng = np.random.default_rng(0)
  for _, variable in nnx.to_flat_state(nnx.state(model)):
    if variable[...].ndim in (1, 3):
      variable[...] = variable[...] + rng.uniform(0.5, 1, variable.shape)
  before = numbers(model)
  stages = randomization.stages(model)
  for last, stage in enumerate(stages):
    other = randomization.randomized(model, stage, jax.random.key(0))
    changed = {
      path
      for path, array in numbers(other).items()
      if (array != before[path]).any()
    }
    expected = {
      path
      for path in before
      if any(_belongs(path, other) for other in stages[: last + 1])
    }
    assert changed == expected
  # The model itself is left as it was.
  for path, array in numbers(model).items():
    np.testing.assert_array_equal(array, before[path])


def _belongs(path, stage):
  first, *rest = map(str, path)
  if first == "bn1":
    return stage == "conv1"
  if first == "encoder":
    place = {"layers": rest[1:2], "ln": ["heads"]}.get(rest[0], ["conv_proj"])
    return stage in place
  if first == "class_token":
    return stage == "conv_proj"
  if (first, stage) == ("head", "classifier"):
    return True
  numbered = {"trunk": "features", "head": "classifier"}
  if first in numbered:
    return f"{numbered[first]}.{rest[0]}" == stage
  return first == stage


@pytest.mark.parametrize(
  "name",
  [
    *("resnet8-small", "alexnet", "vgg16", "squeezenet1_1"),
    *("vit_tiny", "convnext_tiny"),
  ],
)
def test_weights_are_drawn_as_the_architecture_draws_them(name, small_models):
  """Of the same spread and tails as those of a new model."""
  model = made(name)
  last = randomization.stages(model)[-1]
  drawn = numbers(randomization.randomized(model, last, jax.random.key(0)))
  for path, array in numbers(model).items():
    if path[-1] == "kernel":
      # Of n numbers the spread is known to about 1 / sqrt(2n).
      tolerance = 0.02 + 3 * array.size**-0.5
      assert drawn[path].std() == pytest.approx(array.std(), rel=tolerance)
      # Largest over spread: 1.7 of uniform numbers, 3 or more of normal ones.
      tails = [np.abs(x).max() / x.std() for x in (array, drawn[path])]
      if array.size > 1_000:
        assert (tails[0] < 2) == (tails[1] < 2)
    elif path[-1] == "bias":
      assert array.any() == drawn[path].any()


def test_the_copy_is_a_function_of_the_key_and_in_evaluation_mode():
  model = made("resnet8-small")
  model.train()
  one, other, same = (
    randomization.randomized(model, "fc", jax.random.key(seed))
    for seed in (0, 1, 0)
  )
  assert one.bn1.use_running_average and not model.bn1.use_running_average
  kernel = np.asarray(one.fc.kernel[...])
  assert np.abs(kernel - other.fc.kernel[...]).max() > 0.01
  np.testing.assert_array_equal(kernel, same.fc.kernel[...])


def test_an_unknown_stage_is_named():
  with pytest.raises(ValueError, match="stage must be one of fc, layer2"):
    randomization.randomized(made("resnet8-small"), "layer9", jax.random.key(0))


def test_the_rank_correlation_is_spearmans():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 5, (6, 4, 5)).astype(np.float32)  # with ties
  b = (a + rng.normal(size=a.shape)).astype(np.float32)
  found = randomization.rank_correlation(a, b)
  for x, y, value in zip(a, b, found, strict=True):
    expected = scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic
    assert value == pytest.approx(expected)
  # To the last digit of float32.
  same = randomization.rank_correlation(a, 3 * a)
  np.testing.assert_allclose(same, 1, rtol=2e-7)
  on_device = randomization.rank_correlation(jnp.asarray(a), jnp.asarray(b))
  np.testing.assert_array_equal(on_device, found)


def test_a_constant_map_has_no_order_to_compare():
  rng = np.random.default_rng(0)
  a = rng.random((1, 3, 3)).astype(np.float32)
  assert np.isnan(randomization.rank_correlation(a, np.ones_like(a)))
  assert np.isnan(randomization.rank_correlation(0 * a, a))
  # A mean is over the others.
  both, one_empty = np.concatenate([a, a]), np.concatenate([a, 0 * a])
  assert randomization.mean_correlation(both, one_empty) == pytest.approx(1)
  assert randomization.mean_correlation(a, 0 * a) is None
