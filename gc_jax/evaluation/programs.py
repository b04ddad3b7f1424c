"""What devices compute of a batch of pairs: pure functions to jit.

Each takes a model as structure and variables, a `PairBatch`, and the names of
what to measure, and returns columns, one number a row, and totals, sums over
the rows that count.
"""

import collections
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gc_jax import attribution
from gc_jax.attribution import CONTROLS, METHODS
from gc_jax.data import annotation
from gc_jax.evaluation import (
  attacks,
  classification,
  faithfulness,
  localisation,
)
from gc_jax.evaluation.localisation import where
from gc_jax.method.metrics import Key
from gc_jax.method.types import Array as AnyArray
from gc_jax.method.types import PairBatch

# A view: what is added to either is in it.
ALL_METHODS = collections.ChainMap(METHODS, CONTROLS)


class Measured(NamedTuple):
  """What came of a batch.

  Attributes:
    columns: number of each row; NaN where the row does not count.
    totals: (sum, weight), over the rows that count.
    cams: method -> raw map of each row; empty unless asked for.
  """

  columns: dict[Key, Float[Array, "B"]]
  totals: dict[Key, tuple[AnyArray, AnyArray]]
  cams: dict[str, Float[Array, "B h w"]]


def grids(
  model: nnx.Module, methods: tuple[str, ...], height: int, width: int
) -> tuple[annotation.Grid, ...]:
  """Returns (h, w) of the maps of some methods, without computing any.

  Args:
    model: in evaluation mode.
    methods: keys of `ALL_METHODS`.
    height: of the images.
    width: of the images.
  """
  wanted = [ALL_METHODS[name] for name in methods]
  return tuple(sorted(attribution.grids(wanted, model, height, width)))


def num_classes(model: nnx.Module, image_size: int) -> int:
  """Returns K, without computing anything.

  Args:
    model: in evaluation mode.
    image_size: side of the images.
  """
  graphdef, variables = nnx.split(model)
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
  logits = jax.eval_shape(
    lambda variables, image: _logits(_model(graphdef, variables), image),
    variables,
    image,
  )
  return logits.shape[-1]


@functools.partial(jax.jit, static_argnums=0)
def predictions(graphdef, variables, batch: PairBatch) -> Measured:
  """Returns whether the class is right, for pictures of their own."""
  model = _model(graphdef, variables)
  return _predictions(_logits(model, batch["image"]), batch)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def localization(
  graphdef,
  variables,
  batch: PairBatch,
  methods: tuple[str, ...],
  predicts: bool,
) -> Measured:
  """Returns what maps say of the objects, for each method.

  Args:
    graphdef: structure of the model, in evaluation mode.
    variables: of the model.
    batch: with the annotations.
    methods: keys of `ALL_METHODS`.
    predicts: whether the predictions are returned as well.
  """
  model = _model(graphdef, variables)
  cams = _maps(model, batch["image"], batch["target"], methods)
  columns = localisation.on_objects(cams, batch)
  if not predicts:
    return Measured(columns, {}, {})
  measured = _predictions(_logits(model, batch["image"]), batch)
  return measured._replace(columns=measured.columns | columns)


@functools.partial(jax.jit, static_argnums=(0, 3))
def negative_quadrants(
  graphdef, variables, batch: PairBatch, methods: tuple[str, ...]
) -> Measured:
  """Returns what maps of composites say, for each method.

  Args:
    graphdef: structure of the model, in evaluation mode.
    variables: of the model.
    batch: of composites.
    methods: keys of `ALL_METHODS`.
  """
  model = _model(graphdef, variables)
  cams = _maps(model, batch["image"], batch["target"], methods)
  return Measured(localisation.on_composites(cams, batch), {}, {})


@functools.partial(jax.jit, static_argnums=(0, 3))
def maps(
  graphdef, variables, batch: PairBatch, methods: tuple[str, ...]
) -> tuple[Float[Array, "B K"], dict[str, Float[Array, "B h w"]]]:
  """Returns the logits, and each method's raw maps.

  Args:
    graphdef: structure of the model, in evaluation mode.
    variables: of the model.
    batch: of pictures or composites.
    methods: keys of `ALL_METHODS`.
  """
  model = _model(graphdef, variables)
  cams = _maps(model, batch["image"], batch["target"], methods)
  return _logits(model, batch["image"]), cams


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def attacked(
  graphdef,
  variables,
  batch: PairBatch,
  names: tuple[str, ...],
  epsilons: tuple[int | float, ...],
  on_few: bool = False,
) -> Measured:
  """Returns the predictions for pictures changed to mislead the model.

  Args:
    graphdef: structure of the model, in evaluation mode.
    variables: of the model.
    batch: of pictures.
    names: keys of `attacks.FUNCTIONS`.
    epsilons: how far a pixel may be moved, in 1/255.
    on_few: whether only PGD's pictures are attacked: FGSM then has a name of
      its own, and no row of any step up to epsilon.
  """
  model = _model(graphdef, variables)
  counts = batch["mask"] * batch["first"]
  pictures = dict(batch) | {"mask": counts}
  columns, totals = {}, {}
  for (name, epsilon), logits in attacks.attacked_logits(
    model, pictures, epsilons, names
  ).items():
    if on_few and name == attacks.WITHIN:
      continue
    if on_few and name == "fgsm":
      name = attacks.ON_FEW
    key = functools.partial(Key, attack=name, epsilon=epsilon)
    for metric, values in classification.by_example(logits, pictures).items():
      columns[key(metric)] = where(counts, values)
    for metric, total in classification.sums(logits, pictures).items():
      totals[key(metric)] = total
  return Measured(columns, totals, {})


@functools.partial(jax.jit, static_argnums=(0, 4))
def faithful(
  graphdef,
  variables,
  batch: PairBatch,
  cams: dict[str, Float[Array, "B _ _"]],
  num_steps: int,
) -> Measured:
  """Returns insertion and deletion of each method, and its maps.

  Args:
    graphdef: structure of the model, in evaluation mode.
    variables: of the model.
    batch: of pictures.
    cams: method -> raw map of each row, from `maps`.
    num_steps: see `faithfulness.curves`.
  """
  model = _model(graphdef, variables)
  images = batch["image"]
  # All methods in one loop: maps of the picture's size, as so many targets.
  enlarged = [
    faithfulness.enlarged(cam, *images.shape[1:3]) for cam in cams.values()
  ]
  targets = jnp.broadcast_to(batch["target"][:, None], (len(images), len(cams)))
  fractions, *both = faithfulness.curves(
    model,
    images,
    targets,
    jnp.stack(enlarged, 1),
    num_steps=num_steps,
    multi_label="labels" in batch,
  )
  counts = batch["mask"] * batch["target_mask"]
  columns, totals = {}, {}
  for what, curves in zip(("insertion", "deletion"), both, strict=True):
    areas = faithfulness.area_under(fractions, curves)
    sums = jnp.where(counts[:, None, None] > 0, curves, 0).sum(0)
    for i, name in enumerate(cams):
      columns[Key(f"{what}_auc", name)] = where(counts, areas[:, i])
      totals[Key(what, name)] = (sums[i], counts.sum())
  return Measured(columns, totals, cams)


def _model(graphdef, variables) -> nnx.Module:
  return nnx.merge(graphdef, variables, copy=True)


def _logits(model, images) -> Float[Array, "B K"]:
  return model.classify(model.features(model.normalize(images)))


def _maps(model, images, target, methods) -> dict[str, Array]:
  """Returns each method's raw maps of the targets, `[B h w]`.

  Each method asks for the features anew; the compiler shares them.
  """
  return {
    name: ALL_METHODS[name](model, images, target[:, None])[:, 0]
    for name in methods
  }


def _predictions(logits, batch) -> Measured:
  counts = batch["mask"] * batch["first"]
  pictures = dict(batch) | {"mask": counts}
  sums = classification.sums(logits, pictures)
  columns = {
    Key(name): where(counts, values)
    for name, values in classification.by_example(logits, batch).items()
  }
  return Measured(columns, {Key(k): v for k, v in sums.items()}, {})
