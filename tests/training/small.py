"""Small batches, recipes, and train steps that several files of tests take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gc_jax import models
from gc_jax.method import compose
from gc_jax.models import chain, network
from gc_jax.runtime.config import get_config
from gc_jax.training.step import TrainState, make_train_step

WEIGHT = 3.0  # λ
NUM_CLASSES = 10
# Two groups of eight. The same class twice in each, so that pairs clash.
LABEL = np.array([0, 1, 2, 3, 4, 5, 6, 0, 9, 8, 7, 6, 5, 4, 3, 9])


def pixels(count=16, side=16, seed=0):
  values = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3))
  return values.astype(np.uint8)


def batch_of(label=LABEL, **others):
  """Single-label, or multi-label by `labels=`."""
  if "labels" not in others:
    others["label"] = label
  given = {k: jnp.asarray(v, jnp.int32) for k, v in others.items()}
  count = len(next(iter(given.values())))
  return given | {
    "image": jnp.asarray(pixels(count)),
    "mask": jnp.ones(count),
  }


def with_objects(batch, target=LABEL):
  """Brings rectangles as objects; those of images 2, 7 and 12 are unknown."""
  rows, columns = np.arange(16)[:, None], np.arange(16)[None]
  masks = [
    (rows >= i % 5) & (rows < 9) & (columns >= 3) & (columns < 7 + i % 7)
    if i % 5 != 2
    else np.zeros((16, 16), bool)
    for i in range(len(batch["mask"]))
  ]
  return batch | {
    "object_mask": jnp.asarray(np.stack(masks)),
    "target": jnp.asarray(target, jnp.int32),
  }


def with_distractors(batch, distractors, counts, target=LABEL):
  """Brings distractors from elsewhere, and the classes they were drawn for."""
  return batch | {
    "distractors": jnp.asarray(distractors),
    "distractor_mask": jnp.asarray(counts, jnp.float32),
    "target": jnp.asarray(target, jnp.int32),
  }


def changed(config, **fields):
  """The config with other fields: `loss__reduction="sum"`."""
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  return config


def recipe(*terms, groups=1, **fields):
  """A config in which the terms have the weight, and other fields."""
  weights = {"loss__consistency_weight": 0.0} | {
    f"loss__{name}_weight": WEIGHT for name in terms
  }
  own = {"seed": 7, "compose__groups": groups}
  return changed(get_config(), **own, **weights, **fields)


def step_of(config, graphdef, tx):
  return make_train_step(
    config,
    graphdef,
    tx,
    num_classes=NUM_CLASSES,
    num_devices=1,
    steps_per_epoch=1,
  )


def make_step(model, config, lr=1.0):
  """The step, not compiled, and its first state.

  Plain gradient descent: at a rate of 1 the parameters fall by the gradient.
  """
  graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
  tx = optax.sgd(lr)
  state = TrainState(
    jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params)
  )
  return step_of(config, graphdef, tx), state


def run_step(model, config, batch):
  """The state after one step, and its metrics."""
  step, state = make_step(model, config)
  return jax.jit(step)(state, batch)


def assert_close(tree, other, **tolerance):
  """Holds every array of a tree against that of another."""
  for ours, theirs in zip(*map(jax.tree.leaves, (tree, other)), strict=True):
    np.testing.assert_allclose(ours, theirs, **tolerance)


def mean(metrics, name):
  total, weight = metrics[f"train/{name}"]
  return float(total / weight)


def make_chain(dropout_rate=0.0, pool_window=2, grid=2):
  """A net without BatchNorm; pictures of 16 pixels give 4x4 cells."""
  return chain.Chain(
    ((4, 3, 2, 1), chain.POOL),
    NUM_CLASSES,
    pool_window=pool_window,
    grid=grid,
    hidden=8,
    drops_features=True,
    dropout_rate=dropout_rate,
    conv_init=network.TORCH_INIT,
    linear_init=network.TORCH_INIT,
    rngs=nnx.Rngs(models.init_key(0)),
  )


# Fixed layouts of composites, for groups of eight.

PACKED = compose.Layout(
  tiles=np.array([[3, 0, 7, 5], [1, 2, 6, 4]]),
  cell=np.array([[2, 0, 3, 1], [0, 1, 2, 3]]),
  mask=np.array([[1, 1, 0, 1], [1, 1, 1, 1]], np.float32),
)
INDEPENDENT = compose.Layout(
  tiles=np.array(
    [
      [0, 3, 4, 5],
      [2, 1, 3, 4],
      [7, 6, 2, 5],
      [4, 5, 6, 3],
      [1, 4, 0, 2],
      [0, 1, 5, 7],
      [6, 1, 2, 3],
      [5, 4, 3, 7],
    ]
  ),
  cell=np.array([[0], [1], [2], [3], [1], [2], [0], [3]]),
  mask=np.array([[1], [1], [1], [0], [1], [1], [1], [1]], np.float32),
)
# Two classes in two images each, one in three, one in all.
BY_CLASS = PACKED._replace(
  holds=np.array(
    [
      [[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1]],
      [[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]],
    ],
    bool,
  )
)

LAYOUTS = {
  "packed": PACKED,
  "independent": INDEPENDENT,
  "packed_by_class": BY_CLASS,
}


def rotated(layout, offset):
  """The same places, other images: so that the groups differ."""
  return layout._replace(tiles=(layout.tiles + offset) % 8)


def fixed(layout):
  """A mode of composing that draws nothing."""

  def draw(key, contains, target, mask):
    del key, contains, mask
    rolled = rotated(layout, target[0])
    return jax.tree.map(jnp.asarray, rolled)

  return compose.Mode(draw, layout.cell.shape[-1], "fixed", "")
