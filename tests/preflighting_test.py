"""The step that is compiled is the one that trains; the search for a batch."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from configs import imagenet, quickstart, quickstart_multi
from gc_jax import config as configs
from gc_jax import data, models, optim, parallel, preflighting, train
from gc_jax import state as states
from gc_jax.data import Classes, Dataset, pipeline
from gc_jax.models import init_key
from gc_jax.models.resnet import BasicBlock, ResNet

SIDE = 16


@pytest.fixture(scope="module", autouse=True)
def tiny():
  """A net that compiles in a moment, by name as a recipe has it."""
  with pytest.MonkeyPatch.context() as patch:
    net = functools.partial(ResNet, (1,), BasicBlock, width=8, stem_kernel=3)
    patch.setitem(models.MODELS, "tiny", net)
    yield


def recipe(module=quickstart, variant="gc,smoke", **fields):
  config = module.get_config(variant)
  config.model.name = "tiny"
  config.data.image_size = SIDE
  config.data.crop_padding_px = 0
  for name, value in fields.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config


def dataset(config, multi_label):
  """Sixteen pictures of as many classes as the recipe's data has."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(buffer, "png")
  count = data.classes(config.data).count
  return Dataset(
    source=[
      {"image": buffer.getvalue(), "labels": [i % count]} for i in range(16)
    ],
    class_names=tuple(map(str, range(count))),
    multi_label=multi_label,
    max_classes_per_image=1,
    name="by hand",
    license="",
  )


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


BATCHES = {
  "single": recipe(),
  "several": recipe(quickstart_multi),
  "supplied": recipe(
    compose__mode="independent",
    compose__distractors="dataset",
    data__on_error="skip",
  ),
  "plain": recipe(variant="ce,smoke"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_batch_is_shaped_as_the_pipeline_makes_it(name):
  config = BATCHES[name]
  mesh = parallel.make_mesh()
  classes = data.classes(config.data)
  consistency = config.loss.consistency_weight > 0
  batch = next(
    pipeline.train_batches(
      dataset(config, classes.multi_label),
      seed=0,
      start_step=0,
      batch_size=config.batch_size,
      image_size=config.data.image_size,
      on_error=config.data.on_error,
      distractors=config.compose.distractors if consistency else "batch",
    )
  )
  real = parallel.to_devices(batch, mesh)
  assert shapes(preflighting.abstract_batch(config, classes, mesh)) == shapes(
    real
  )


@pytest.fixture(scope="module")
def target():
  return preflighting.target("local")


CLASSES = Classes(10, False)


def test_what_is_compiled_is_what_trains(target):
  """The same program, letter by letter, as of arrays that are there."""
  config = recipe()
  mesh = target.mesh
  tx = optim.optimizer(config, 1_000)
  make_model = train.model_maker(config, 10, "cpu")
  goal = train.objective(config, 10, mesh.size)
  with jax.set_mesh(mesh):
    graphdef, state = states.create(
      make_model, tx, parallel.replicated(mesh), init_key(config.seed)
    )
    batch = parallel.to_devices(
      {
        "image": np.zeros((16, SIDE, SIDE, 3), np.uint8),
        "label": np.zeros(16, np.int32),
        "mask": np.ones(16, np.float32),
      },
      mesh,
    )
    step = train.jitted_train_step(config, graphdef, tx, goal, 1_000)
    trained = step.lower(state, batch).as_text()
  abstract_graphdef, abstract = preflighting.abstract_state(
    make_model, tx, mesh
  )
  assert shapes(abstract) == shapes(state)
  assert abstract_graphdef == graphdef
  lowered = preflighting.lower(config, mesh, CLASSES)[0]
  assert lowered.as_text() == trained


@pytest.fixture(scope="module")
def finding(target):
  return preflighting.compile_step(recipe(), target, CLASSES)


def test_gradients_are_summed_and_pictures_stay(finding):
  model = states.num_params(
    preflighting.abstract_state(
      train.model_maker(recipe(), 10, "cpu"),
      optim.optimizer(recipe(), 1_000),
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
  objective = train.objective
  monkeypatch.setattr(
    train,
    "objective",
    lambda *args: dataclasses.replace(objective(*args), compose_groups=1),
  )
  found = preflighting.compile_step(recipe(), target, CLASSES)
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
  found = preflighting.search(recipe(), small, CLASSES)
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
  found = preflighting.search(recipe(batch_size=batch_size), some, CLASSES)
  assert (found["asked"] and found["asked"]["per_device"]) == asked
  assert found["largest"]["per_device"] == largest
  assert {each["per_device"] for each in found["tried"]} >= {16, 24, 32}
  assert all(
    each["fits"] == (each["per_device"] <= 28) for each in found["tried"]
  )


# The search itself, on limits that are known.


@pytest.mark.parametrize("guess", [1, 3, 8, 100, 5_000])
@pytest.mark.parametrize("unit", [1, 4, 12])
@pytest.mark.parametrize("limit", [0, 3, 4, 13, 24, 100, 1_003])
def test_the_largest_multiple_below_a_limit_is_found(guess, unit, limit):
  asked = []
  found = preflighting.largest_that_fits(
    lambda size: asked.append(size) or size <= limit, lambda: guess, unit
  )
  step = np.lcm(8, unit)
  candidates = [unit * 2**k for k in range(20)] + [*range(step, 2_000, step)]
  assert found == max([c for c in candidates if c <= limit], default=0)
  assert all(size % unit == 0 for size in asked)
  assert len(asked) == len(set(asked)) <= 22


def test_a_search_without_end_is_given_up():
  found = preflighting.largest_that_fits(lambda size: True, lambda: 8, 4)
  assert found == 2**16


@pytest.mark.parametrize(
  ("fields", "unit"),
  [
    ({"compose__mode": "packed"}, 4),
    ({"compose__mode": "independent"}, 4),
    ({"compose__mode": "independent", "compose__distractors": "dataset"}, 1),
    ({"loss__consistency_weight": 0.0}, 1),
    ({"compose__mode": "packed", "compose__groups": 8}, 8),
    ({"compose__mode": "packed", "accumulate_steps": 2}, 8),
    ({"compose__mode": "independent", "model__bn_group": 6}, 12),
    ({"model__bn_group": 8, "accumulate_steps": 3}, 24),
  ],
)
def test_images_come_in_whole_composites_groups_and_parts(fields, unit):
  assert preflighting.images_unit(recipe(**fields), 4) == unit
  for times in (1, 3):
    configs.validate(recipe(**fields, batch_size=times * unit * 4), 4)


def test_a_good_guess_saves_compilations():
  """Right at once, it takes two powers of two and both sides of the limit."""
  asked = []
  found = preflighting.largest_that_fits(
    lambda size: asked.append(size) or size <= 163, lambda: 163, 4
  )
  assert found == 160
  assert asked == [128, 256, 160, 168]


# What is refused, before anything is compiled.


def test_a_batch_that_cannot_be_divided_is_refused_as_in_training():
  with pytest.raises(ValueError, match=r"must be divisible by 4 groups"):
    preflighting.preflight(recipe(batch_size=12), "local")


def test_a_search_needs_a_limit():
  with pytest.raises(ValueError, match="has none that is known; give a number"):
    preflighting.preflight(recipe(), "local", per_device="auto")


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5"])
def test_a_batch_must_be_a_number_or_auto(text):
  with pytest.raises(ValueError, match=f"--per_chip_batch={text} must be"):
    preflighting.read_per_device(text)
  assert preflighting.read_per_device("auto") == "auto"
  assert preflighting.read_per_device("32") == 32


def test_activations_are_of_the_target_and_not_of_this_machine():
  config = imagenet.get_config("resnet18-gc")
  assert train.compute_dtype(config.compute_dtype, "tpu") == jnp.bfloat16
  assert train.compute_dtype(config.compute_dtype, "cpu") == jnp.float32
