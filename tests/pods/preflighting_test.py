"""What the compiler says of a recipe's step, and the search for a batch."""

import dataclasses

import jax.numpy as jnp
import pytest

from configs import imagenet, quickstart
from gc_jax import models
from gc_jax.data import Classes
from gc_jax.models import resnet
from gc_jax.pods import lowering, preflighting
from gc_jax.runtime import parallel
from gc_jax.training import optim, recipe
from gc_jax.training import state as states

SIDE = 16


@pytest.fixture(scope="module", autouse=True)
def tiny():
  """A net that compiles in a moment, by name as a recipe has it."""
  with pytest.MonkeyPatch.context() as patch:
    net = resnet.RESNET8_SMALL.changed(stage_sizes=(1,), width=8)
    patch.setitem(models.MODELS, "tiny", net)
    yield


def make_config(module=quickstart, variant="gc,smoke", **fields):
  config = module.get_config(variant)
  config.model.name = "tiny"
  config.data.image_size = SIDE
  config.data.crop_padding_px = 0
  for name, value in fields.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config


@pytest.fixture(scope="module")
def target():
  return preflighting.target("local")


CLASSES = Classes(10, False)


@pytest.fixture(scope="module")
def finding(target):
  return preflighting.compile_step(make_config(), target, CLASSES)


def test_gradients_are_summed_and_pictures_stay(finding):
  model = states.num_params(
    lowering.abstract_state(
      recipe.model_maker(make_config(), 10, "cpu"),
      optim.optimizer(make_config(), 1_000),
      parallel.make_mesh(),
    )[1]
  )
  summed = sum(
    each.num_bytes for each in finding.exchanges if each.kind == "all-reduce"
  )
  # Every gradient, of originals and of composites, which a CPU's compiler does
  # not add up first; and the sums of BatchNorm and of the metrics.
  assert 4 * model <= summed < 10 * model
  assert {each.kind for each in finding.exchanges} == {"all-reduce"}
  assert finding.picture_sized == ()


def test_pictures_that_travel_are_told(target, monkeypatch):
  """Where composites mix images of all devices."""
  objective = recipe.objective

  def over_all(*args):
    goal = objective(*args)
    mixed = dataclasses.replace(goal.terms["consistency"], groups=1)
    return dataclasses.replace(goal, terms={"consistency": mixed})

  monkeypatch.setattr(recipe, "objective", over_all)
  found = preflighting.compile_step(make_config(), target, CLASSES)
  assert found.picture_sized


def test_a_finding_is_in_plain_numbers(finding):
  found = preflighting.as_dict(finding)
  assert found["batch_size"] == 16 and found["per_device"] == 4
  assert found["fits"]  # nothing says otherwise
  memory = found["memory_bytes"]
  # Four pictures, their labels and masks.
  assert memory["next_batch"] == 4 * (SIDE * SIDE * 3 + 4 + 4)
  assert memory["total_with_next_batch"] == (
    memory["total"] + memory["next_batch"]
  )
  assert found["flops_per_step"] == pytest.approx(
    16 * found["flops_per_image"], rel=1e-12
  )
  assert found["collectives"]["all-reduce"]["count"] == len(finding.exchanges)


def test_the_next_batch_must_fit_beside_the_program(target, finding):
  """A limit of just the program is too little."""
  program = finding.memory.total
  for limit, fits in (
    (program, False),
    (program + finding.next_batch - 1, False),
    (program + finding.next_batch, True),
  ):
    assert preflighting.is_within(
      finding.memory, finding.next_batch, limit
    ) == (fits)


def test_the_largest_batch_is_searched_by_compiling(target, finding):
  """Four images a device are given just what they need: eight do not fit."""
  limit = finding.memory.total + finding.next_batch
  small = dataclasses.replace(target, memory_limit=limit)
  found = preflighting.search(make_config(), small, CLASSES)
  assert found["asked"]["per_device"] == 4 and found["asked"]["fits"]
  assert found["largest"]["batch_size"] == 16
  assert {"per_device": 8, "fits": False} in found["tried"]


@pytest.mark.parametrize(
  ("batch_size", "asked", "largest"),
  [
    (16, 4, 24),
    (6, None, 24),
    (2, None, 24),
    (112, 28, 28),
    (512, 128, 24),
  ],
)
def test_what_was_asked_is_reported_where_it_is_possible(
  target, finding, monkeypatch, batch_size, asked, largest
):
  """Of a compiler that is made up: 28 images a device fit."""

  def compile_step(config, where, classes):
    size = config.batch_size // 4
    fits = size <= 28
    return dataclasses.replace(
      finding,
      batch_size=config.batch_size,
      per_device=size,
      fits=fits,
      memory=finding.memory if fits else None,
    )

  monkeypatch.setattr(preflighting, "compile_step", compile_step)
  some = dataclasses.replace(target, memory_limit=4 * finding.memory.total)
  found = preflighting.search(make_config(batch_size=batch_size), some, CLASSES)
  assert (found["asked"] and found["asked"]["per_device"]) == asked
  assert found["largest"]["per_device"] == largest
  assert {each["per_device"] for each in found["tried"]} >= {16, 24, 32}
  assert all(
    each["fits"] == (each["per_device"] <= 28) for each in found["tried"]
  )


# What is refused, before anything is compiled.


def test_a_batch_that_cannot_be_divided_is_refused_as_in_training():
  with pytest.raises(ValueError, match=r"must be divisible by 4 groups"):
    preflighting.preflight(make_config(batch_size=12), "local")


def test_a_search_needs_a_limit():
  with pytest.raises(ValueError, match="has none that is known; give a number"):
    preflighting.preflight(make_config(), "local", per_device="auto")


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5"])
def test_a_batch_must_be_a_number_or_auto(text):
  with pytest.raises(ValueError, match=f"--per_chip_batch={text} must be"):
    preflighting.read_per_device(text)
  assert preflighting.read_per_device("auto") == "auto"
  assert preflighting.read_per_device("32") == 32


def test_activations_are_of_the_target_and_not_of_this_machine():
  config = imagenet.get_config("resnet18-gc")
  assert recipe.compute_dtype(config.compute_dtype, "tpu") == jnp.bfloat16
  assert recipe.compute_dtype(config.compute_dtype, "cpu") == jnp.float32
