"""Reads the official files of COCO 2014: zips, or what they unpack to."""

import collections
import contextlib
import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping

from gc_jax.data.sets import coco_json, segmentation
from gc_jax.runtime.messages import listed

FOLDERS = {"train": "train2014", "validation": "val2014"}
ANNOTATIONS_ZIP = "annotations_trainval2014.zip"
# As counted.
PARTS_LEFT_OUT = "polygons and run lengths left out: they cover no pixel"

_WHERE = (
  "The files come from https://cocodataset.org/#download (2014 Train images, "
  "2014 Val images, 2014 Train/Val annotations); set --config.data.path to the "
  "folder that holds them, zipped or unpacked."
)


@dataclasses.dataclass(frozen=True)
class Annotations:
  """What instances_*2014.json says of one split.

  Attributes:
    file: where it was read.
    category_ids: COCO's own, ascending: 80 of the numbers 1..90. The position
      is the class id.
    names: of the categories, in the same order.
    images: in COCO's order.
    of_image: image id to its annotations, in COCO's order; of their
      segmentations what covers pixels, where the size of the image is known.
  """

  file: str
  category_ids: tuple[int, ...]
  names: tuple[str, ...]
  images: list[coco_json.Image]
  of_image: Mapping[int, list[coco_json.Annotation]]


def sources(path: pathlib.Path, split: str) -> dict[str, int]:
  """Returns name and size of the files of a split that are in a folder.

  Pictures that are unpacked are not counted one by one.
  """
  names = (
    f"{FOLDERS[split]}.zip",
    ANNOTATIONS_ZIP,
    _json_name(split),
  )
  return {
    name: (path / name).stat().st_size
    for name in names
    if (path / name).is_file()
  }


def _json_name(split: str) -> str:
  return f"annotations/instances_{FOLDERS[split]}.json"


def _missing(path: pathlib.Path, what: str) -> ValueError:
  there = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
  listed = ", ".join(there[:8]) if there else "nothing"
  return ValueError(
    f"--config.data.path={str(path)!r} must hold {what}; it holds {listed}. "
    f"{_WHERE}"
  )


def _damaged(file: pathlib.Path | str, what: str) -> ValueError:
  return ValueError(
    f"{file} must be the whole official file and is damaged or cut short: "
    f"{what}. Fetch it again. {_WHERE}"
  )


@contextlib.contextmanager
def _opened_zip(file: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  try:
    with zipfile.ZipFile(file) as archive:
      yield archive
  # Its members may be damaged, encrypted, or compressed as Python cannot.
  except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
    raise _damaged(file, str(error)) from error


def read_annotations(
  path: pathlib.Path, split: str, counts: collections.Counter[str]
) -> Annotations:
  """Reads and checks the annotations of a split; takes about 3 GB for a while.

  Args:
    path: the folder of the official files.
    split: of `FOLDERS`.
    counts: of polygons and run lengths left out; added to.

  Raises:
    ValueError: if the file is missing, damaged, or an entry cannot be used;
      names those.
  """
  name = _json_name(split)
  if (path / name).is_file():
    file, data = str(path / name), (path / name).read_bytes()
  elif (path / ANNOTATIONS_ZIP).is_file():
    file = f"{path / ANNOTATIONS_ZIP}/{name}"
    with _opened_zip(path / ANNOTATIONS_ZIP) as archive:
      if name not in archive.namelist():
        raise _damaged(path / ANNOTATIONS_ZIP, f"it has no {name}")
      data = archive.read(name)
  else:
    raise _missing(path, f"{ANNOTATIONS_ZIP} or {name}")
  content = coco_json.read(data, file)
  annotations, problems = _with_clean_segmentations(content, counts)
  problems = content.problems + problems
  for what, found in (
    ("image", content.images),
    ("category", content.categories),
    ("annotation", content.annotations),
  ):
    if not (found or problems):
      problems.append(f"{file} must have one {what} or more, and has none")
  if problems:
    raise ValueError(
      f"The annotations must be whole and agree; {len(problems):,} entries do "
      "not:\n  "
      + listed(problems, between="\n  ")
      + f"\nCorrect them, or take the official file. {_WHERE}"
    )
  of_image = collections.defaultdict(list)
  for annotation in annotations:
    of_image[annotation.image.id].append(annotation)
  ids = sorted(content.categories)
  return Annotations(
    file=file,
    category_ids=tuple(ids),
    names=tuple(content.categories[i] for i in ids),
    images=content.images,
    of_image=dict(of_image),
  )


def _with_clean_segmentations(
  content: coco_json.Content, counts: collections.Counter[str]
) -> tuple[list[coco_json.Annotation], list[str]]:
  """Returns the annotations, and what is wrong with segmentations."""
  annotations, problems = [], []
  for annotation in content.annotations:
    if annotation.image.size is not None:
      try:
        cleaned, num_left_out = segmentation.clean(
          annotation.segmentation, annotation.image.size
        )
      except ValueError as error:
        problems.append(f"{content.file}, {annotation.where}: {error}")
        continue
      if num_left_out:
        counts[PARTS_LEFT_OUT] += num_left_out
      annotation = dataclasses.replace(annotation, segmentation=cleaned)
    annotations.append(annotation)
  return annotations, problems


def picture_reader(
  path: pathlib.Path, split: str, annotations: Annotations
) -> Callable[[list[coco_json.Image]], Iterator[tuple[coco_json.Image, bytes]]]:
  """Returns a function that yields (image, encoded bytes) of some images.

  Raises:
    ValueError: if pictures that the annotations name are not there.
  """
  folder, name = path / FOLDERS[split], FOLDERS[split]
  wanted = {image.file_name for image in annotations.images}
  if folder.is_dir():
    there = {entry.name for entry in folder.iterdir()}
    where: pathlib.Path = folder
  elif (where := path / f"{name}.zip").is_file():
    with _opened_zip(where) as archive:
      there = {member.removeprefix(f"{name}/") for member in archive.namelist()}
  else:
    raise _missing(path, f"{name}.zip or {name}/")
  absent = sorted(wanted - there)
  if absent:
    raise _damaged(
      where,
      f"{len(absent):,} of {len(wanted):,} pictures that {annotations.file} "
      f"names are missing, such as {absent[0]}",
    )

  def read(images):
    if folder.is_dir():
      for image in images:
        yield image, (folder / image.file_name).read_bytes()
      return
    with _opened_zip(where) as archive:
      for image in images:
        yield image, archive.read(f"{name}/{image.file_name}")

  return read
