"""Whether methods hold for a network: said rightly, and it can be said not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax
from gc_jax.attribution import METHODS, Method, excitation, full_gradients
from gc_jax.attribution import gradients as pixel_gradients
from gc_jax.attribution.wrapping import Tapped
from gc_jax.models import MODELS

# Of each kind of law; all are on the smaller net.
OF_LAWS = ("gradcam", "excitation_backprop", "fullgrad")


def pictures():
  return jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))


class Net(nnx.Module):
  """Two convolutions and a normalisation, as a user writes them."""

  def __init__(self, rngs):
    self.conv1 = nnx.Conv(3, 8, (3, 3), 2, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.conv2 = nnx.Conv(8, 8, (3, 3), 2, rngs=rngs)
    self.head = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu(self.norm(self.conv1(images)))
    return self.head(nnx.relu(self.conv2(x)).mean((1, 2)))


class Attending(nnx.Module):
  """Patches, one block of attention, a head."""

  def __init__(self, rngs):
    self.embed = nnx.Conv(3, 8, (8, 8), 8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    self.head = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, images):
    x = self.embed(images)
    x = x.reshape(len(x), -1, 8)
    return self.head((x + self.attention(x)).mean(1))


@functools.cache
def small():
  model = Net(nnx.Rngs(0))
  model.norm.bias[...] = jnp.linspace(-1, 1, 8)
  model.eval()
  return gc_jax.wrap(model, at="conv2")


def test_methods_hold_for_a_resnet_of_ours(monkeypatch):
  monkeypatch.setitem(MODELS, "narrow", MODELS["resnet18"].changed(width=8))
  model = gc_jax.create("narrow", 5)  # as training leaves it
  model.train()
  found = gc_jax.check(model, pictures(), methods=OF_LAWS)
  assert [*found] == [*OF_LAWS]
  assert all(found[name].holds for name in found), str(found)
  assert "Grad-CAM             holds: gradient at the pl" in str(found)


def test_methods_hold_for_a_users_network_but_for_what_it_lacks():
  found = gc_jax.check(small(), pictures(), [0, 1])
  assert [*found] == [*METHODS]
  lacking = [name for name in found if not found[name].holds]
  assert lacking == ["attention_rollout"], str(found)
  assert all(found[name].error < 0.03 for name in found if name not in lacking)


def test_excitation_does_not_hold_for_attention_and_other_methods_do():
  model = Attending(nnx.Rngs(0))
  model.eval()
  net = gc_jax.wrap(model, at="embed")
  names = ("gradcam", "excitation_backprop", "fullgrad", "attention_rollout")
  found = gc_jax.check(net, pictures(), methods=names)
  holds = {name: found[name].holds for name in found}
  assert holds == dict(zip(names, (True, False, False, True), strict=True))
  assert "does not hold: Excitation backprop must find only" in str(found)


def scaled(function, by=1.1):
  """Returns a function whose results, if several the last, are too large."""

  def wrong(*args, **kwargs):
    found = function(*args, **kwargs)
    if callable(found):
      return scaled(found, by)
    if isinstance(found, tuple):
      return (*found[:-2], by * found[-2], found[-1])
    return by * found

  return wrong


def test_a_broken_method_is_said_not_to_hold(monkeypatch):
  terms = full_gradients.terms
  without_last = lambda *args: (*terms(*args)[:2], terms(*args)[2][1:])
  for name, home, part, broken in (
    ("gradcam", Tapped, "looked", scaled(Tapped.looked)),
    ("fullgrad", full_gradients, "terms", without_last),
    (
      "excitation_backprop",
      excitation,
      "propagated",
      scaled(excitation.propagated),
    ),
    (
      "input_gradients",
      pixel_gradients,
      "_gradient_of",
      scaled(pixel_gradients._gradient_of),
    ),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(home, part, broken)
      (verdict,) = gc_jax.check(
        small(), pictures(), [0, 1], [name]
      ).verdicts.values()
    assert verdict.holds is False and verdict.error > 0.04, verdict


def test_what_bfloat16_rounds_is_not_held_against_a_method(monkeypatch):
  model = nnx.Sequential(
    nnx.Conv(3, 8, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    nnx.relu,
    lambda x: x.mean((1, 2)),
    nnx.Linear(8, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(1)),
  )
  net, images = gc_jax.wrap(model, at="layers.0"), pictures()[:, :8, :12]
  names = ("gradcam", "input_gradients", "fullgrad", "excitation_backprop")
  found = gc_jax.check(net, images, methods=names)
  assert not any(found[name].holds is False for name in names), str(found)
  assert "coarser than float32, and rounding may make" in found["gradcam"].why
  # What is missed by more than it rounds is held against it.
  monkeypatch.setattr(
    full_gradients, "terms", scaled(full_gradients.terms, 1.3)
  )
  assert (
    gc_jax.check(net, images, methods="fullgrad")["fullgrad"].holds is False
  )


def test_a_network_that_breaks_a_law_is_named_by_the_methods_it_breaks():
  weights = jax.random.normal(jax.random.key(1), (3, 5))

  def cut(images, tap):
    x = tap(images)
    return (x + jax.lax.stop_gradient(x**2)).mean((1, 2)) @ weights

  def mixed(images, tap):
    x = tap(images)
    return (x.mean((1, 2)) - x.mean((0, 1, 2))[None]) @ weights

  names = ("gradcam", "input_gradients", "rise")
  for net, expected in ((cut, [False, False, True]), (mixed, [False] * 3)):
    found = gc_jax.check(gc_jax.wrap(net), pictures(), [0, 1], names)
    assert [found[name].holds for name in names] == expected, str(found)


def test_a_method_of_ones_own_is_checked_by_its_law_or_said_to_have_none(
  monkeypatch,
):
  flat = lambda model, images, targets: jnp.zeros((*targets.shape, 2, 2))
  wrong = lambda model, images, targets: flat(model, images, targets) - 1
  monkeypatch.setitem(METHODS, "flat", Method("Flat", flat))
  monkeypatch.setitem(METHODS, "wrong", Method("Wrong", wrong))
  same = dataclasses.replace(METHODS["gradcam"], title="Mine", explain=flat)
  monkeypatch.setitem(METHODS, "mine", same)
  found = gc_jax.check(small(), pictures(), [0, 1], ("flat", "wrong", "mine"))
  assert found["flat"].holds is None and found["flat"].num_empty == 2
  assert "not known: its maps are finite" in str(found)
  assert "of 2 maps 2 are empty" in found["flat"].why
  assert found["wrong"].holds is False
  assert found["mine"].holds and np.isfinite(found["mine"].error)


def test_what_cannot_be_checked_is_refused():
  with pytest.raises(ValueError, match="Unknown method='gradcamm'"):
    gc_jax.check(small(), pictures(), methods=["gradcamm"])
  with pytest.raises(ValueError, match=r"targets must be in 0\.\.4"):
    gc_jax.check(small(), pictures(), [0, 5])
  # Each method would be said not to hold, as values are not known there.
  inside = jax.jit(lambda x: gc_jax.check(small(), x, methods="gradcam") and x)
  with pytest.raises(ValueError, match=r"check must be called outside"):
    inside(pictures())
  with pytest.raises(TypeError, match=r"It is a Net|it is a Net.*gc_jax\.wrap"):
    gc_jax.check(Net(nnx.Rngs(0)), pictures())
