"""What the files of a folder say of objects: masks, CSV, VOC XML, COCO JSON.

Nothing is held against the pictures here; see `folder_objects`.
"""

import dataclasses
import posixpath
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gc_jax.data.sets import boxes, coco_json, folder_files, tables, voc_xml
from gc_jax.data.sets.folder_layout import Layout


@dataclasses.dataclass(frozen=True)
class Annotation:
  """One object, as its file says it.

  Attributes:
    where: the file and place, for messages.
    picture: as written there, without or with its ending.
    label: name of the class; "" = the only one that the picture shows.
    box: xmin ymin xmax ymax in pixels, the last two exclusive; None: of mask.
    difficult: as VOC marks objects that are hard to see.
    mask: path below the root; "" = none.
    segmentation: COCO's; None: none.
    size: (width, height) that the file gives the picture; None: it does not.
  """

  where: str
  picture: str
  label: str
  box: boxes.Box | None
  difficult: bool = False
  mask: str = ""
  segmentation: Any = None
  size: tuple[float | int, float | int] | None = None


class Problem(NamedTuple):
  """What is wrong, where it stands, and how many annotations it costs."""

  message: str
  num_left_out: int = 1


def has_annotations(layout: Layout) -> bool:
  """Returns whether a file says anything of objects."""
  return any(_files(layout).values())


def _files(layout: Layout) -> dict[str, list[PurePosixPath]]:
  """Returns kind -> paths below the root."""
  of_kind: dict[str, list[PurePosixPath]] = {
    kind: [] for kind in ("mask", "boxes", "xml", "json")
  }
  for name in layout.files:
    kind = folder_files.kind_of(name)
    if kind in of_kind:
      of_kind[kind].append(PurePosixPath(name))
  return of_kind


def read(layout: Layout) -> Iterator[Annotation | Problem]:
  """Yields what all files say: masks before everything else."""
  readers = {
    "mask": _read_mask,
    "boxes": _read_csv,
    "xml": _read_xml,
    "json": _read_json,
  }
  for kind, paths in _files(layout).items():
    for path in paths:
      try:
        yield from readers[kind](layout, path)
      except (ValueError, OSError) as error:
        yield Problem(_named(layout.root / path, error))


def _named(path: Path, error: Exception) -> str:
  """Returns what is wrong with a file, which the error itself may name."""
  message = str(error)
  return message if str(path) in message else f"{path}: {message}"


def _read_mask(layout: Layout, path: PurePosixPath) -> Iterator[Annotation]:
  """`masks/`: STEM.png, or STEM.CLASS.png where several are shown."""
  if path.suffix.lower() != ".png":
    raise ValueError("a mask must be a PNG file; others blur or lose it")
  stem, _ = posixpath.splitext(folder_files.mirrored(str(path)))
  label = ""
  pictures = layout.finder.of_stem(stem)
  if not pictures:
    for name in layout.class_names:
      shorter = folder_files.normalized(stem).removesuffix(f".{name}")
      pictures = layout.finder.of_stem(shorter)
      if shorter != stem and pictures:
        label = name
        break
  if len(pictures) != 1:
    raise ValueError(
      f"it must belong to one picture, called {stem} and an ending; there "
      f"are {len(pictures)}: {', '.join(pictures[:5]) or 'none'}"
    )
  yield Annotation(
    str(layout.root / path), pictures[0], label, None, mask=str(path)
  )


def _read_csv(
  layout: Layout, path: PurePosixPath
) -> Iterator[Annotation | Problem]:
  file = layout.root / path
  columns = ("image", "label", *voc_xml.CORNERS)
  fractions = boxes.Fractions()
  found: list[Annotation | Problem] = []
  for line, row in tables.read(file, columns, ("difficult",)):
    where = f"{file}, line {line}"
    if isinstance(row, tables.Problem):
      found.append(Problem(str(row)))
      continue
    try:
      box = tuple(tables.number(row[corner]) for corner in voc_xml.CORNERS)
      difficult = tables.boolean(row["difficult"])
    except ValueError as error:
      found.append(Problem(f"{where}: {error}"))
      continue
    fractions.add(f"line {line}", box, box)
    found.append(Annotation(where, row["image"], row["label"], box, difficult))
  yield from _in_pixels(found, fractions, file)


def _in_pixels(
  found: list[Annotation | Problem], fractions: boxes.Fractions, file: Path
) -> list[Annotation | Problem]:
  """Returns what was found, without its boxes where they are fractions."""
  if not (wrong := str(fractions)):
    return found
  others = [item for item in found if isinstance(item, Problem)]
  return [Problem(f"{file}: {wrong}", len(found) - len(others)), *others]


def _read_xml(
  layout: Layout, path: PurePosixPath
) -> Iterator[Annotation | Problem]:
  """VOC: corners are pixels, counted from 1, both included."""
  file = layout.root / path
  content = voc_xml.read(file.read_bytes())
  picture = _picture_of(layout, path, content.filename)
  fractions = boxes.Fractions()
  found: list[Annotation | Problem] = [
    Problem(f"{file}, {problem}") for problem in content.problems
  ]
  for item in content.objects:
    xmin, ymin, xmax, ymax = item.corners
    box = xmin - 1, ymin - 1, xmax, ymax
    fractions.add(item.where, item.corners, box)
    found.append(
      Annotation(
        f"{file}, {item.where}",
        picture,
        item.name,
        box,
        item.difficult,
        size=content.size,
      )
    )
  yield from _in_pixels(found, fractions, file)


def _picture_of(layout: Layout, path: PurePosixPath, written: str) -> str:
  """Returns the picture of an XML file: beside it, or where it mirrors it.

  The file's own name says which; its ending is what is written inside, where
  there is such a picture.
  """
  stem, _ = posixpath.splitext(folder_files.mirrored(str(path)))
  suffix = PurePosixPath(written.replace("\\", "/")).suffix.casefold()
  fitting = [
    name
    for name in layout.finder.of_stem(stem)
    if PurePosixPath(name).suffix.casefold() == suffix
  ]
  return fitting[0] if len(fitting) == 1 else stem


def _read_json(
  layout: Layout, path: PurePosixPath
) -> Iterator[Annotation | Problem]:
  file = layout.root / path
  content = coco_json.read(file.read_bytes(), str(file))
  # They cost annotations one by one, or together.
  for i, problem in enumerate(content.problems):
    yield Problem(problem, 0 if i else content.num_left_out)
  for item in content.annotations:
    yield Annotation(
      f"{file}, {item.where}",
      item.image.file_name,
      item.label,
      item.box,
      segmentation=item.segmentation,
      size=item.image.size,
    )
