"""The compiled step: its cost, and what its devices exchange."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import quickstart
from gc_jax import models
from gc_jax.method import compose
from gc_jax.pods.compiler import KINDS, exchanges
from gc_jax.runtime import parallel
from gc_jax.training import build
from gc_jax.training.step import TrainState
from tests.training.small import (
  LABEL,
  NUM_CLASSES,
  batch_of,
  make_step,
  mean,
  pixels,
  recipe,
  step_of,
  with_distractors,
  with_objects,
)


def abstract(name):
  """An architecture's structure, and the shapes of its variables."""
  make = lambda key: models.create(name, NUM_CLASSES, key=key)
  model = nnx.eval_shape(make, models.init_key(0))
  return nnx.split(model, nnx.Param, ...)


def compiled_for(config):
  """The step of the quickstart's network on 8 pictures, not to be run."""
  name = quickstart.get_config().model.name
  graphdef, params, batch_stats = abstract(name)
  tx = optax.sgd(0.1, momentum=0.9)
  state = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    params,
    batch_stats,
    jax.eval_shape(tx.init, params),
  )
  batch = {
    "image": jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    "mask": jax.ShapeDtypeStruct((8,), jnp.float32),
    "object_mask": jax.ShapeDtypeStruct((8, 64, 64), jnp.bool_),
  }
  return jax.jit(step_of(config, graphdef, tx)).lower(state, batch).compile()


def shapes(text):
  """The sizes of every array that a line of HLO produces."""
  dims = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]", text)
  return [tuple(map(int, filter(None, d.split(",")))) for d in dims]


@pytest.fixture(scope="module")
def programs():
  """The step without guidance, with energy, and with each mode of composing."""
  configs = {"plain": recipe(), "energy": recipe("energy")} | {
    mode: recipe("consistency", compose__mode=mode) for mode in compose.MODES
  }
  return {name: compiled_for(config) for name, config in configs.items()}


def test_a_step_costs_one_plain_step_two_or_five(programs):
  """Energy passes nothing more through the network; consistency passes once
  more, over B / 4 composites of four images or over B.
  """
  flops = {k: step.cost_analysis()["flops"] for k, step in programs.items()}
  assert 1 < flops["energy"] / flops["plain"] < 1.01
  assert 2 < flops["packed"] / flops["plain"] <= 2.05
  # The originals' maps of up to four classes instead of one.
  assert 2 < flops["packed_by_class"] / flops["plain"] <= 2.1
  # Above 5: the larger the picture, the fewer of a kernel's cells fall off it.
  assert 4.5 <= flops["independent"] / flops["plain"] < 6

  for mode, step in programs.items():
    made = any(s[1:] == (128, 128, 3) for s in shapes(step.as_text()))
    assert made == (mode in compose.MODES)  # without the loss, no composite


def test_the_parts_of_a_batch_need_less_memory(programs):
  parts = compiled_for(recipe("consistency", accumulate_steps=2))
  needed = lambda step: step.memory_analysis().temp_size_in_bytes
  assert needed(parts) < needed(programs["packed"])


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vgg16"])
def test_recomputation_keeps_a_third_less_for_the_backward_pass(name):
  """Measured on what jax keeps: XLA's CPU compiler merges recomputations."""
  graphdef, params, rest = abstract(name)
  images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
  variables = {leaf.shape for leaf in jax.tree.leaves((params, rest))}

  def kept(remat):
    def features(params, rest, images):
      model = nnx.merge(graphdef, params, rest, copy=True)
      model.train(remat=remat)
      return model.features(images)

    backward = jax.eval_shape(
      lambda *args: jax.vjp(features, *args)[1], params, rest, images
    )
    leaves = jax.tree.leaves(backward)
    return sum(leaf.size for leaf in leaves if leaf.shape not in variables)

  assert 0 < kept(True) < 2 / 3 * kept(False)


# Four devices, four groups of composites, a batch of 32.

RECIPES = {
  "packed": recipe("consistency", groups=4),
  "independent": recipe("consistency", groups=4, compose__mode="independent"),
  "supplied": recipe("consistency", groups=4, compose__mode="independent"),
  "by class": recipe("consistency", groups=4, compose__mode="packed_by_class"),
  "grouped": recipe("consistency", groups=4, model__bn_group=8),
  "grouped over two devices": recipe(
    "consistency", groups=4, model__bn_group=16
  ),
  "two terms, accumulated": recipe(
    "consistency",
    "energy",
    groups=4,
    accumulate_steps=2,
    model__bn_group=4,
    model__remat=True,
  ),
}


@pytest.fixture(scope="module")
def compiled(make_tiny):
  """The step compiled for some devices, its state, and a batch."""
  cache = {}

  def compile_step(name, num_devices):
    if (name, num_devices) in cache:
      return cache[name, num_devices]
    label = np.tile(LABEL, 2)
    batch = batch_of(label)
    if name == "supplied":
      distractors = pixels(96, seed=1).reshape(32, 3, 16, 16, 3)
      batch = with_distractors(batch, distractors, np.ones(32), label)
    if RECIPES[name].loss.energy_weight:
      batch = with_objects(batch, label)
    step, state = make_step(make_tiny("max"), RECIPES[name], lr=0.1)
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    everywhere = parallel.replicated(mesh)
    batch = jax.device_put(batch, parallel.divided(mesh))
    state = jax.device_put(state, everywhere)
    program = jax.jit(step, out_shardings=everywhere).lower(state, batch)
    cache[name, num_devices] = program.compile(), state, batch
    return cache[name, num_devices]

  return compile_step


@pytest.mark.parametrize("name", RECIPES)
def test_four_devices_compute_what_one_does(compiled, name):
  losses = {}
  for num_devices in (1, 4):
    step, state, batch = compiled(name, num_devices)
    for _ in range(3):
      state, metrics = step(state, batch)
      for loss in ("loss", "classification_loss", "consistency_loss"):
        losses.setdefault(num_devices, []).append(mean(metrics, loss))
  # Float32 sums in another order, through three updates.
  np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_no_image_crosses_from_device_to_device(compiled, name):
  """Every array exchanged is smaller than one picture of 16 x 16 x 3."""
  found = exchanges(compiled(name, 4)[0].as_text())
  # Gradients, at least.
  assert any(each.kind == "all-reduce" for each in found)
  for each in found:
    for shape in each.shapes:
      assert np.prod(shape, dtype=int) < 16 * 16 * 3, each


DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\(")


def exchanged_before_a_convolution(text):
  """Sizes of exchanged arrays, more than one number, that one depends on."""
  computations = re.split(r"\n(?=\S)", text)
  convolving = {
    re.match(r"(?:ENTRY )?%?([\w.-]+)", body)[1]
    for body in computations
    if re.search(r" convolution\(", body)
  }
  found = []
  for body in computations:
    reached = {}  # instruction -> sizes it depends on
    together = set()  # exchanges of several arrays at once
    for line in filter(DEFINED.match, body.splitlines()):
      name, produced, kind = DEFINED.match(line).groups()
      names = set(re.findall(r"%([\w.-]+)", line.partition("=")[2]))
      sizes = set().union(*(reached.get(other, set()) for other in names))
      if kind == "convolution" or names & convolving:
        found += sizes
      arrays = {s for s in shapes(produced) if np.prod(s, dtype=int) > 1}
      if kind.removesuffix("-start") in KINDS:
        # Of several that travel together, each is told apart below.
        if produced.startswith("("):
          together.add(name)
        else:
          sizes = sizes | arrays
      elif kind == "get-tuple-element" and names & together:
        sizes = sizes | arrays
      reached[name] = sizes
  return found


def test_with_a_group_a_device_no_layer_waits_for_another_device(compiled):
  """Only gradients, running statistics and counts are exchanged."""
  step, state, _ = compiled("grouped", 4)
  text = step.as_text()
  assert not exchanged_before_a_convolution(text)
  found = exchanges(text)
  assert {each.kind for each in found} == {"all-reduce"}
  count = sum(
    np.prod(shape, dtype=int) for each in found for shape in each.shapes
  )
  gradients = build.num_params(state)
  statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
  # Of originals and of composites, where the compiler does not add them up
  # first; and a handful of sums.
  assert gradients <= count <= 2 * gradients + 4 * statistics + 20
  # The same reading of a step with statistics of the whole batch sees them.
  assert (1, 8) in exchanged_before_a_convolution(
    compiled("packed", 4)[0].as_text()
  )
