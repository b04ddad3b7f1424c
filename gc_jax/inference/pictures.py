"""The story of the explain command: check, load, explain, write.

All faults of files, flags and model are found before a program is compiled.
"""

import argparse
import difflib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float, UInt8

from gc_jax.attribution import METHODS
from gc_jax.data import image_files
from gc_jax.data.sets.folder_files import normalized
from gc_jax.inference import arrays, trained
from gc_jax.inference.trained import LoadedModel
from gc_jax.method import metrics
from gc_jax.report import explanations
from gc_jax.report.explanations import Explanation
from gc_jax.runtime import files
from gc_jax.runtime.messages import listed, number_of, unknown_name_message

_PREDICTED = "predicted"
# How logits become probabilities: of one class a picture, or of several.
_OUTPUTS = {"softmax": scipy.special.softmax, "sigmoid": scipy.special.expit}
_SHOWN_NAMES = 20  # in a message


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
  paths = image_files.find(map(files.as_path, flags.images))
  written_names = explanations.output_names(paths, methods)
  folder = files.as_path(flags.out)
  pairs = (pair for names in written_names for pair in names.values())
  earlier = explanations.open_folder(
    folder, itertools.chain(*pairs), paths, flags.overwrite
  )
  sizes = _sizes(paths)

  loaded = trained.load_model(flags.workdir or flags.checkpoint, flags.arch)
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
  yield from (f"note: {note}" for note in (about_outputs, remark) if note)
  if multiple > 1:
    yield (
      f"note: sides are rounded to multiples of {multiple} pixels for the "
      f"model, as the pictures have more than {flags.max_shapes} shapes; "
      f"{len(set(shapes))} remain. --max_shapes changes that."
    )

  written: list[list[Explanation]] = [[] for _ in paths]
  for rows, indices in _batches(shapes, flags.batch_size):
    images = [image_files.read(paths[i]) for i in indices]
    scaled = [image_files.read(paths[i], shapes[i]) for i in indices]
    logits, cams = _explained(loaded, scaled, rows, target, methods)
    for row, (i, image) in enumerate(zip(indices, images, strict=True)):
      for method, (overlay_name, map_name) in written_names[i].items():
        cam = cams[method][row]
        explanation = Explanation(
          file=str(paths[i]),
          size=image.shape[:2],
          model=loaded.source,
          outputs=outputs,
          model_size=shapes[i],
          method=method,
          **_classes(loaded.class_names, logits[row], target, outputs),
          map_shape=cam.shape,
          map_is_empty=bool(metrics.is_empty(jnp.asarray(cam))),
          overlay=overlay_name,
          map=map_name,
        )
        explanations.write(folder, explanation, image, cam)
        written[i].append(explanation)
        yield _line(folder, explanation)
  in_order = list(itertools.chain(*written))
  index = explanations.write_index(folder, earlier, in_order)
  yield f"wrote {index}: {number_of(len(in_order), 'explanation')}"


def _check_flags(flags: argparse.Namespace, methods: Sequence[str]) -> None:
  if flags.workdir and flags.arch:
    raise ValueError(
      "--arch goes with --checkpoint; a --workdir knows its own."
    )
  for method in methods:
    if method not in METHODS:
      raise ValueError(unknown_name_message("--method", method, METHODS))
  if flags.outputs not in (None, *_OUTPUTS):
    raise ValueError(unknown_name_message("--outputs", flags.outputs, _OUTPUTS))
  for flag, bound in (("batch_size", 1), ("max_shapes", 1), ("size", 0)):
    value = getattr(flags, flag)
    if value is not None and value < bound:
      raise ValueError(f"--{flag} must be at least {bound}; it is {value}.")


def _sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
  """Returns (height, width) of pictures; names those that cannot be decoded."""
  sizes, errors = [], []
  for path in paths:
    try:
      height, width, _ = image_files.read(path).shape
      sizes.append((height, width))
    except ValueError as error:
      errors.append(str(error))
  if errors:
    raise ValueError(listed(errors, between="\n"))
  return sizes


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
    named = class_names.index(asked)
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
  groups = defaultdict(list)
  for i, shape in enumerate(shapes):
    groups[shape].append(i)
  for group in groups.values():
    rows = min(batch_size, len(group))
    for start in range(0, len(group), rows):
      yield rows, group[start : start + rows]


def _explained(
  loaded: LoadedModel,
  images: list[UInt8[np.ndarray, "H W 3"]],
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
