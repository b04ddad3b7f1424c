"""The story of an explain command: check, load, explain, write.

Everything that can be wrong with files, flags and model is found before the
first program is compiled.
"""

import difflib
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
from gc_jax.runtime.messages import listed, unknown_name_message

MAX_SHAPES = 8
_PREDICTED = "predicted"
# How logits become probabilities: of one class a picture, or of several.
_OUTPUTS = {"softmax": scipy.special.softmax, "sigmoid": scipy.special.expit}
_SHOWN_NAMES = 20  # in a message


def explain_files(
  names: Sequence[str],
  *,
  model: str,
  arch: str | None = None,
  outputs: str | None = None,
  methods: Sequence[str] = ("gradcam_elementwise",),
  target: str = _PREDICTED,
  out: str,
  size: int | None = None,
  max_shapes: int = MAX_SHAPES,
  batch_size: int = 8,
  overwrite: bool = False,
) -> Iterator[str]:
  """Explains picture files, and yields a line for whatever it did.

  Args:
    names: picture files, and folders of them.
    model: a run's workdir, or a PyTorch checkpoint.
    arch: the architecture in a PyTorch checkpoint.
    outputs: "softmax" where a picture shows one class, "sigmoid" where it may
      show several; None for what the file says, softmax where it does not.
    methods: keys of `METHODS`.
    target: the class to explain: "predicted", a class's name, or its id.
    out: folder to write to.
    size: pixels of the shorter side at which the model gets a picture; 0 for
      the picture's own, None for what the model was trained on.
    max_shapes: as in `image_files.model_sizes`.
    batch_size: pictures of one shape that are explained at once.
    overwrite: whether explanations of the same name may be replaced.

  Raises:
    ValueError: says what must hold, what came, what to do; before anything is
      compiled or written, except for logits that are not finite.
    CheckpointError: the run has no readable checkpoint.
    OSError: a file cannot be written.
  """
  methods = tuple(dict.fromkeys(methods))
  for method in methods:
    if method not in METHODS:
      raise ValueError(unknown_name_message("--method", method, METHODS))
  if outputs not in (None, *_OUTPUTS):
    raise ValueError(unknown_name_message("--outputs", outputs, _OUTPUTS))
  _at_least("--batch_size", batch_size, 1)
  _at_least("--max_shapes", max_shapes, 1)
  _at_least("--size", 0 if size is None else size, 0)
  paths = image_files.find(map(files.as_path, names))
  written_names = explanations.output_names(paths, methods)
  folder = files.as_path(out)
  earlier = explanations.open_folder(
    folder,
    [
      name
      for by_method in written_names
      for pair in by_method.values()
      for name in pair
    ],
    paths,
    overwrite,
  )
  sizes = _sizes(paths)

  loaded = trained.load_model(model, arch)
  outputs, about_outputs = _outputs(loaded, outputs)
  shapes, multiple = image_files.model_sizes(
    sizes, loaded.image_size if size is None else size, max_shapes
  )
  num_classes = 0
  for height, width in dict.fromkeys(shapes):
    num_classes = arrays.check_fits(loaded.model, height, width)
  target_id, remark = _target_id(target, loaded.class_names, num_classes)
  for note in filter(None, (about_outputs, remark)):
    yield f"note: {note}"
  if multiple > 1:
    yield (
      f"note: sides are rounded to multiples of {multiple} pixels for the "
      f"model, as the pictures have more than {max_shapes} shapes; "
      f"{len(set(shapes))} remain. --max_shapes changes that."
    )

  written: dict[int, list[Explanation]] = {}
  for rows, indices in _batches(shapes, batch_size):
    images = [image_files.read(paths[i]) for i in indices]
    scaled = [image_files.read(paths[i], shapes[i]) for i in indices]
    logits, cams = _explained(loaded, scaled, rows, target_id, methods)
    for row, (i, image) in enumerate(zip(indices, images, strict=True)):
      written[i] = []
      for method, (overlay_name, map_name) in written_names[i].items():
        cam = cams[method][row]
        explanation = Explanation(
          file=str(paths[i]),
          size=image.shape[:2],
          model=loaded.source,
          outputs=outputs,
          model_size=shapes[i],
          method=method,
          **_classes(loaded.class_names, logits[row], target_id, outputs),
          map_shape=cam.shape,
          map_is_empty=bool(metrics.is_empty(jnp.asarray(cam))),
          overlay=overlay_name,
          map=map_name,
        )
        explanations.write(folder, explanation, image, cam)
        written[i].append(explanation)
        yield _line(folder, explanation)
  in_order = [e for i in range(len(paths)) for e in written[i]]
  index = explanations.write_index(folder, earlier, in_order)
  yield f"wrote {index}: {len(in_order)} explanations"


def _sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
  """Returns (height, width) of every picture, each decoded to its end.

  Raises:
    ValueError: some cannot be; they are named.
  """
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


def _target_id(
  target: str, class_names: Sequence[str], num_classes: int
) -> tuple[int, str]:
  """Returns the class to explain (or `PREDICTED`), and a remark or "".

  A name wins over an id: every class has a name to be called by.
  """
  if target == _PREDICTED:
    return arrays.PREDICTED, ""
  class_names = [normalized(name) for name in class_names]
  target = normalized(target)
  number = int(target) if target.isdecimal() else None
  if target in class_names:
    named = class_names.index(target)
    if number in (None, named):
      return named, ""
    return named, (
      f"--target={target} is taken for the class of that name, which has the "
      f"id {named}."
    )
  if number is not None and number < num_classes:
    return number, ""
  known = f"{_PREDICTED}, or an id in 0..{num_classes - 1}"
  if number is not None or not class_names:
    raise ValueError(
      f"--target must be {known}{', or a name' if class_names else ''}; it is "
      f"{target!r}. "
      + ("Count from 0." if class_names else "The model names no classes.")
    )
  nearest = difflib.get_close_matches(target, [_PREDICTED, *class_names])
  hint = ", ".join(map(repr, nearest))
  shown = ", ".join(class_names[:_SHOWN_NAMES])
  more = ", ..." if len(class_names) > _SHOWN_NAMES else ""
  raise ValueError(
    f"--target must be {known}, or a class: {shown}{more}; it is {target!r}."
    + (f" Did you mean {hint}?" if nearest else "")
  )


def _batches(
  shapes: Sequence[tuple[int, int]], batch_size: int
) -> Iterator[tuple[int, list[int]]]:
  """Yields batches of one shape: (rows, positions of at most so many).

  All batches of a shape have as many rows, so that it is compiled once.
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
  target_id: int,
  methods: tuple[str, ...],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns logits `[B K]` and each method's raw maps `[B h w]`, B images.

  Args:
    loaded: the model.
    images: as the model gets them.
    rows: of the batch; those without an image are black.
    target_id: a class, or `PREDICTED`.
    methods: keys of `METHODS`.

  Raises:
    ValueError: a logit is not finite.
  """
  batch = np.zeros((rows, *images[0].shape), np.uint8)
  batch[: len(images)] = images
  targets = np.full((rows, 1), target_id, np.int32)
  logits, cams = arrays.run(loaded.model, batch, targets, methods)
  logits = np.asarray(logits)[: len(images)]
  if not np.isfinite(logits).all():
    raise ValueError(
      f"The logits of {loaded.source} must be finite; they are not, which "
      "weights that are not finite, or far too large, lead to. Use another "
      "checkpoint."
    )
  return logits, {k: np.asarray(v)[: len(images), 0] for k, v in cams.items()}


def _outputs(loaded: LoadedModel, asked: str | None) -> tuple[str, str]:
  """Returns what makes probabilities of logits, and a remark or "".

  Raises:
    ValueError: the user says other than the model's file.
  """
  if loaded.multi_label is None:
    return asked or "softmax", "" if asked else (
      f"{loaded.source} does not say whether its classes exclude each other; "
      "taken to, by a softmax. Where a picture may show several, give "
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
  target_id: int,
  outputs: str,
) -> dict[str, Any]:
  """Returns what an `Explanation` says of the target and the prediction."""
  logits = logits.astype(np.float64)
  probabilities = _OUTPUTS[outputs](logits)
  predicted = int(logits.argmax())
  ids = {
    "target": predicted if target_id == arrays.PREDICTED else target_id,
    "predicted": predicted,
  }
  fields: dict[str, Any] = {}
  for field, i in ids.items():
    fields[field] = i
    fields[f"{field}_name"] = class_names[i] if class_names else None
    fields[f"{field}_probability"] = float(probabilities[i])
  return fields


def _line(out: files.AnyPath, explanation: Explanation) -> str:
  """Returns what a person wants to know of an explanation that was written."""
  e = explanation
  name = lambda i, name: f"class {i}" if name is None else f"{name!r}"
  target = name(e.target, e.target_name)
  line = (
    f"wrote {out / e.overlay} and .npy: {target} {e.target_probability:.1%}"
  )
  if e.predicted != e.target:
    predicted = name(e.predicted, e.predicted_name)
    line += f" (predicted: {predicted} {e.predicted_probability:.1%})"
  return line + (", an empty map" if e.map_is_empty else "")


def _at_least(flag: str, value: int, bound: int) -> None:
  if value < bound:
    raise ValueError(f"{flag} must be at least {bound}; it is {value}.")
