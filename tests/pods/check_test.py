"""What the compiler says of a recipe's step, and the search for a batch."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from configs import imagenet, quickstart, quickstart_multi
from gc_jax import data, models
from gc_jax.data import Classes, Dataset, pipeline
from gc_jax.models import resnet
from gc_jax.pods import check
from gc_jax.runtime import parallel
from gc_jax.training import build, checks, guidance
from gc_jax.training.step import make_train_step
from tests.training.small import changed

SIDE = 16
CLASSES = Classes(10, False)


@pytest.fixture(scope="module", autouse=True)
def tiny():
  """A net that compiles in a moment, by name as a recipe has it."""
  with pytest.MonkeyPatch.context() as patch:
    net = resnet.RESNET8_SMALL.changed(stage_sizes=(1,), width=8)
    patch.setitem(models.MODELS, "tiny", net)
    yield


def make_config(module=quickstart, variant="gc,smoke", **fields):
  small = {"model__name": "tiny", "data__image_size": SIDE}
  small["data__crop_padding_px"] = 0
  return changed(module.get_config(variant), **small, **fields)


# The step that is lowered without arrays is the one that trains.


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
    name="by hand",
  )


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


SUPPLIED = {
  "compose__mode": "independent",
  "compose__distractors": "dataset",
}


@pytest.mark.parametrize(
  ("recipe", "variant", "fields"),
  [
    (quickstart, "gc", {}),
    (quickstart_multi, "gc", {}),
    (quickstart, "gc", SUPPLIED | {"data__on_error": "skip"}),
    (quickstart, "ce", {}),
    (quickstart_multi, "energy", {}),
    (quickstart, "gc", SUPPLIED | {"loss__energy_weight": 1.0}),
  ],
)
def test_the_batch_is_shaped_as_the_pipeline_makes_it(recipe, variant, fields):
  config = make_config(recipe, f"{variant},smoke", **fields)
  mesh = parallel.make_mesh()
  classes = data.classes(config.data)
  batch = next(
    pipeline.train_batches(
      dataset(config, classes.multi_label),
      seed=0,
      start_step=0,
      batch_size=config.batch_size,
      image_size=config.data.image_size,
      on_error=config.data.on_error,
      bring=guidance.needs(config),
    )
  )
  real = parallel.to_devices(batch, mesh)
  assert shapes(check.abstract_batch(config, classes, mesh)) == shapes(real)


def test_the_program_that_is_compiled_is_the_one_that_trains():
  """Letter by letter, though no array is there."""
  config = make_config()
  mesh = parallel.make_mesh()
  tx = build.optimizer(config, 1_000)
  with jax.set_mesh(mesh):
    graphdef, state = build.create_state(
      build.model_maker(config, Classes(10, multi_label=False), "cpu"),
      tx,
      parallel.replicated(mesh),
      models.init_key(config.seed),
    )
    batch = parallel.to_devices(
      {
        "image": np.zeros((16, SIDE, SIDE, 3), np.uint8),
        "label": np.zeros(16, np.int32),
        "mask": np.ones(16, np.float32),
      },
      mesh,
    )
    step = make_train_step(
      config,
      graphdef,
      tx,
      num_classes=10,
      num_devices=mesh.size,
      steps_per_epoch=1_000,
    )
    trained = jax.jit(step, donate_argnums=0).lower(state, batch).as_text()
  lowered, abstract, _ = check.lower(config, mesh, CLASSES)
  assert shapes(abstract) == shapes(state)
  assert lowered.as_text() == trained


# One compilation.


@pytest.fixture(scope="module")
def target():
  return check.Target(parallel.make_mesh(), None)


@pytest.fixture(scope="module")
def finding(target):
  return check.compile_step(make_config(), target, CLASSES)


def test_gradients_are_summed_and_pictures_stay(target, finding):
  state = check.lower(make_config(), target.mesh, CLASSES)[1]
  summed = finding["collectives"]["all-reduce"]["bytes"]
  # Every gradient, of originals and of composites, which a CPU's compiler does
  # not add up first; and the sums of BatchNorm and of the metrics.
  size = 4 * build.num_params(state)
  assert size <= summed < 2.5 * size
  assert finding["collectives"].keys() == {"all-reduce"}
  assert finding["picture_sized"] == []


def test_pictures_that_travel_are_told(target, monkeypatch):
  """As they do if composites mix images of all devices."""
  term = guidance.TERMS["consistency"]
  monkeypatch.setitem(
    guidance.TERMS,
    "consistency",
    dataclasses.replace(term, settings=lambda c, _: term.settings(c, 1)),
  )
  found = check.compile_step(make_config(), target, CLASSES)
  assert found["picture_sized"]


def test_a_finding_adds_up(finding):
  assert finding["batch_size"] == 16 and finding["per_device"] == 4
  assert finding["fits"]  # no limit is known
  memory = finding["memory_bytes"]
  # Four pictures, their labels and masks.
  assert memory["next_batch"] == 4 * (SIDE * SIDE * 3 + 4 + 4)
  assert memory["total_with_next_batch"] == (
    memory["total"] + memory["next_batch"]
  )
  assert finding["flops_per_step"] == pytest.approx(
    16 * finding["flops_per_image"], rel=1e-12
  )


# The search.


@pytest.mark.parametrize("guess", [1, 8, 100, 5_000])
@pytest.mark.parametrize("unit", [1, 4, 12])
@pytest.mark.parametrize("limit", [0, 3, 4, 13, 100, 1_003])
def test_the_largest_multiple_below_a_limit_is_found(guess, unit, limit):
  asked = []
  found = check.largest_that_fits(
    lambda size: asked.append(size) or size <= limit, lambda: guess, unit
  )
  step = np.lcm(8, unit)
  candidates = [unit * 2**k for k in range(20)] + [*range(step, 2_000, step)]
  assert found == max([c for c in candidates if c <= limit], default=0)
  assert all(size % unit == 0 for size in asked)
  assert len(asked) == len(set(asked)) <= 22


def test_a_good_guess_saves_compilations_and_a_search_without_end_is_given_up():
  """Right at once, it takes two powers of two and both sides of the limit."""
  assert check.largest_that_fits(lambda size: True, lambda: 8, 4) == 2**16
  asked = []
  found = check.largest_that_fits(
    lambda size: asked.append(size) or size <= 163, lambda: 163, 4
  )
  assert found == 160
  assert asked == [128, 256, 160, 168]


@pytest.mark.parametrize(
  ("fields", "unit"),
  [
    ({"compose__mode": "packed"}, 4),
    ({"compose__mode": "packed_by_class"}, 4),
    ({"compose__mode": "independent"}, 4),
    (SUPPLIED, 1),
    ({"loss__consistency_weight": 0.0}, 1),
    ({"compose__mode": "packed", "compose__groups": 8}, 8),
    ({"compose__mode": "packed", "accumulate_steps": 2}, 8),
    ({"compose__mode": "independent", "model__bn_group": 6}, 12),
    ({"model__bn_group": 8, "accumulate_steps": 3}, 24),
  ],
)
def test_images_come_in_whole_composites_groups_and_parts(fields, unit):
  assert check.images_unit(make_config(**fields), 4) == unit
  for times in (1, 3):
    checks.validate(make_config(**fields, batch_size=times * unit * 4), 4)


def test_the_largest_batch_is_searched_by_compiling(target, finding):
  """The limit is what four images a device need, with the next batch."""
  limit = finding["memory_bytes"]["total_with_next_batch"]
  found = check.search(
    make_config(), target._replace(memory_limit=limit), CLASSES
  )
  assert found["asked"]["per_device"] == 4 and found["asked"]["fits"]
  assert found["largest"]["batch_size"] == 16
  assert {"per_device": 8, "fits": False} in found["tried"]
  less = target._replace(memory_limit=limit - 1)
  assert not check.compile_step(make_config(), less, CLASSES)["fits"]


@pytest.mark.parametrize(
  ("batch_size", "asked", "largest"),
  [(16, 4, 24), (6, None, 24), (112, 28, 28), (512, 128, 24)],
)
def test_the_recipes_own_batch_is_reported_if_it_can_be_divided(
  target, finding, monkeypatch, batch_size, asked, largest
):
  """With a made-up compiler: 28 images a device fit."""

  def compile_step(config, where, classes):
    size = config.batch_size // 4
    fits = size <= 28
    return finding | {
      "batch_size": config.batch_size,
      "per_device": size,
      "fits": fits,
      "memory_bytes": finding["memory_bytes"] if fits else None,
    }

  monkeypatch.setattr(check, "compile_step", compile_step)
  limit = 4 * finding["memory_bytes"]["total"]
  found = check.search(
    make_config(batch_size=batch_size),
    target._replace(memory_limit=limit),
    CLASSES,
  )
  assert (found["asked"] and found["asked"]["per_device"]) == asked
  assert found["largest"]["per_device"] == largest
  assert {each["per_device"] for each in found["tried"]} >= {16, 24, 32}
  assert all(
    each["fits"] == (each["per_device"] <= 28) for each in found["tried"]
  )


# Refused before anything is compiled.


@pytest.mark.parametrize(
  ("fields", "per_device", "message"),
  [
    ({"batch_size": 12}, 0, "must be divisible by 4 groups"),
    ({"data__name": "tfds:voc/2007"}, 0, "--num_classes=K"),
    ({}, "auto", "has none that is known; give a number"),
  ],
)
def test_an_impossible_question_is_refused(fields, per_device, message):
  with pytest.raises(ValueError, match=message):
    check.preflight(make_config(**fields), "local", per_device=per_device)


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5"])
def test_a_batch_must_be_a_number_or_auto(text):
  with pytest.raises(ValueError, match=f"--per_chip_batch={text} must be"):
    check.read_per_device(text)
  assert check.read_per_device("auto") == "auto"
  assert check.read_per_device("32") == 32


def test_auto_dtypes_are_those_of_the_target_and_not_of_this_machine():
  dtype = imagenet.get_config("resnet18-gc").compute_dtype
  assert build.compute_dtype(dtype, "tpu") == jnp.bfloat16
  assert build.compute_dtype(dtype, "cpu") == jnp.float32
