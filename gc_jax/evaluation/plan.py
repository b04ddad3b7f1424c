"""An evaluation as passes over pairs: which rows, made how, measured how.

Planned before anything is compiled, so that the number of programs and batches
is known at the start; then run one after the other into a `Ledger`.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int
from ml_collections import ConfigDict

from gc_jax import attribution
from gc_jax.attribution import CONTROLS
from gc_jax.data import pairs as pair_rows
from gc_jax.data.dataset import ClassIndex, Dataset, Reader
from gc_jax.data.pairs import Composite, Frame, Maker, Pairs, Share, Square
from gc_jax.evaluation import localisation
from gc_jax.evaluation.attacks import attacked
from gc_jax.evaluation.classification import predictions
from gc_jax.evaluation.faithfulness import faithful
from gc_jax.evaluation.ledger import Ledger, Measured, Totals
from gc_jax.inference.arrays import split
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.method.types import PairBatch
from gc_jax.report import logs
from gc_jax.runtime import parallel, speaking

# Pairs whose maps by all methods, costly ones too, are made at once. The same
# everywhere, so that one program does: they take longest to compile.
MAPS_AT_ONCE = 8
_PIXELS_224 = 224  # side at which tolerances are given

# Calls a program with its arguments, or only compiles it.
Call = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
  """One sweep over some rows, all of one shape."""

  name: str  # unique, for the ledger
  rows: Int[np.ndarray, "N"]
  maker: Maker
  batch_size: int  # of all processes
  # Measures a batch, by programs that it hands to the `Call`.
  step: Callable[[Call, PairBatch], Measured]
  on_host: Callable[..., Totals] | None = None  # of a batch's maps and boxes

  @property
  def num_batches(self) -> int:
    """Returns how many batches the pass has."""
    return -(-len(self.rows) // self.batch_size)


class Planner:
  """Makes the passes of one model over one split.

  It holds what it was given, the `pairs` of the split, the model in two parts
  (`graph`), and what makes rows: `square`, `with_objects`, `composite`.

  Args:
    model: in evaluation mode, on every device of the mesh.
    dataset: the split.
    config: of the evaluation, resolved.
    mesh: the batch is divided along it.
    explains: whether maps are asked for; if not, no row has a class to explain,
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
    self.model, self.dataset = model, dataset
    self.config, self.mesh = config, mesh
    self.graph = split(model)
    self._settings = config.eval
    self._reader = Reader(dataset, config.data.on_error)
    labels = dataset.all_labels() if explains else [()] * len(dataset.source)
    self.pairs = pair_rows.all_pairs(labels)
    self._explained = np.flatnonzero(self.pairs.target >= 0)
    size = config.data.image_size
    self.square = Square(
      self._reader,
      size,
      config.data.eval_resize_px,
      config.data.eval_squash,
      config.eval.tolerance_px * size / _PIXELS_224,
    )
    self.with_objects = dataclasses.replace(self.square, with_objects=True)
    class_index = ClassIndex(labels, len(dataset.class_names))
    self.composite = Composite(self.square, class_index)

  def passes(
    self,
    questions: Sequence[str],
    methods: tuple[str, ...] = (),
    on_few: tuple[str, ...] = (),
  ) -> list[Pass]:
    """Returns the passes that answer some questions.

    Args:
      questions: of `artefact.QUESTIONS`; some need no pass.
      methods: keys of `METHODS`; control rows come with them.
      on_few: those of `methods` that are measured on few rows.

    Raises:
      ValueError: pictures have more shapes than may be compiled for.
    """
    found = []
    if "localisation" in questions:
      on_all = (*(m for m in methods if m not in on_few), *CONTROLS)
      found += self._localisation("", self._explained, on_all, predicts=True)
      if on_few:
        found += self._localisation("costly ", self.few(), on_few)
    elif "classification" in questions:
      found.append(self._predictions())
    if "faithfulness" in questions:
      found.append(self._faithfulness(methods))
    if "attacks" in questions:
      found += self._attacks(tuple(self._settings.epsilons))
    return found

  @functools.cached_property
  def has_objects(self) -> bool:
    """Returns whether any picture says where its objects are."""
    return self.dataset.has_objects()

  def few(self) -> Int[np.ndarray, "n"]:
    """Returns the evenly spread rows on which costly numbers are measured."""
    return evenly(self._explained, self._settings.costly_rows)

  def _predictions(self) -> Pass:
    """Returns the pass over every picture that explains nothing."""
    first = np.flatnonzero(self.pairs.first)
    return self._pass("predictions", first, self.square, predictions)

  def _localisation(
    self, prefix, rows, methods, predicts: bool = False
  ) -> list[Pass]:
    """Returns the passes over rows: of pictures, and of composites.

    Without objects nothing is held against them: pictures are squares under
    every protocol, and no annotation is asked for.
    """
    program = localisation.negative_quadrants
    name = f"{prefix}composites"
    composites = self._pass(name, rows, self.composite, program, methods)
    if PROTOCOLS[self._settings.protocol].whole and self.has_objects:
      before = [self._predictions()] if predicts else []
      frames = self._frames(f"{prefix}frames", rows, methods)
      return [*before, *frames, composites]
    size = self.square.image_size
    grids = self._grids(methods, size, size) if self.has_objects else ()
    squares = self._pass(
      f"{prefix}squares",
      # A prediction counts without a class to explain, too.
      np.arange(len(self.pairs.index)) if predicts else rows,
      dataclasses.replace(self.square, grids=grids),
      localisation.localization,
      methods,
      predicts,
    )
    return [squares, composites]

  def _frames(self, name, rows, methods) -> list[Pass]:
    settings = self._settings
    round_px = math.lcm(settings.round_px or 1, self.model.unit_px)
    scaling = settings.shorter_side_px, round_px
    pictures, place = np.unique(self.pairs.index[rows], return_inverse=True)
    sizes = pair_rows.frame_sizes(self._reader, pictures, *scaling)[place]
    shapes = np.unique(sizes[sizes[:, 0] > 0], axis=0)
    if len(shapes) > settings.max_shapes:
      raise ValueError(
        f"Pictures must have at most --config.eval.max_shapes="
        f"{settings.max_shapes} shapes when the model gets them, as a program "
        f"is compiled for each; they have {len(shapes):,}. Set "
        "--config.eval.round_px=32 to round their sides, or raise the bound."
      )
    return [
      self._pass(
        f"{name} {height}x{width}",
        rows[(sizes == (height, width)).all(1)],
        Frame(
          self._reader,
          (height, width),
          *scaling,
          settings.tolerance_px,
          self._grids(methods, height, width),
          settings.border or PROTOCOLS[settings.protocol].border,
        ),
        localisation.localization,
        methods,
        False,
      )
      for height, width in shapes.tolist()
    ]

  def _faithfulness(self, methods: tuple[str, ...]) -> Pass:
    """Returns the pass of insertion, deletion and boxes, on few rows."""
    num_steps = self._settings.faithfulness_steps

    def step(call, batch):
      cams, sums = {}, {}
      for names in (methods, tuple(CONTROLS)):
        _, made, divided = call(localisation.maps, *self.graph, batch, names)
        cams, sums = cams | made, sums | divided
      return call(faithful, *self.graph, batch, cams, sums, num_steps)

    rows, maker = self.few(), self.square
    name, on_host = "insertion and deletion", None
    if self.has_objects:
      maker, name = self.with_objects, "insertion, deletion and boxes"
      on_host = functools.partial(localisation.boxes_correct, maker.image_size)
    size = self._batch_size(rows[:MAPS_AT_ONCE], maker)
    return Pass(name, rows, maker, size, step, on_host)

  def _attacks(self, epsilons: tuple[int, ...]) -> list[Pass]:
    """Returns FGSM on every picture, and PGD on few."""
    first = np.flatnonzero(self.pairs.first)
    # Pictures without a class count as well.
    every = np.arange(len(self.pairs.index))
    few = evenly(every, self._settings.costly_rows)
    few = few[self.pairs.first[few]]
    # Epsilon 0 there too: PGD needs the clean accuracy of the same pictures.
    with_clean = 0, *epsilons
    return [
      self._pass("FGSM", first, self.square, attacked, epsilons, False),
      # 60 gradients a picture: in batches that end within a minute on a CPU.
      dataclasses.replace(
        self._pass("PGD", few, self.square, attacked, with_clean, True),
        batch_size=self._batch_size(few[:MAPS_AT_ONCE], self.square),
      ),
    ]

  def _grids(self, methods, height, width) -> tuple[tuple[int, int], ...]:
    wanted = [localisation.ALL_METHODS[name] for name in methods]
    return tuple(sorted(attribution.grids(wanted, self.model, height, width)))

  def _pass(self, name, rows, maker, program, *settings) -> Pass:
    step = lambda call, batch: call(program, *self.graph, batch, *settings)
    return Pass(name, rows, maker, self._batch_size(rows, maker), step)

  def _batch_size(self, rows: Int[np.ndarray, "N"], maker: Maker) -> int:
    """Returns fewer rows than configured if images are larger than squares."""
    height, width, _ = maker.blank()["image"].shape
    area = height * width / self.square.image_size**2
    size = max(1, int(self._settings.batch_size / area))
    return parallel.divisible(min(size, max(1, len(rows))), self.mesh)


def evenly(rows: Int[np.ndarray, "N"], count: int) -> Int[np.ndarray, "n"]:
  """Returns at most so many of the rows, evenly spread."""
  places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
  return rows[places.astype(int)]


def run(
  passes: list[Pass],
  planner: Planner,
  ledger: Ledger,
  at_once: bool = True,
) -> Iterator[Pass]:
  """Measures what the ledger lacks; yields the pass after each of its batches.

  While one pass is measured, a thread compiles the next. Each shows how many
  of its pictures are done: `at_once`, or only if it takes long.
  """
  unit = "pair" if planner.dataset.multi_label else "picture"
  begun = (
    (one, _begun(one, planner, ledger.done.get(one.name, 0))) for one in passes
  )
  with contextlib.closing(parallel.one_ahead(begun)) as ahead:
    for one, batches in ahead:
      name, total = f"measuring {one.name}", len(one.rows)
      done = ledger.done.get(one.name, 0)
      with showing(name, total, unit, done, at_once) as shown:
        waiting = None
        for batch, found in batches:
          with jax.set_mesh(planner.mesh):
            measured = one.step(_called, batch)
          # Fetched one batch late: the devices compute while the next is made.
          if waiting is not None:
            yield _added(ledger, shown, one, *waiting)
          waiting = measured, batch["row"], found
        if waiting is not None:
          yield _added(ledger, shown, one, *waiting)


def showing(
  name: str,
  total: int,
  unit: str = "picture",
  done: int = 0,
  at_once: bool = True,
) -> contextlib.AbstractContextManager[logs.Progress]:
  """Returns a progress, which begins to show; closed at the end."""
  shown = logs.Progress(
    total,
    done,
    enabled=parallel.is_main(),
    unit=unit,
    name=name,
    at_once=at_once,
  )
  shown.update(done)
  return contextlib.closing(shown)


def _begun(
  one: Pass, planner: Planner, start: int
) -> Iterator[tuple[PairBatch, list]]:
  """Compiles a pass for its first batch; returns the batches, with boxes.

  It runs nothing, so that a thread may do it.
  """
  mesh = planner.mesh
  shared = shares(planner.pairs, one.rows, one.maker, one.batch_size, start)
  batches = (
    (parallel.to_devices(share.batch, mesh), share.boxes) for share in shared
  )
  first = list(itertools.islice(batches, 1))
  with jax.set_mesh(mesh), speaking.doing(f"compiling {one.name}"):
    for batch, _ in first:
      one.step(_compiled, batch)
  return itertools.chain(first, batches)


def _called(program, *args) -> Any:
  return program(*args)


def _compiled(program, *args) -> Any:
  """Compiles a program; returns the shapes of its results.

  When it is called with such arguments, jax finds it.
  """
  lowered = program.lower(*args)
  return jax.tree.map(
    lambda x, sharding: x.update(sharding=sharding),
    lowered.out_info,
    lowered.compile().output_shardings,
  )


def shares(
  pairs: Pairs,
  rows: Sequence[int] | np.ndarray,
  maker: Maker,
  batch_size: int,
  start: int = 0,
) -> Iterator[Share]:
  """Yields this process's share of batches, see `pairs.batches`."""
  process_index, process_count = parallel.process()
  return pair_rows.batches(
    pairs,
    rows,
    maker,
    batch_size,
    start=start,
    process_index=process_index,
    process_count=process_count,
  )


def _added(
  ledger: Ledger,
  shown: logs.Progress,
  one: Pass,
  measured: Measured,
  row,
  boxes,
) -> Pass:
  """Adds a batch's numbers to the ledger, and shows it; returns the pass."""
  columns, totals, rows = parallel.fetch(
    (measured.columns, measured.totals, row)
  )
  if one.on_host is not None:
    # Of its share, whose boxes no other process has.
    index, _ = parallel.process()
    share = slice(index * len(boxes), (index + 1) * len(boxes))
    cams = {k: v[share] for k, v in parallel.fetch(measured.cams).items()}
    totals = totals | parallel.added(one.on_host(cams, boxes))
  ledger.add(one.name, rows, columns, totals)
  shown.update(ledger.done[one.name])
  return one
