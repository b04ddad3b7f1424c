"""The classes of a model as people name them: in flags, files and folders."""

import collections
import difflib
import functools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from gc_jax.runtime import files
from gc_jax.runtime.messages import listed, unknown_name_message

IMAGENET = "imagenet"  # as `class_names`: those of ILSVRC2012
_NUM_IMAGENET = 1_000
_WNID = re.compile(r"n\d{8}")
_PREDICTED = "predicted"
_SHOWN_NAMES = 20  # in a message


def ids_of(
  asked: Shaped[np.ndarray, "*P"], names: Sequence[str], what: str = "targets"
) -> Int[np.ndarray, "*P"]:
  """Returns the position of each name among a model's classes."""
  if not names:
    raise ValueError(
      f"{what} must be ids for a model that names no classes; "
      f"{str(asked.flat[0])!r} is a name. Give ids from 0, or give load the "
      "names: class_names=..."
    )
  ids = [id_of(str(name), names, what) for name in asked.flat]
  return np.array(ids, np.int32).reshape(asked.shape)


def id_of(name: str, names: Sequence[str], what: str) -> int:
  """Returns the position of a name among a model's classes, at least one.

  Unicode forms do not count.

  Raises:
    ValueError: no class is called so, or several are; `what` asked for it.
  """
  known = [_normalized(each) for each in names]
  name = _normalized(name)
  if name not in known:
    raise ValueError(unknown_name_message(what, name, names))
  if known.count(name) > 1:
    ids = [i for i, each in enumerate(known) if each == name]
    raise ValueError(
      f"{what} must name one class; {len(ids)} are called {name!r}. Give one "
      f"of their ids: {', '.join(map(str, ids))}."
    )
  return known.index(name)


def read_names(given: str | Path | Sequence[str]) -> tuple[str, ...]:
  """Returns the class names that `load` is given."""
  if not isinstance(given, str | os.PathLike):
    return tuple(given)
  if given == IMAGENET:
    # Here, as it takes a second that others need not wait for.
    from gc_jax.data.sets.imagenet_files import published_names

    return published_names()
  path = files.as_path(given)
  try:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
      names = json.loads(text)
      if not isinstance(names, list):
        raise ValueError("it is no list")
    else:
      names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(isinstance(name, str) and name for name in names):
      raise ValueError("not each is a name")
  except (OSError, ValueError) as error:
    raise ValueError(
      f"class_names must be {IMAGENET!r}, or a file with a name in each line "
      f"(.json: a list of names), in the order of the model's outputs; {path} "
      f"cannot be read so: {error}. Check it."
    ) from error
  return tuple(names)


def target_of(
  asked: str, class_names: Sequence[str], num_classes: int
) -> tuple[int | None, str]:
  """Returns the class to explain (None: the predicted), and a remark or ""."""
  if asked == _PREDICTED:
    return None, ""
  class_names = list(map(_normalized, class_names))
  asked = _normalized(asked)
  number = int(asked) if asked.isdecimal() else None
  if asked in class_names:  # a name wins over an id
    named = id_of(asked, class_names, "--target")
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


def about_names(
  source: str, class_names: Sequence[str], num_classes: int, asked: str | None
) -> str:
  """Returns a remark on where the class names of a model are from, or ""."""
  if asked == IMAGENET:
    return (
      f"the classes of {source} are called by ImageNet's names, in the order "
      "of torchvision's checkpoints, as --class_names says."
    )
  if not class_names and num_classes == _NUM_IMAGENET:
    return (
      f"{source} does not name its {num_classes:,} classes. If they are "
      "ImageNet's, in the order of torchvision's checkpoints, "
      "--class_names=imagenet names them."
    )
  if not class_names:
    return (
      f"{source} does not name its {num_classes:,} classes; "
      "--class_names=FILE does, a line each, in the order of its outputs."
    )
  return ""


def by_folder(
  class_names: Sequence[str],
) -> Callable[[Iterable[str]], int | None]:
  """Returns a function that knows a class by the names of folders.

  The first that one class alone is called counts; ImageNet's classes are also
  known by their wnids, "n01440764".
  """
  names = list(map(_normalized, class_names))
  times = collections.Counter(names)
  ids = {name: i for i, name in enumerate(names) if times[name] == 1}

  @functools.cache
  def wnids() -> dict[str, int]:
    if len(class_names) != _NUM_IMAGENET:
      return {}
    from gc_jax.data.sets import imagenet_files

    if tuple(class_names) != imagenet_files.published_names():
      return {}
    return {w: i for i, w in enumerate(imagenet_files.published_wnids())}

  def class_of(folders: Iterable[str]) -> int | None:
    for folder in map(_normalized, folders):
      known = wnids() if _WNID.fullmatch(folder) else ids
      if folder in known:
        return known[folder]
    return None

  return class_of


def _normalized(name: str) -> str:
  """Returns a name in the Unicode form in which names are compared."""
  return unicodedata.normalize("NFC", name)
