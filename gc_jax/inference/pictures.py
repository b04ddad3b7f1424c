"""The story of the explain command: check, load, explain, write.

All faults of files, flags and model are found before a program is compiled.
"""

import argparse
import collections
import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float, UInt8

from gc_jax.attribution import METHODS
from gc_jax.data import image_files
from gc_jax.data.image_files import Picture
from gc_jax.inference import arrays, classes, trained
from gc_jax.inference.trained import LoadedModel
from gc_jax.method import metrics
from gc_jax.report import explanations
from gc_jax.report.explanations import ClassScore, Explanation, Skipped
from gc_jax.runtime import files, speaking
from gc_jax.runtime.messages import listed, number_of, unknown_name_message

_ON_ERROR = ("fail", "skip")
# How logits become probabilities: of one class a picture, or of several.
_OUTPUTS = {"softmax": scipy.special.softmax, "sigmoid": scipy.special.expit}
_SHOWN_FILES = 100  # in a message
_TOP = 3  # classes named for each picture
_TELL_SECS = 5.0  # between lines about pictures that are only checked


def explain_files(flags: argparse.Namespace) -> Iterator[str]:
  """Explains picture files; yields a line for each thing done.

  Args:
    flags: of `python -m gc_jax.explain`.

  Raises:
    ValueError: raised before anything is compiled or written, except for
      logits that are not finite.
    CheckpointError: the run has no readable checkpoint.
    OSError: a file cannot be written.
  """
  methods = tuple(dict.fromkeys(flags.method.split(",")))
  _check_flags(flags, methods)
  found, left_out = image_files.find(
    map(files.as_path, flags.images), skip=explanations.results()
  )
  yield f"found {number_of(len(found), 'picture')}"
  yield from (
    f"note: {path} is left out, as data sets have such folders beside their "
    "pictures. If it holds pictures of yours, name it."
    for path in left_out
  )
  paths = [picture.path for picture in found]
  names = explanations.output_names(paths, methods)
  folder = files.as_path(flags.out)
  pairs = (pair for by_method in names for pair in by_method.values())
  earlier = explanations.open_folder(
    folder, itertools.chain(*pairs), paths, flags.overwrite
  )
  names = dict(zip(paths, names, strict=True))
  readable, sizes, skipped = yield from _checked(found, flags.on_error)

  yield "reading the model"
  with speaking.doing("reading the model"):
    loaded = trained.load_model(
      flags.workdir or flags.checkpoint, flags.arch, flags.class_names
    )
  outputs, about_outputs = _outputs(loaded, flags.outputs)
  shapes, multiple = image_files.model_sizes(
    sizes,
    loaded.image_size if flags.size is None else flags.size,
    flags.max_shapes,
    loaded.model.unit_px,
  )
  num_classes = 0
  for height, width in dict.fromkeys(shapes):
    num_classes = arrays.check_fits(loaded.model, height, width)
  target, remark = classes.target_of(
    flags.target, loaded.class_names, num_classes
  )
  about_names = classes.about_names(
    loaded.source, loaded.class_names, num_classes, flags.class_names
  )
  notes = about_outputs, about_names, remark
  yield from (f"note: {note}" for note in notes if note)
  if multiple > loaded.model.unit_px:
    yield (
      f"note: sides are rounded to multiples of {multiple} pixels for the "
      f"model, as the pictures have more than {flags.max_shapes} shapes; "
      f"{len(set(shapes))} remain. --max_shapes changes that."
    )

  class_of = classes.by_folder(loaded.class_names)
  written: list[list[Explanation]] = [[] for _ in readable]
  compiled: dict[tuple[int, int], None] = {}
  with _indexed(folder, earlier, written, skipped):
    for rows, indices in _batches(shapes, flags.batch_size):
      height, width = shapes[indices[0]]
      if (height, width) not in compiled:
        compiled[height, width] = None
        task = (
          f"compiling for {height} by {width} pixels, shape {len(compiled)} of "
          f"{len(set(shapes))}"
        )
        yield task
      both = [
        image_files.read_twice(readable[i].path, shapes[i]) for i in indices
      ]
      images, scaled = zip(*both, strict=True)
      with speaking.doing(task):
        logits, cams = _explained(loaded, scaled, rows, target, methods)
      task = "explaining"
      for row, (i, image) in enumerate(zip(indices, images, strict=True)):
        path = readable[i].path
        true = class_of(readable[i].folders)
        scores = _scores(loaded.class_names, logits[row], target, true, outputs)
        page_image = explanations.write_image(folder, path.stem, image)
        for method, (overlay_name, map_name) in names[path].items():
          cam = cams[method][row]
          explanation = Explanation(
            file=str(path),
            size=image.shape[:2],
            model=loaded.source,
            outputs=outputs,
            model_size=shapes[i],
            method=method,
            **scores,
            map_shape=cam.shape,
            map_is_empty=bool(metrics.is_empty(jnp.asarray(cam))),
            overlay=overlay_name,
            map=map_name,
            page_image=page_image,
          )
          explanation = explanations.write(folder, explanation, image, cam)
          written[i].append(explanation)
          yield _line(folder, explanation)
  count = sum(map(len, written))
  index = folder / explanations.FILENAME
  yield f"wrote {index}: {number_of(count, 'explanation')}"
  if skipped:
    yield (
      f"skipped {number_of(len(skipped), 'picture')} that cannot be read; "
      f"{folder / explanations.SKIPPED} says why"
    )
  yield f"wrote {folder / explanations.PAGE}: open it in a browser"


@contextlib.contextmanager
def _indexed(
  folder: files.AnyPath,
  earlier: Sequence[Explanation],
  written: Sequence[Sequence[Explanation]],
  skipped: Sequence[Skipped],
) -> Iterator[None]:
  """Writes explanations.json and the page at the end, whatever ends it.

  Without it a later run would take the overlays for pictures to explain.
  """
  try:
    yield
  finally:
    if done := list(itertools.chain(*written)):
      explanations.write_index(folder, earlier, done, skipped)


def _check_flags(flags: argparse.Namespace, methods: Sequence[str]) -> None:
  if flags.workdir and flags.arch:
    raise ValueError(
      "--arch goes with --checkpoint; a --workdir knows its own."
    )
  for method in methods:
    if method not in METHODS:
      raise ValueError(unknown_name_message("--method", method, METHODS))
  if flags.on_error not in _ON_ERROR:
    raise ValueError(
      unknown_name_message("--on_error", flags.on_error, _ON_ERROR)
    )
  if flags.outputs not in (None, *_OUTPUTS):
    raise ValueError(unknown_name_message("--outputs", flags.outputs, _OUTPUTS))
  for flag, bound in (("batch_size", 1), ("max_shapes", 1), ("size", 0)):
    value = getattr(flags, flag)
    if value is not None and value < bound:
      raise ValueError(f"--{flag} must be at least {bound}; it is {value}.")


def _checked(
  found: Sequence[Picture], on_error: str
) -> Generator[
  str, None, tuple[list[Picture], list[tuple[int, int]], list[Skipped]]
]:
  """Returns what can be read, each (height, width), and what cannot.

  Yields a line now and then.

  Raises:
    ValueError: names all that cannot be read, unless they may be skipped.
  """
  readable, sizes, skipped = [], [], []
  told = time.monotonic()
  for count, picture in enumerate(found):
    if time.monotonic() - told > _TELL_SECS:
      told = time.monotonic()
      yield f"checked {count:,} of {number_of(len(found), 'picture')}"
    try:
      sizes.append(image_files.check(picture.path))
      readable.append(picture)
    except ValueError as error:
      skipped.append(Skipped(str(picture.path), str(error)))
  errors = [each.reason for each in skipped]
  if errors and (on_error == "fail" or not readable):
    hint = "Or leave out what cannot be read by --on_error=skip."
    errors = [listed(errors, _SHOWN_FILES, "\n"), *([hint] * bool(readable))]
    raise ValueError("\n".join(errors))
  yield from (f"skipped: {error}" for error in errors)
  return readable, sizes, skipped


def _batches(
  shapes: Sequence[tuple[int, int]], batch_size: int
) -> Iterator[tuple[int, list[int]]]:
  """Yields (rows, positions of their pictures) of batches of one shape.

  All batches of a shape have the same rows, so that it is compiled once; the
  last may have fewer pictures.
  """
  groups = collections.defaultdict(list)
  for i, shape in enumerate(shapes):
    groups[shape].append(i)
  for group in groups.values():
    rows = min(batch_size, len(group))
    for start in range(0, len(group), rows):
      yield rows, group[start : start + rows]


def _explained(
  loaded: LoadedModel,
  images: Sequence[UInt8[np.ndarray, "H W 3"]],
  rows: int,
  target: int | None,
  methods: tuple[str, ...],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns logits `[B K]` and each method's raw maps `[B h w]`, B images."""
  count = len(images)
  batch = np.zeros((rows, *images[0].shape), np.uint8)
  batch[:count] = images
  target = arrays.PREDICTED if target is None else target
  targets = np.full((rows, 1), target, np.int32)
  logits, cams = arrays.run(loaded.model, batch, targets, methods)
  logits = np.asarray(logits)[:count]
  if not np.isfinite(logits).all():
    raise ValueError(
      f"The logits of {loaded.source} must be finite; they are not, so its "
      "weights are not finite or far too large. Use another checkpoint."
    )
  return logits, {k: np.asarray(v)[:count, 0] for k, v in cams.items()}


def _outputs(loaded: LoadedModel, asked: str | None) -> tuple[str, str]:
  """Returns a key of `_OUTPUTS`, and a remark or ""."""
  if loaded.multi_label is None:
    return asked or "softmax", "" if asked else (
      f"{loaded.source} does not say whether its classes exclude each other; "
      "taken to, by a softmax. If a picture may show several, give "
      "--outputs=sigmoid."
    )
  said = "sigmoid" if loaded.multi_label else "softmax"
  if asked not in (None, said):
    raise ValueError(
      f"--outputs must be the model's own; {loaded.source} says {said!r}, and "
      f"{asked!r} was asked for. Leave it out."
    )
  return said, ""


def _scores(
  class_names: Sequence[str],
  logits: Float[np.ndarray, "K"],
  target: int | None,
  true: int | None,
  outputs: str,
) -> dict[str, Any]:
  """Returns the fields of an `Explanation` about classes."""
  probabilities = _OUTPUTS[outputs](logits.astype(np.float64))
  scores = [
    ClassScore(i, class_names[i] if class_names else None, float(probability))
    for i, probability in enumerate(probabilities)
  ]
  highest = np.argsort(-logits, kind="stable")[:_TOP]
  predicted = int(highest[0])
  fields: dict[str, Any] = {"top": tuple(scores[i] for i in highest)}
  for field, i in (
    ("target", predicted if target is None else target),
    ("predicted", predicted),
    ("true", true),
  ):
    score = ClassScore(None, None, None) if i is None else scores[i]
    fields[field] = score.id
    fields[f"{field}_name"] = score.name
    fields[f"{field}_probability"] = score.probability
  return fields


def _line(out: files.AnyPath, e: Explanation) -> str:
  """Says what was written of an explanation, and for which class."""
  name = lambda i, name: f"class {i}" if name is None else f"{name!r}"
  target = name(e.target, e.target_name)
  line = (
    f"wrote {out / e.overlay} and .npy: {target} {e.target_probability:.1%}"
  )
  if e.predicted != e.target:
    predicted = name(e.predicted, e.predicted_name)
    line += f" (predicted: {predicted} {e.predicted_probability:.1%})"
  return line + (", an empty map" if e.map_is_empty else "")
