"""The step that is lowered without arrays is the one that trains."""

import io

import jax
import numpy as np
import PIL.Image
import pytest

from configs import quickstart, quickstart_multi
from gc_jax import data
from gc_jax.data import Classes, Dataset, pipeline
from gc_jax.models import init_key
from gc_jax.pods import lowering
from gc_jax.runtime import parallel
from gc_jax.training import guidance, optim, recipe
from gc_jax.training import state as states

SIDE = 16
CLASSES = Classes(10, False)


def make_config(module=quickstart, variant="gc,smoke", **fields):
  config = module.get_config(variant)
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
    name="by hand",
  )


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


BATCHES = {
  "single": make_config(),
  "several": make_config(quickstart_multi),
  "supplied": make_config(
    compose__mode="independent",
    compose__distractors="dataset",
    data__on_error="skip",
  ),
  "plain": make_config(variant="ce,smoke"),
  "objects": make_config(quickstart_multi, "energy,smoke"),
  "objects and supplied": make_config(
    loss__energy_weight=1.0,
    compose__mode="independent",
    compose__distractors="dataset",
  ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_batch_is_shaped_as_the_pipeline_makes_it(name):
  config = BATCHES[name]
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
  assert shapes(lowering.abstract_batch(config, classes, mesh)) == shapes(real)


def test_what_is_compiled_is_what_trains():
  """The same program, letter by letter, as of arrays that are there."""
  config = make_config()
  mesh = parallel.make_mesh()
  tx = optim.optimizer(config, 1_000)
  make_model = recipe.model_maker(config, 10, "cpu")
  goal = recipe.objective(config, 10, mesh.size)
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
    step = recipe.jitted_train_step(config, graphdef, tx, goal, 1_000)
    trained = step.lower(state, batch).as_text()
  abstract_graphdef, abstract = lowering.abstract_state(make_model, tx, mesh)
  assert shapes(abstract) == shapes(state)
  assert abstract_graphdef == graphdef
  lowered = lowering.lower(config, mesh, CLASSES)[0]
  assert lowered.as_text() == trained
