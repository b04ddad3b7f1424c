"""An evaluation as passes over pairs: which rows, made how, measured how.

Planned before anything is compiled, so that how many programs and batches
there are is known at the start; then run one after the other into a `Ledger`.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from flax import nnx
from jaxtyping import Int
from ml_collections import ConfigDict

from gc_jax.attribution import CONTROLS
from gc_jax.data import pairs as pair_rows
from gc_jax.data.dataset import Dataset
from gc_jax.data.distractors import ClassIndex
from gc_jax.data.pairs import Composite, Frame, Maker, Pairs, Square
from gc_jax.data.reading import Reader
from gc_jax.evaluation import boxes, programs
from gc_jax.evaluation.ledger import Ledger
from gc_jax.evaluation.programs import Measured
from gc_jax.method.metrics import Key
from gc_jax.method.types import PairBatch
from gc_jax.runtime import parallel

# Pairs whose maps by all methods, costly ones too, are made at once. The same
# everywhere, so that one program does: they take longest to compile.
MAPS_AT_ONCE = 8
_PIXELS_224 = 224  # side at which tolerances are given

# Of a program of `programs` and its arguments: calls it, or compiles it alone.
Call = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
  """One sweep over some rows, all of one shape: one program.

  Attributes:
    name: unique, for the ledger.
    rows: which pairs, in order.
    maker: makes them.
    batch_size: rows of all processes.
    step: measures a batch, by programs that it hands to a `Call` one after the
      other.
    on_host: what the host makes of a batch's maps and boxes, or None.
  """

  name: str
  rows: Int[np.ndarray, "N"]
  maker: Maker
  batch_size: int
  step: Callable[[Call, PairBatch], Measured]
  on_host: Callable[..., dict[Key, tuple]] | None = None

  @property
  def num_batches(self) -> int:
    """Returns how many batches the pass has."""
    return -(-len(self.rows) // self.batch_size)


class Planner:
  """Makes the passes of one model over one split.

  Attributes:
    graph: (structure, variables) of the model.
    pairs: the rows of the split.
    square: what makes plain pictures.

  Args:
    model: in evaluation mode, on every device of the mesh.
    dataset: the split.
    config: of the evaluation, resolved.
    mesh: the batch is divided along it.
    explains: whether maps are asked for; else no row has a class to explain,
      and no label of the split is read before its picture.
  """

  def __init__(
    self,
    model: nnx.Module,
    dataset: Dataset,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    explains: bool = True,
  ):
    self._model = model
    self.graph = nnx.split(model)
    self._dataset = dataset
    self._config = config
    self._mesh = mesh
    self._reader = Reader(dataset, config.data.on_error)
    labels = dataset.all_labels() if explains else [()] * len(dataset.source)
    self.pairs = pair_rows.all_pairs(labels)
    self._class_index = ClassIndex(labels, len(dataset.class_names))
    self._explained = np.flatnonzero(self.pairs.target >= 0)
    size = config.data.image_size
    self.square = Square(
      dataset,
      self._reader,
      size,
      config.data.eval_resize_px,
      config.data.eval_squash,
      config.eval.tolerance_px * size / _PIXELS_224,
    )

  def composite(self) -> Composite:
    """Returns what makes composites."""
    return Composite(self.square, self._class_index)

  def with_objects(self) -> Square:
    """Returns what makes squares with the objects in them."""
    return dataclasses.replace(self.square, with_objects=True)

  def passes(
    self,
    questions: Sequence[str],
    methods: tuple[str, ...] = (),
    on_few: tuple[str, ...] = (),
  ) -> list[Pass]:
    """Returns the passes that answer some questions.

    Args:
      questions: of `artefact.QUESTIONS`; those that need no pass are passed
        over.
      methods: keys of `METHODS`; control rows come with them.
      on_few: those of `methods` that are measured on few rows.

    Raises:
      ValueError: pictures have more shapes than may be compiled for.
    """
    found = []
    if "localisation" in questions:
      found += self._standard(tuple(m for m in methods if m not in on_few))
      found += self._costly(on_few)
    elif "classification" in questions:
      found.append(self._predictions())
    if "faithfulness" in questions:
      found.append(self._faithfulness(methods))
    if "attacks" in questions:
      found += self._attacks(tuple(self._config.eval.epsilons))
    return found

  def _predictions(self) -> Pass:
    """Returns the pass over every picture that explains nothing."""
    first = np.flatnonzero(self.pairs.first)
    step = self._step(programs.predictions)
    size = self._batch_size(first)
    return Pass("predictions", first, self.square, size, step)

  def _standard(self, methods: tuple[str, ...]) -> list[Pass]:
    """Returns the passes over every row: of pictures, and of composites."""
    everything = np.arange(len(self.pairs.index))
    methods = (*methods, *CONTROLS)
    if self._config.eval.protocol == "paper":
      passes = [self._on_squares("squares", everything, methods, True)]
    else:
      passes = [self._predictions()]
      passes += self._frames("frames", self._explained, methods)
    return [*passes, self._composites("composites", self._explained, methods)]

  def _costly(self, methods: tuple[str, ...]) -> list[Pass]:
    """Returns the passes of methods that are measured on fewer rows."""
    if not methods:
      return []
    rows = self.few()
    if self._config.eval.protocol == "paper":
      passes = [self._on_squares("costly squares", rows, methods, False)]
    else:
      passes = self._frames("costly frames", rows, methods)
    return [*passes, self._composites("costly composites", rows, methods)]

  def _faithfulness(self, methods: tuple[str, ...]) -> Pass:
    """Returns the pass of insertion, deletion and boxes, on fewer rows."""
    num_steps = self._config.eval.faithfulness_steps

    def step(call, batch):
      cams = {}
      for names in (methods, tuple(CONTROLS)):
        cams |= call(programs.maps, *self.graph, batch, names)[1]
      return call(programs.faithful, *self.graph, batch, cams, num_steps)

    square = self.with_objects()
    name = "insertion, deletion and boxes"
    on_host = functools.partial(_boxes, square.image_size)
    rows = self.few()
    size = self._batch_size(rows[:MAPS_AT_ONCE])
    return Pass(name, rows, square, size, step, on_host)

  def _attacks(self, epsilons: tuple[int, ...]) -> list[Pass]:
    """Returns FGSM on every picture, and PGD on fewer."""
    first = np.flatnonzero(self.pairs.first)
    few = self.few()
    few = few[self.pairs.first[few]]
    fgsm = self._step(programs.attacked, ("fgsm",), epsilons)
    # On the same pictures FGSM as well, and none: else PGD has no measure.
    pgd = self._step(programs.attacked, ("fgsm", "pgd"), (0, *epsilons), True)
    return [
      Pass("FGSM", first, self.square, self._batch_size(first), fgsm),
      Pass("PGD", few, self.square, self._batch_size(few), pgd),
    ]

  def few(self) -> Int[np.ndarray, "n"]:
    """Returns the rows on which what is costly is measured: evenly spread."""
    count = min(self._config.eval.costly_rows, len(self._explained))
    places = np.linspace(0, len(self._explained) - 1, count)
    return self._explained[places.astype(int)]

  def _on_squares(self, name, rows, methods, predicts) -> Pass:
    size = self.square.image_size
    grids = programs.grids(self._model, methods, size, size)
    square = dataclasses.replace(self.square, grids=grids)
    step = self._step(programs.localization, methods, predicts)
    return Pass(name, rows, square, self._batch_size(rows), step)

  def _composites(self, name, rows, methods) -> Pass:
    step = self._step(programs.negative_quadrants, methods)
    size = self._batch_size(rows, area=4)
    return Pass(name, rows, self.composite(), size, step)

  def _frames(self, name, rows, methods) -> list[Pass]:
    settings = self._config.eval
    pictures, place = np.unique(self.pairs.index[rows], return_inverse=True)
    sizes = pair_rows.frame_sizes(
      self._dataset,
      self._reader,
      pictures,
      settings.shorter_side_px,
      settings.round_px,
    )[place]
    shapes = np.unique(sizes[sizes[:, 0] > 0], axis=0)
    if len(shapes) > settings.max_shapes:
      raise ValueError(
        f"Pictures must have at most --config.eval.max_shapes="
        f"{settings.max_shapes} shapes when the model gets them, as a program "
        f"is compiled for each; they have {len(shapes):,}. Set "
        "--config.eval.round_px=32 to round their sides, or raise the bound."
      )
    passes = []
    for height, width in shapes.tolist():
      frame = Frame(
        self._dataset,
        self._reader,
        (height, width),
        settings.shorter_side_px,
        settings.round_px,
        settings.tolerance_px,
        programs.grids(self._model, methods, height, width),
      )
      step = self._step(programs.localization, methods, False)
      own = rows[(sizes == (height, width)).all(1)]
      area = height * width / self.square.image_size**2
      label = f"{name} {height}x{width}"
      size = self._batch_size(own, area)
      passes.append(Pass(label, own, frame, size, step))
    return passes

  def _step(self, program, *settings) -> Callable[[Call, PairBatch], Measured]:
    """Returns the step that is one of `programs`."""
    return lambda call, batch: call(program, *self.graph, batch, *settings)

  def _batch_size(
    self, rows: Int[np.ndarray, "N"], area: int | float = 1
  ) -> int:
    """Returns rows of a batch of images so many times as large as a square."""
    size = max(1, int(self._config.eval.batch_size / area))
    size = min(size, max(1, len(rows)))
    return parallel.divisible(size, self._mesh)


def run(
  passes: list[Pass],
  pairs: Pairs,
  mesh: jax.sharding.Mesh,
  ledger: Ledger,
) -> Iterator[Pass]:
  """Measures what the ledger has not yet; yields after every batch.

  While one pass is measured, a thread compiles the next.

  Args:
    passes: from a `Planner`.
    pairs: of the split.
    mesh: the batch is divided along it.
    ledger: gets the numbers.

  Yields:
    The pass of which a batch was added.
  """
  begun = (
    (one, _begun(one, pairs, mesh, ledger.done.get(one.name, 0)))
    for one in passes
  )
  waiting = None
  with contextlib.closing(parallel.one_ahead(begun)) as ahead:
    for one, batches in ahead:
      for batch, found in batches:
        with jax.set_mesh(mesh):
          measured = one.step(_called, batch)
        # Fetched one batch late: the devices compute while the next is made.
        if waiting is not None:
          yield _added(ledger, *waiting)
        waiting = one, measured, batch["row"], found
  if waiting is not None:
    yield _added(ledger, *waiting)


def _begun(
  one: Pass, pairs: Pairs, mesh: jax.sharding.Mesh, start: int
) -> Iterator[tuple[PairBatch, list]]:
  """Compiles a pass for its first batch; returns the batches, with boxes.

  It runs nothing, so that a thread may do it.
  """
  batches = (
    (parallel.to_devices(share.batch, mesh), share.boxes)
    for share in _shares(one, pairs, start)
  )
  first = list(itertools.islice(batches, 1))
  with jax.set_mesh(mesh):
    for batch, _ in first:
      one.step(_compiled, batch)
  return itertools.chain(first, batches)


def _called(program, *args) -> Any:
  return program(*args)


def _compiled(program, *args) -> Any:
  """Returns the shapes of what a program returns, which is compiled now.

  When it is called with such arguments, jax finds it.
  """
  lowered = program.lower(*args)
  return jax.tree.map(
    lambda x, sharding: x.update(sharding=sharding),
    lowered.out_info,
    lowered.compile().output_shardings,
  )


def _shares(one: Pass, pairs: Pairs, start: int):
  process_index, process_count = parallel.process()
  return pair_rows.batches(
    pairs,
    one.rows,
    one.maker,
    one.batch_size,
    start=start,
    process_index=process_index,
    process_count=process_count,
  )


def _added(ledger: Ledger, one: Pass, measured: Measured, row, found) -> Pass:
  """Adds what was measured to the ledger; returns the pass it is of."""
  columns, totals, rows = parallel.fetch(
    (measured.columns, measured.totals, row)
  )
  if one.on_host is not None:
    totals = totals | one.on_host(parallel.fetch(measured.cams), found)
  ledger.add(one.name, rows, columns, totals)
  return one


def _boxes(size: int, cams, found) -> dict[Key, tuple]:
  """Returns how often the box around each map is right, at each threshold."""
  totals = {}
  for name, maps in cams.items():
    correct = [
      boxes.box_correct(_enlarged(cam, size), own)
      for cam, own in zip(maps, found, strict=True)
      if own is not None and len(own)
    ]
    none = np.zeros((len(boxes.IOUS), len(boxes.THRESHOLDS)))
    key = Key(boxes.TOTAL, name)
    totals[key] = (np.sum(correct, 0) + none, np.float64(len(correct)))
  return totals


def _enlarged(cam: np.ndarray, size: int) -> np.ndarray:
  return cv2.resize(cam, (size, size), interpolation=cv2.INTER_LINEAR)
