"""Layers as PyTorch defines them: against loops, constants and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gc_jax.models import init_key, network
from gc_jax.models.pixels import normalize_pixels


@pytest.fixture
def rngs():
  return nnx.Rngs(init_key(0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_global_pooling_takes_the_mean_or_the_first_maximum(dtype):
  x = np.random.default_rng(0).integers(0, 4, (2, 3, 5, 6))  # many ties
  features = jnp.asarray(x, dtype)
  cells = x.reshape(2, 15, 6)
  np.testing.assert_array_equal(
    network.pool_globally(features, "max"), cells.max(1)
  )
  np.testing.assert_allclose(
    network.pool_globally(features, "average").astype(jnp.float32),
    cells.mean(1),
    rtol=1e-2,  # bfloat16 has 8 bits
  )
  grad = jax.grad(lambda f: network.pool_globally(f, "max").sum())(features)
  first = np.moveaxis(np.eye(15)[cells.argmax(1)], -1, 1).reshape(x.shape)
  np.testing.assert_array_equal(grad, first)
  with pytest.raises(ValueError, match="'average' or 'max'; it is 'avg'"):
    network.pool_globally(features, "avg")


@pytest.mark.parametrize("size", [(1, 1), (4, 9), (13, 7), (27, 5)])
@pytest.mark.parametrize("grid", [1, 6, 7])
def test_averaging_to_a_grid_is_pytorchs_adaptive_pooling(size, grid):
  x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  theirs = torch.nn.functional.adaptive_avg_pool2d(
    torch.from_numpy(x).permute(0, 3, 1, 2), (grid, grid)
  )
  np.testing.assert_allclose(
    network.average_to_grid(jnp.asarray(x), grid),
    theirs.permute(0, 2, 3, 1),
    atol=1e-6,  # float32 sums of up to 351 numbers
  )


def test_dropping_keeps_the_mean():
  x = jnp.ones(100_000)
  dropped = np.asarray(network.dropout(x, 0.2, jax.random.key(0)))
  assert set(np.unique(dropped)) == {0.0, np.float32(1.25)}
  # Four standard errors of a share of 0.2.
  assert abs((dropped == 0).mean() - 0.2) < 4 * np.sqrt(0.16 / x.size)
  assert network.dropout(x, 0.2, None) is x


def test_batch_norm_has_pytorchs_momentum_and_epsilon(rngs):
  """In training, then in evaluation; the variance, 1e-4, is near epsilon."""
  norm = network.BatchNorm(2, dtype=jnp.float32, rngs=rngs)
  theirs = torch.nn.BatchNorm2d(2)
  x = np.random.default_rng(0).normal(0.3, 0.01, (4, 3, 3, 2)).astype("f")
  for mode in ("train", "eval"):
    getattr(norm, mode)(), getattr(theirs, mode)()
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).detach()
    # The variance is a difference of squares near 0.1 in float32.
    np.testing.assert_allclose(
      norm(jnp.asarray(x)), expected.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(norm.mean[...], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], theirs.running_var, rtol=1e-5)
    assert norm.num_batches_tracked[...] == 1


def test_pixels_are_normalized_as_torchvision_does():
  images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
  mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
  expected = (images / 255 - mean) / std
  ours = normalize_pixels(jnp.asarray(images))
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, expected, atol=1e-6)  # float32
  of_floats = normalize_pixels(jnp.asarray(images / 255, jnp.float32))
  np.testing.assert_allclose(of_floats, ours, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolutions_start_from_hes_rule_on_the_fan_out(rngs, kernel_size):
  """A normal of variance 2 / (k k out), as torchvision's ResNets."""
  conv = network.conv(128, 64, kernel_size, dtype=jnp.float32, rngs=rngs)
  kernel = np.asarray(conv.kernel[...])
  std = np.sqrt(2 / (kernel_size**2 * 64))
  # Four standard errors of a mean, of a standard deviation, of a share.
  count = kernel.size
  assert abs(kernel.mean()) < 4 * std / np.sqrt(count)
  assert abs(kernel.std() / std - 1) < 4 / np.sqrt(2 * count)
  outside = (np.abs(kernel) > 2 * std).mean()  # a truncated normal has none
  assert abs(outside - 0.0455) < 4 * np.sqrt(0.0455 * 0.9545 / count)


def test_the_head_starts_as_torch_linear(rngs):
  """Uniform in +-1 / sqrt(in), kernel and bias alike."""
  head = network.linear(400, 50, rngs=rngs)
  for values in (head.kernel[...], head.bias[...]):
    assert np.abs(values).max() <= 1 / 20
    assert np.abs(values).max() > 0.9 / 20
    error = (1 / 20) / np.sqrt(3 * values.size)
    assert abs(values.mean()) < 4 * error
    # The variance of a uniform's square is 4/45 of the bound's fourth power.
    spread = np.sqrt(4 / 45 / values.size)
    assert abs((values**2).mean() * 400 - 1 / 3) < 4 * spread


def test_batch_norm_loses_no_digits_to_a_large_mean(rngs):
  """Near the running mean, as in a run: no more than the mean itself has.

  float32 has seven; squares of it, seen from 0, would leave one.
  """
  x = np.random.default_rng(0).normal(1_000, 1, (8, 16, 16, 4))
  x = x.astype(np.float32)
  norm = network.BatchNorm(4, dtype=jnp.float32, rngs=rngs)
  norm.mean[...] = jnp.full(4, 999.0)
  norm.train()
  exact = x.astype(np.float64)
  expected = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2))
  np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=5e-4)


def test_running_statistics_are_not_rounded_to_the_compute_dtype(rngs):
  """bfloat16 would take 100.3 for 100.5 and be wrong by two deviations."""
  norm = network.BatchNorm(1, dtype=jnp.bfloat16, rngs=rngs)
  norm.mean[...], norm.var[...] = jnp.array([100.3]), jnp.array([0.01])
  norm.eval()
  y = norm(jnp.full((1, 1, 1, 1), 100.5, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), 2.0, rtol=0.01)


@pytest.mark.parametrize("groups", [1, 3])
def test_groups_are_normalized_as_pytorchs_replicas_are(rngs, groups):
  """Each by itself, gradients included; running statistics are their mean."""
  rng = np.random.default_rng(0)
  # Group by group from another distribution.
  shift = np.repeat(np.arange(groups), 4)[:, None, None, None]
  x = rng.normal(shift, 1 + shift, (4 * groups, 3, 3, 2)).astype(np.float32)
  weights = rng.normal(size=x.shape).astype(np.float32)
  norm = network.BatchNorm(2, dtype=jnp.float32, rngs=rngs)
  norm.scale[...], norm.bias[...] = jnp.array([2.0, 0.5]), jnp.array([1.0, -1])
  norm.train(bn_groups=groups)
  graphdef, state = nnx.split(norm)

  def loss(x, state):
    norm = nnx.merge(graphdef, state, copy=True)
    out = norm(x)
    return (out * weights).sum(), (out, nnx.state(norm, nnx.BatchStat))

  (_, (out, stats)), (grad, state_grad) = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
  )(jnp.asarray(x), state)

  means, variances, outs, grads = [], [], [], []
  theirs = torch.nn.BatchNorm2d(2)
  theirs.weight.data = torch.tensor([2.0, 0.5])
  theirs.bias.data = torch.tensor([1.0, -1.0])
  for group, weight in zip(
    np.split(x, groups), np.split(weights, groups), strict=True
  ):
    theirs.running_mean.zero_(), theirs.running_var.fill_(1.0)
    inputs = torch.from_numpy(group).permute(0, 3, 1, 2).requires_grad_()
    result = theirs(inputs).permute(0, 2, 3, 1)
    (result * torch.from_numpy(weight)).sum().backward()
    outs.append(result.detach().numpy())
    grads.append(inputs.grad.permute(0, 2, 3, 1).numpy())
    means.append(theirs.running_mean.numpy().copy())
    variances.append(theirs.running_var.numpy().copy())
  # float32 sums over 36 numbers, in another order.
  close = {"rtol": 1e-4, "atol": 1e-5}
  np.testing.assert_allclose(out, np.concatenate(outs), **close)
  np.testing.assert_allclose(grad, np.concatenate(grads), **close)
  np.testing.assert_allclose(
    state_grad["scale"][...], theirs.weight.grad, **close
  )
  np.testing.assert_allclose(stats["mean"][...], np.mean(means, 0), **close)
  np.testing.assert_allclose(stats["var"][...], np.mean(variances, 0), **close)
  assert stats["num_batches_tracked"][...] == 1
  norm.eval()  # groups are of training alone: five images are no groups
  assert norm(jnp.asarray(np.concatenate([x, x])[:5])).shape[0] == 5


def test_a_held_origin_changes_rounding_alone(rngs):
  x = np.random.default_rng(0).normal(2, 3, (4, 3, 3, 2)).astype(np.float32)
  norm = network.BatchNorm(2, dtype=jnp.float32, rngs=rngs)
  norm.train()
  free = nnx.clone(norm)
  network.hold_origins(norm)
  for _ in range(3):
    ours, theirs = norm(jnp.asarray(x)), free(jnp.asarray(x))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(norm.mean[...], free.mean[...], rtol=1e-6)
  np.testing.assert_allclose(norm.var[...], free.var[...], rtol=1e-5)
  np.testing.assert_array_equal(norm.origin[...], 0)  # as it was
