"""RISE: against the equation, closed forms, and what its masks are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gc_jax
from gc_jax.attribution import masking

KEY = jax.random.key(3)
TARGETS = jnp.array([[0, 1], [2, 0]])


def images():
  return jax.random.uniform(jax.random.key(0), (2, 12, 15, 3))


def looking_at(row, column):
  """A net whose scores depend on the colour of one pixel alone."""
  return gc_jax.wrap(lambda x, tap: 4 * tap(x)[:, row, column])


@functools.cache
def drawn(count, cells=4):
  make = lambda key: masking._mask(key, 12, 15, cells, 0.3)
  return np.asarray(jax.vmap(make)(jax.random.split(KEY, count)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_map_is_the_equation_on_the_same_masks(multi_label):
  net, x = looking_at(4, 9), images()
  run = functools.partial(
    masking.rise, num_masks=50, cells=4, shown_frac=0.3, key=KEY
  )
  found = run(net, x, TARGETS, multi_label=multi_label)
  logits = 4 * drawn(50)[:, None, 4, 9, None] * np.asarray(x)[None, :, 4, 9]
  weights = np.exp(logits)
  scores = weights / (
    1 + weights if multi_label else weights.sum(-1, keepdims=True)
  )
  for image, place in np.ndindex(TARGETS.shape):
    score = scores[:, image, TARGETS[image, place]]
    mean = np.einsum("n,nhw->hw", score, drawn(50)) / drawn(50).sum(0)
    expected = np.maximum(mean - score.mean(), 0)
    np.testing.assert_allclose(found[image, place], expected, atol=1e-6)


def test_a_score_that_depends_on_no_pixel_has_an_empty_map():
  net = gc_jax.wrap(lambda x, tap: 0 * tap(x)[:, 0, 0] + jnp.arange(3.0)[None])
  found = masking.rise(net, images(), TARGETS, num_masks=20)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_the_brightest_pixel_is_near_the_one_that_matters():
  x = jnp.zeros((1, 12, 15, 3)).at[..., 0].set(1.0)
  net = looking_at(4, 9)
  (cam,) = masking.rise(net, x, jnp.array([[0]]), num_masks=500)[:, 0]
  row, column = np.unravel_index(cam.argmax(), cam.shape)
  assert abs(row - 4) <= 1 and abs(column - 9) <= 1
  # What speaks for a class speaks against the others.
  (other,) = masking.rise(net, x, jnp.array([[1]]), num_masks=500)[:, 0]
  assert cam[4, 9] > 0 and other[4, 9] == 0


def test_masks_show_every_pixel_equally_often():
  masks = drawn(4000)
  assert masks.shape == (4000, 12, 15)
  assert masks.min() == 0 and masks.max() == 1
  np.testing.assert_allclose(masks.mean(0), 0.3, atol=0.04)  # 6 sigma
  # A cell is 3 by 4 pixels: neighbours are alike, distant pixels independent.
  deviation = masks - masks.mean(0)
  correlation = lambda a, b: (
    (deviation[:, *a] * deviation[:, *b]).mean()
    / (deviation[:, *a].std() * deviation[:, *b].std())
  )
  assert correlation((5, 5), (5, 6)) > 0.8
  assert abs(correlation((5, 5), (11, 5))) < 0.1


def test_memory_does_not_grow_with_the_masks():
  def taken(num_masks):
    run = functools.partial(masking.rise, num_masks=num_masks)
    lowered = jax.jit(run, static_argnums=0).lower(
      looking_at(4, 9), images(), TARGETS
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes

  # The keys of the masks alone, 8 bytes each and their copies.
  assert taken(1_000) - taken(10) < 100 * 1_000


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_masks": 0}, "num_masks must be at least 1; it is 0"),
    ({"cells": 0}, "cells must be at least 1; it is 0"),
    ({"shown_frac": 1.0}, r"above 0 and below 1; it is 1\.0"),
  ],
)
def test_masks_that_cannot_be_drawn_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    masking.rise(looking_at(4, 9), images(), TARGETS, **settings)


def test_a_model_of_several_labels_is_known_as_one(make_tiny):
  model = make_tiny("average")
  model.eval()
  pictures = jax.random.uniform(jax.random.key(3), (2, 16, 16, 3))
  targets = jnp.array([[1], [2]])
  rise = functools.partial(masking.rise, model, pictures, targets, num_masks=8)
  by_softmax = rise()
  model.multi_label = True
  np.testing.assert_array_equal(rise(), rise(multi_label=True))
  assert (by_softmax != rise()).any()
