"""A user's module cut at a place: both halves make the whole again."""

import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax
from gc_jax import models
from gc_jax.training import checks
from tests.examples import nets
from tests.training import small

NAME = "tests.examples.nets:make"
K = 5


def images(count=4, side=16):
  return jnp.asarray(small.pixels(count, side))


@pytest.fixture(scope="module")
def net():
  return gc_jax.create(NAME, K)


def random_state(variable):
  return isinstance(variable, nnx.RngState)


def test_both_halves_compute_what_the_module_does(net):
  network = nnx.clone(net)
  network.eval()
  pixels = network.normalize(images())
  halves = network.classify(network.features(pixels))
  np.testing.assert_array_equal(halves, network.model(pixels))
  wrapped = gc_jax.wrap(network.model, at="blocks.1")
  for method in ("gradcam_elementwise", "cmwp", "fullgrad"):
    theirs = gc_jax.explain(wrapped, pixels, [0, 1, 2, 3], method)
    ours = gc_jax.explain(network, images(), [0, 1, 2, 3], method)
    # FullGrad of ours starts from the same normalised pixels.
    np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=method)


def test_both_halves_leave_the_running_statistics_of_one_call(net):
  """Nothing of the blank pictures stays, and no layer is counted twice."""
  halves, whole = nnx.clone(net), nnx.clone(net)
  # Dropout would draw other masks.
  for module in (halves, whole):
    module.set_attributes(rate=0.0, raise_if_not_found=False)
  halves.train()
  pixels = halves.normalize(images())
  whole.model(pixels)
  halves.classify(halves.features(pixels), jax.random.key(3))
  wanted = nnx.state(whole, nnx.BatchStat)
  before = nnx.state(net, nnx.BatchStat)
  found = nnx.state(halves, nnx.BatchStat)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, wanted)
  assert all(jax.tree.leaves(moved))


def test_dropout_of_the_head_follows_the_key_alone(net):
  network = nnx.clone(net)
  network.train()
  features = network.features(network.normalize(images()))
  streams = nnx.state(network, nnx.RngState)
  by = lambda seed: network.classify(features, jax.random.key(seed))
  first = by(0)
  np.testing.assert_array_equal(first, by(0))
  assert (first != by(1)).any()
  after = nnx.state(network, nnx.RngState)
  jax.tree.map(np.testing.assert_array_equal, after, streams)


def test_a_model_made_anew_randomises_its_parts_from_the_head_down(net):
  from gc_jax.attribution import randomization

  stages = randomization.stages(net)
  assert stages == ("head", "norm", "blocks.1", "blocks.0", "stem")
  other = randomization.randomized(net, "norm", jax.random.key(5))
  same = jax.tree.map(
    lambda a, b: bool((a == b).all()),
    nnx.to_pure_dict(nnx.state(net.model, nnx.Param)),
    nnx.to_pure_dict(nnx.state(other.model, nnx.Param)),
  )
  assert not same["head"]["kernel"]
  assert all(jax.tree.leaves([same["blocks"], same["stem"]]))


class Tokens(nnx.Module):
  """Patches and a token before them, of which the logits are made."""

  def __init__(self, rngs):
    self.patches = nnx.Conv(3, 4, (8, 8), 8, rngs=rngs)
    self.token = nnx.Param(jnp.ones((1, 1, 4)))
    self.mix = nnx.Linear(4, 4, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      2, 4, decode=False, deterministic=True, rngs=rngs
    )
    self.head = nnx.Linear(4, 2, rngs=rngs)

  def __call__(self, x):
    patches = self.patches(x)
    patches = patches.reshape(len(x), -1, 4)
    token = jnp.broadcast_to(self.token[...], (len(x), 1, 4))
    x = self.mix(jnp.concatenate([token, patches], 1))
    return self.head(self.attention(x)[:, 0])


def test_a_class_token_goes_along_beside_the_cells():
  model = Tokens(nnx.Rngs(0))
  net = gc_jax.wrap(model, at="mix", grid=(4, 4), prefix=1)
  network = net.as_network()
  network.eval()
  pixels = network.normalize(images(side=32))
  logits = network.classify(network.features(pixels))
  # float32 sums of four tokens, in another order.
  np.testing.assert_allclose(logits, model(pixels), atol=1e-6)
  # Composites have four times as many.
  assert network.features(network.normalize(images(side=64))).shape[1] == 8
  theirs = gc_jax.explain(net, pixels, [0, 1, 0, 1])
  ours = gc_jax.explain(network, images(side=32), [0, 1, 0, 1])
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


# What `make` may return wrongly, and what is said.


class Skipping(nnx.Module):
  """Something passes by the block."""

  def __init__(self, rngs):
    self.block = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.head = nnx.Linear(7, 2, rngs=rngs)

  def __call__(self, x):
    both = jnp.concatenate([self.block(x), x], -1)
    return self.head(both.mean((1, 2)))


class Flat(nnx.Module):
  def __init__(self, rngs):
    self.block = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.head = nnx.Linear(4 * 32 * 32, 2, rngs=rngs)

  def __call__(self, x):
    return self.head(self.block(x).reshape(len(x), -1))


class Maps(nnx.Module):
  def __init__(self, rngs):
    self.block = nnx.Conv(3, 4, (3, 3), rngs=rngs)

  def __call__(self, x):
    return self.block(x)


def wrapped(kind, at="block", **how):
  return lambda num_classes, dtype, key: gc_jax.wrap(
    kind(nnx.Rngs(key)), at=at, **how
  )


def not_wrapped(num_classes, dtype, key):
  return nets.Net(num_classes, dtype, nnx.Rngs(key))


def of_equinox(num_classes, dtype, key):
  return gc_jax.wrap(eqx.nn.MLP(3, 2, 4, 1, key=key), at="layers.0")


def fails(num_classes, dtype, key):
  raise KeyError("stem")


WRONG = {
  "skips": (wrapped(Skipping), "must pass the place .*takes another way"),
  "flat": (wrapped(Flat), "must take pictures of --config.data.image_size=64"),
  "maps": (wrapped(Maps), r"must return logits \[B K\]; it returned \(1, "),
  "nowhere": (wrapped(Maps, at="blok"), "Unknown at='blok'.*'block'"),
  "token": (wrapped(Flat, grid=(3, 3), prefix=1), r"\[B 1\+.* D\] tokens"),
  "bare": (not_wrapped, "must be a function.*it returned a Net"),
  "equinox": (of_equinox, "Only an nnx.Module can be trained by command"),
  "arguments": (lambda num_classes: None, "does not take these: .*dtype"),
  "raises": (fails, "must make a network, and fails: KeyError: 'stem'"),
  "number": (3, "Unknown --config.model.name='mine:number'. Known: mine:skips"),
}


@pytest.fixture
def mine(monkeypatch):
  module = types.ModuleType("mine")
  for name, (function, _) in WRONG.items():
    setattr(module, name, function)
  monkeypatch.setitem(sys.modules, "mine", module)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    *((f"mine:{name}", message) for name, (_, message) in WRONG.items()),
    ("nowhere.nets:make", "there is no 'nowhere'. A command finds modules in"),
    ("nets.py/x:make", "must name a module with dots"),
    ("tests.examples.nets:mak", "Did you mean 'tests.examples.nets:make'"),
  ],
)
def test_a_name_that_makes_no_network_is_told_before_anything_compiles(
  mine, name, message
):
  config = small.recipe("consistency", model__name=name)
  with pytest.raises(ValueError, match=message):
    checks.validate(config, 1)


def test_an_error_is_told_of_the_function_or_module_that_has_it(
  tmp_path, monkeypatch, mine
):
  unknown = lambda num_classes, dtype, key: gc_jax.wrap(num_classes)
  monkeypatch.setattr(sys.modules["mine"], "unknown", unknown, raising=False)
  with pytest.raises(
    ValueError, match=r"^model='mine:unknown' must make a net"
  ):
    models.find("mine:unknown")
  (tmp_path / "nowhere_nets.py").write_text("import nowhere")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match="its module asks for 'nowhere'"):
    models.find("nowhere_nets:make")


@pytest.mark.parametrize(("field", "value"), [("bn_group", 4), ("remat", True)])
def test_settings_of_our_own_layers_are_refused_for_others(field, value):
  config = small.recipe(model__name=NAME, **{f"model__{field}": value})
  with pytest.raises(ValueError, match=f"model.{field}={value} is for the mod"):
    checks.validate(config, 1)


def test_a_name_is_looked_up_once(net):
  assert models.find(NAME) is models.find(NAME)
  assert gc_jax.create(NAME, K).anew == net.anew
