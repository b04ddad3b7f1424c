"""A batch in parts, in groups, or computed anew: the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.method import compose
from gc_jax.models import network
from gc_jax.models.chain import POOL, Chain
from gc_jax.runtime.checkpoint import Checkpoints
from tests.training.small import (
  LABEL,
  PACKED,
  assert_close,
  batch_of,
  fixed,
  make_chain,
  make_step,
  mean,
  recipe,
  run_step,
  with_objects,
)


def interleaved(tree, num_parts):
  """The batch whose parts are the contiguous ones of `tree`."""
  return jax.tree.map(
    lambda x: (
      x.reshape(num_parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    ),
    tree,
  )


def assert_same_update(ours, theirs):
  (after, metrics), (expected, expected_metrics) = ours, theirs
  assert_close(after, expected, rtol=1e-5, atol=1e-6)
  assert metrics.keys() == expected_metrics.keys()
  for name in metrics:
    np.testing.assert_allclose(
      metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name
    )


@pytest.mark.parametrize(
  ("terms", "padding", "counted"),
  [
    # In the parts 4, 3, 2 and 3 images count.
    ((), [1, 2, 6, 15], ("classification_loss", 12)),
    # With an object: 4, 1, 2 and 2; not the mean of the parts' means.
    (("energy",), [1, 5, 9, 6], ("energy_loss", 9)),
  ],
)
def test_four_parts_update_as_one_batch_does_padding_included(
  terms, padding, counted
):
  """At a rate of 1 parameters fall by the gradient: here to 1e-6."""
  batch = with_objects(batch_of())
  batch["mask"] = batch["mask"].at[jnp.array(padding)].set(0)
  whole, parts = (
    run_step(make_chain(), recipe(*terms, accumulate_steps=count), batch)
    for count in (1, 4)
  )
  assert_same_update(whole, parts)
  name, count = counted
  assert parts[1][f"train/{name}"][1] == count


def test_two_parts_update_as_two_groups_of_one_batch_do(monkeypatch):
  """Each pair weighs the same, in whichever part and among however many."""

  def uneven(key, contains, target, mask):
    # A fixed layout; five pairs are masked in the group without class 0.
    drawn = fixed(PACKED).draw(key, contains, target, mask)
    fewer = drawn.mask.at[1].set(0)
    return drawn._replace(
      mask=jnp.where(target[0] == LABEL[0], drawn.mask, fewer)
    )

  monkeypatch.setitem(
    compose.MODES, "packed", fixed(PACKED)._replace(draw=uneven)
  )
  groups, parts = (
    run_step(
      make_chain(),
      recipe("consistency", groups=2 // count, accumulate_steps=count),
      # The groups are contiguous, the parts are taken in turns.
      interleaved(batch_of(), count),
    )
    for count in (1, 2)
  )
  assert groups[1]["train/consistency_loss"][1] == 7 + 3
  assert_same_update(groups, parts)


def test_the_parts_of_a_batch_draw_composites_and_dropout_of_their_own():
  """Two parts of the same images: two losses, not one twice."""
  twice = jax.tree.map(lambda x: jnp.repeat(x[:8], 2, axis=0), batch_of())
  once = jax.tree.map(lambda x: x[:8], batch_of())
  (total, count), (half, _) = (
    run_step(
      make_chain(dropout_rate=0.5),
      recipe("consistency", accumulate_steps=parts),
      batch,
    )[1]["train/classification_loss"]
    for batch, parts in ((twice, 2), (once, 1))
  )
  assert count == 16
  assert abs(float(total - 2 * half)) > 1e-3


def test_groups_and_parts_are_normalized_each_by_itself(make_tiny, monkeypatch):
  """A group: half a gradient of each, and the mean of running statistics.

  A part: the same gradients, but running statistics of one after the other.
  """
  full = PACKED._replace(mask=np.ones_like(PACKED.mask))
  monkeypatch.setitem(compose.MODES, "packed", fixed(full))
  batch = batch_of()
  halves = [jax.tree.map(lambda x, i=i: x[i : i + 8], batch) for i in (0, 8)]
  step, start = make_step(make_tiny("max"), recipe("consistency"))
  step = jax.jit(step)
  alone = [step(start, half) for half in halves]
  mean_of = lambda *x: sum(x) / len(x)
  params = jax.tree.map(mean_of, *(state.params for state, _ in alone))

  config = recipe("consistency", groups=2, model__bn_group=8)
  grouped, metrics = run_step(make_tiny("max"), config, batch)
  config = recipe("consistency", accumulate_steps=2)
  accumulated, of_parts = run_step(
    make_tiny("max"), config, interleaved(batch, 2)
  )
  for state in (grouped, accumulated):
    # The division by a variance, in another order of float32 sums.
    assert_close(state.params, params, rtol=1e-4, atol=1e-4)
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


def test_activations_computed_anew_give_the_same_update(make_tiny):
  results = []
  for remat in (False, True):
    config = recipe("consistency", groups=2, model__remat=remat)
    step, state = make_step(make_tiny("average"), config, lr=0.1)
    batch = batch_of()
    assert ("remat" in str(jax.make_jaxpr(step)(state, batch))) == remat
    results.append(jax.jit(step)(state, batch))
  assert_same_update(*results)


class Dropping(Chain):
  """A user's network: its dropout draws random numbers of its own."""

  def __init__(self, rngs):
    super().__init__(
      ((4, 3, 2, 1), POOL),
      10,
      pool_window=2,
      grid=2,
      hidden=8,
      drops_features=True,
      conv_init=network.TORCH_INIT,
      linear_init=network.TORCH_INIT,
      rngs=rngs,
    )
    self.drop = nnx.Dropout(0.5, rngs=rngs)

  def features(self, images):
    return self.drop(super().features(images))


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_dropout_with_random_numbers_of_its_own_trains(num_parts, tmp_path):
  """It draws anew in every step, and goes on from a checkpoint."""
  config = recipe("consistency", accumulate_steps=num_parts)
  step, state = make_step(Dropping(nnx.Rngs(0)), config, lr=0.0)
  step = jax.jit(step)
  first, metrics = step(state, batch_of())
  assert jax.tree.structure(first) == jax.tree.structure(state)
  second, others = step(first, batch_of())
  assert np.isfinite(mean(metrics, "loss"))
  assert mean(metrics, "loss") != mean(others, "loss")
  checkpoints = Checkpoints(tmp_path, keep=1)
  checkpoints.save(first, {}, best=0.0)
  checkpoints.wait()
  restored, _ = checkpoints.restore(state)
  checkpoints.close()
  again, _ = step(restored, batch_of())
  for one, other in zip(
    jax.tree.leaves(again), jax.tree.leaves(second), strict=True
  ):
    np.testing.assert_array_equal(*map(plain_data, (one, other)))


def plain_data(x):
  is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(x) if is_key else x
