"""Reads the official files of COCO 2014: zips, or what they unpack to."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

FOLDERS = {"train": "train2014", "validation": "val2014"}
ANNOTATIONS_ZIP = "annotations_trainval2014.zip"

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
    images: COCO's entries, in its order: `id`, `file_name`, `width`, `height`.
    of_image: image id to its annotations, in COCO's order.
  """

  file: str
  category_ids: tuple[int, ...]
  names: tuple[str, ...]
  images: list[dict[str, Any]]
  of_image: Mapping[int, list[dict[str, Any]]]


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
  except (zipfile.BadZipFile, EOFError) as error:
    raise _damaged(file, str(error)) from error


def read_annotations(path: pathlib.Path, split: str) -> Annotations:
  """Reads and checks the annotations of a split; takes about 2 GB for a while.

  Raises:
    ValueError: if the file is missing, damaged, or contradicts itself.
  """
  name = _json_name(split)
  if (path / name).is_file():
    file, text = str(path / name), (path / name).read_bytes()
  elif (path / ANNOTATIONS_ZIP).is_file():
    file = f"{path / ANNOTATIONS_ZIP}/{name}"
    with _opened_zip(path / ANNOTATIONS_ZIP) as archive:
      if name not in archive.namelist():
        raise _damaged(path / ANNOTATIONS_ZIP, f"it has no {name}")
      text = archive.read(name)
  else:
    raise _missing(path, f"{ANNOTATIONS_ZIP} or {name}")
  try:
    found = json.loads(text)
    categories = sorted(found["categories"], key=lambda c: c["id"])
    images, annotations = found["images"], found["annotations"]
    _check(file, categories, images, annotations)
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise _damaged(file, f"reading it ends with {error!r}") from error
  of_image = collections.defaultdict(list)
  for annotation in annotations:
    of_image[annotation["image_id"]].append(annotation)
  return Annotations(
    file=file,
    category_ids=tuple(category["id"] for category in categories),
    names=tuple(category["name"] for category in categories),
    images=images,
    of_image=dict(of_image),
  )


def _check(file, categories, images, annotations) -> None:
  for what, values in (
    ("category id", [c["id"] for c in categories]),
    ("category name", [c["name"] for c in categories]),
    ("image id", [i["id"] for i in images]),
    ("image file name", [i["file_name"] for i in images]),
    ("annotation id", [a["id"] for a in annotations]),
  ):
    if not values:
      raise _damaged(file, f"it has no {what}")
    value, times = collections.Counter(values).most_common(1)[0]
    if times > 1:
      raise ValueError(f"{file} must name every {what} once; {value!r} recurs.")
  ids, image_ids = {c["id"] for c in categories}, {i["id"] for i in images}
  for annotation in annotations:
    for field, known in (("category_id", ids), ("image_id", image_ids)):
      if annotation[field] not in known:
        raise ValueError(
          f"{file}: annotation {annotation['id']} must have a {field} that the "
          f"file lists, and has {annotation[field]!r}. Correct the entry, or "
          "take the official file."
        )


def picture_reader(
  path: pathlib.Path, split: str, annotations: Annotations
) -> Callable[[list[dict[str, Any]]], Iterator[tuple[dict[str, Any], bytes]]]:
  """Returns a function that yields (image entry, encoded bytes) of some images.

  Raises:
    ValueError: if pictures that the annotations name are not there.
  """
  folder, name = path / FOLDERS[split], FOLDERS[split]
  wanted = {image["file_name"] for image in annotations.images}
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
        yield image, (folder / image["file_name"]).read_bytes()
      return
    with _opened_zip(where) as archive:
      for image in images:
        yield image, archive.read(f"{name}/{image['file_name']}")

  return read


def rasterize(
  segmentation: Any, height: int, width: int
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of an annotation, as pycocotools draws them.

  Args:
    segmentation: polygons `[[x y x y ...] ...]`, whose union counts; or an RLE
      `{"counts", "size"}`, its counts a list (crowds) or compressed.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: if it is none of these, or of another size.
  """
  from pycocotools import mask as masks

  if isinstance(segmentation, list):
    # Four numbers would be taken for a box, and fewer for no polygon at all.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
      return np.zeros((height, width), np.bool_)
    rle = masks.merge(masks.frPyObjects(polygons, height, width))
  elif isinstance(segmentation, dict) and "counts" in segmentation:
    if list(segmentation.get("size", ())) != [height, width]:
      raise ValueError(
        f"an RLE must have the image's size {[height, width]} and has "
        f"{segmentation.get('size')}"
      )
    rle, counts = segmentation, segmentation["counts"]
    if isinstance(counts, list):
      # Where they do not add up, pycocotools returns memory it never wrote.
      if min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise ValueError(
          f"the counts of an RLE must add up to {height * width} pixels and "
          f"make {sum(counts)}"
        )
      rle = masks.frPyObjects(segmentation, height, width)
  else:
    raise ValueError(
      "a segmentation must be a list of polygons or an RLE with counts; it is "
      f"{str(segmentation)[:60]}"
    )
  return masks.decode(rle).astype(np.bool_)
