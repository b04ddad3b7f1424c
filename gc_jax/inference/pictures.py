"""The story of the explain command: check, load, explain, write.

All faults of files, flags and model are found before a program is compiled.
"""

import argparse
import collections
import difflib
import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float, UInt8

from gc_jax.attribution import METHODS
from gc_jax.data import image_files
from gc_jax.data.image_files import Picture
from gc_jax.data.sets.folder_files import normalized
from gc_jax.data.sets.imagenet_files import NUM_CLASSES as IMAGENET_CLASSES
from gc_jax.inference import arrays, trained
from gc_jax.inference.trained import LoadedModel
from gc_jax.method import metrics
from gc_jax.report import explanations
from gc_jax.report.explanations import ClassScore, Explanation, Skipped
from gc_jax.runtime import files
from gc_jax.runtime.messages import listed, number_of, unknown_name_message

_PREDICTED = "predicted"
_ON_ERROR = ("fail", "skip")
# How logits become probabilities: of one class a picture, or of several.
_OUTPUTS = {"softmax": scipy.special.softmax, "sigmoid": scipy.special.expit}
_SHOWN_NAMES = 20  # in a message
_SHOWN_FILES = 100
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
  loaded = trained.load_model(
    flags.workdir or flags.checkpoint, flags.arch, flags.class_names
  )
  outputs, about_outputs = _outputs(loaded, flags.outputs)
  shapes, multiple = image_files.model_sizes(
    sizes,
    loaded.image_size if flags.size is None else flags.size,
    flags.max_shapes,
  )
  num_classes = 0
  for height, width in dict.fromkeys(shapes):
    num_classes = arrays.check_fits(loaded.model, height, width)
  target, remark = _target(flags.target, loaded.class_names, num_classes)
  notes = about_outputs, _about_names(loaded, num_classes, flags), remark
  yield from (f"note: {note}" for note in notes if note)
  if multiple > 1:
    yield (
      f"note: sides are rounded to multiples of {multiple} pixels for the "
      f"model, as the pictures have more than {flags.max_shapes} shapes; "
      f"{len(set(shapes))} remain. --max_shapes changes that."
    )

  ids = _ids(loaded.class_names)
  written: list[list[Explanation]] = [[] for _ in readable]
  compiled: dict[tuple[int, int], None] = {}
  for rows, indices in _batches(shapes, flags.batch_size):
    height, width = shapes[indices[0]]
    if (height, width) not in compiled:
      compiled[height, width] = None
      yield (
        f"compiling for {height} by {width} pixels, shape {len(compiled)} of "
        f"{len(set(shapes))}"
      )
    both = [
      image_files.read_twice(readable[i].path, shapes[i]) for i in indices
    ]
    images, scaled = zip(*both, strict=True)
    logits, cams = _explained(loaded, scaled, rows, target, methods)
    for row, (i, image) in enumerate(zip(indices, images, strict=True)):
      path = readable[i].path
      for method, (overlay_name, map_name) in names[path].items():
        cam = cams[method][row]
        explanation = Explanation(
          file=str(path),
          size=image.shape[:2],
          model=loaded.source,
          outputs=outputs,
          model_size=shapes[i],
          method=method,
          **_classes(loaded.class_names, logits[row], target, outputs),
          **_true(loaded.class_names, ids, readable[i]),
          map_shape=cam.shape,
          map_is_empty=bool(metrics.is_empty(jnp.asarray(cam))),
          overlay=overlay_name,
          map=map_name,
        )
        explanations.write(folder, explanation, image, cam)
        written[i].append(explanation)
        yield _line(folder, explanation)
  in_order = list(itertools.chain(*written))
  index = explanations.write_index(folder, earlier, in_order, skipped)
  yield f"wrote {index}: {number_of(len(in_order), 'explanation')}"
  if skipped:
    yield (
      f"skipped {number_of(len(skipped), 'picture')} that cannot be read; "
      f"{folder / explanations.SKIPPED} says why"
    )


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


def _target(
  asked: str, class_names: Sequence[str], num_classes: int
) -> tuple[int, str]:
  """Returns the class to explain (or `PREDICTED`), and a remark or ""."""
  if asked == _PREDICTED:
    return arrays.PREDICTED, ""
  class_names = [normalized(name) for name in class_names]
  asked = normalized(asked)
  number = int(asked) if asked.isdecimal() else None
  if asked in class_names:  # a name wins over an id
    named = arrays.id_of(asked, class_names, "--target")
    remark = (
      f"--target={asked} is taken for the class of that name, which has the id "
      f"{named}."
    )
    return named, "" if number in (None, named) else remark
  if number is not None and number < num_classes:
    return number, ""
  known = f"{_PREDICTED}, or an id in 0..{num_classes - 1}"
  hint = "The model names no classes."
  if class_names and number is not None:
    known, hint = f"{known}, or a name", "Count from 0."
  elif class_names:
    nearest = difflib.get_close_matches(asked, [_PREDICTED, *class_names])
    known += f", or a class: {listed(class_names, _SHOWN_NAMES)}"
    hint = f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
  raise ValueError(f"--target must be {known}; it is {asked!r}. {hint}".strip())


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
  target: int,
  methods: tuple[str, ...],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns logits `[B K]` and each method's raw maps `[B h w]`, B images."""
  count = len(images)
  batch = np.zeros((rows, *images[0].shape), np.uint8)
  batch[:count] = images
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


def _about_names(
  loaded: LoadedModel, num_classes: int, flags: argparse.Namespace
) -> str:
  """Returns a remark on where the class names are from, or ""."""
  if flags.class_names == trained.IMAGENET:
    return (
      f"{loaded.source} does not name its classes; taken for ImageNet's, in "
      "the order of torchvision's checkpoints, as --class_names says."
    )
  if not loaded.class_names and num_classes == IMAGENET_CLASSES:
    return (
      f"{loaded.source} does not name its {num_classes:,} classes. If they are "
      "ImageNet's, in the order of torchvision's checkpoints, "
      "--class_names=imagenet names them."
    )
  if not loaded.class_names:
    return (
      f"{loaded.source} does not name its {num_classes:,} classes; "
      "--class_names=FILE does, a line each, in the order of its outputs."
    )
  return ""


def _ids(class_names: Sequence[str]) -> dict[str, int]:
  """Returns name -> id of the classes whose names no other class has."""
  names = [normalized(name) for name in class_names]
  times = collections.Counter(names)
  return {name: i for i, name in enumerate(names) if times[name] == 1}


def _true(
  class_names: Sequence[str], ids: Mapping[str, int], picture: Picture
) -> dict[str, Any]:
  """Returns the fields of an `Explanation` about the class of its folder."""
  known = (ids.get(normalized(name)) for name in picture.folders)
  true = next((i for i in known if i is not None), None)
  name = None if true is None else class_names[true]
  return {"true": true, "true_name": name}


def _classes(
  class_names: Sequence[str],
  logits: Float[np.ndarray, "K"],
  target: int,
  outputs: str,
) -> dict[str, Any]:
  """Returns the fields of an `Explanation` about target and prediction."""
  probabilities = _OUTPUTS[outputs](logits.astype(np.float64))
  predicted = int(logits.argmax())
  if target == arrays.PREDICTED:
    target = predicted
  fields: dict[str, Any] = {}
  for field, i in (("target", target), ("predicted", predicted)):
    fields[field] = i
    fields[f"{field}_name"] = class_names[i] if class_names else None
    fields[f"{field}_probability"] = float(probabilities[i])
  first = np.argsort(-logits, kind="stable")[:_TOP]
  fields["top"] = tuple(
    ClassScore(
      int(i), class_names[i] if class_names else None, float(probabilities[i])
    )
    for i in first
  )
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
