"""Writes small archives as the publishers of stock sets lay them out.

Each writer fills a folder with the archives under their official names, and
returns what they say: a list of `Truth`, in the order of the lists inside.
"""

import tarfile
from typing import NamedTuple

import numpy as np
import PIL.Image
from scipy import ndimage

from tests.data import archives
from tests.data.photos import encode as encoded
from tests.data.photos import picture, tight_box, voc


class Truth(NamedTuple):
  """What an archive says of one picture."""

  image: bytes  # of the file; pixels where there is none
  labels: list[str]  # names of the classes of the objects
  boxes: list[tuple] = ()  # ymin xmin ymax xmax in 0..1
  difficult: list[bool] = ()
  mask: np.ndarray | None = None  # bool [H W] of the one object


def fractions(box, shape):
  top, left, bottom, right = box
  height, width = shape[:2]
  return top / height, left / width, bottom / height, right / width


def write_tar(path, files, mode="w:gz"):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, mode) as tar:
    for name, content in files.items():
      content = content.encode() if isinstance(content, str) else content
      archives.add(tar, name, content)


BREEDS = {
  "Abyssinian": 1,
  "american_bulldog": 2,
  "Bengal": 6,
  "chihuahua": 11,
  "yorkshire_terrier": 37,
}


def write_pets(folder):
  """Oxford-IIIT Pet: 40 pictures to train on, 15 to test.

  As in the original: a GIF and a PNG with transparency under names in .jpg, a
  JPEG that is recoded for its defects, resource forks among the trimaps, and
  heads annotated for training alone.
  """
  images, annotations, truths = {}, {}, []
  lists = {"trainval": [], "test": []}
  for number in range(55):
    k = number % 5
    breed = list(BREEDS)[k]
    name = f"{breed}_{number + 1}"
    pixels, (mask,) = picture(number)
    image = encoded(pixels, quality=90)
    if number == 5:
      name = "Abyssinian_34"
      image = encoded(PIL.Image.fromarray(pixels).quantize(64), "gif")
    elif number == 10:
      name = "Abyssinian_5"
      image = encoded(PIL.Image.fromarray(pixels).convert("RGBA"), "png")
    elif number == 3:
      name = "chihuahua_121"
    images[f"images/{name}.jpg"] = image
    images[f"images/{name}.mat"] = b"MATLAB 5.0 MAT-file"
    trimap = np.where(mask, 1, 2).astype(np.uint8)
    trimap[ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)] = 3
    annotations[f"annotations/trimaps/{name}.png"] = encoded(trimap, "png")
    annotations[f"annotations/trimaps/._{name}.png"] = b"\0\5\x16\7"
    part = "trainval" if number < 40 else "test"
    if part == "trainval":
      annotations[f"annotations/xmls/{name}.xml"] = voc_xml(
        name, pixels.shape, [("cat", (1, 1, 20, 30), False)]
      )
    species = 1 if breed[0].isupper() else 2  # cat, dog
    lists[part].append(f"{name} {BREEDS[breed]} {species} {k + 1}\n")
    truths.append(Truth(image, [breed], mask=trimap != 2))
  for part, lines in lists.items():
    annotations[f"annotations/{part}.txt"] = "".join(lines)
  # The images are an uncompressed tar, whatever its name says.
  write_tar(folder / "images.tar.gz", images, "w")
  write_tar(folder / "annotations.tar.gz", annotations)
  return truths


def voc_xml(name, shape, objects):
  found = "".join(
    f"<object><name>{label}</name><pose>Unspecified</pose>"
    f"<truncated>0</truncated><difficult>{int(difficult)}</difficult><bndbox>"
    f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
    f"<ymax>{bottom}</ymax></bndbox></object>"
    for label, (top, left, bottom, right), difficult in objects
  )
  return (
    f"<annotation><folder>VOC</folder><filename>{name}.jpg</filename><size>"
    f"<width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth>"
    f"</size><segmented>0</segmented>{found}</annotation>"
  )


VOC_CLASSES = ("bird", "bottle", "chair", "person", "tvmonitor")


def voc_objects(number):
  """Returns a picture and its objects; number 0 is a real one of VOC 2011."""
  if number == 0:
    data = voc()
    objects = [
      (data["class_names"][label], tuple(np.round(box).astype(int)), False)
      for label, box in zip(data["labels"], data["bboxes"], strict=True)
    ]
    return data["rgb"], objects
  count = 1 + number % 3
  pixels, masks = picture(number, count)
  objects = []
  for i, mask in enumerate(masks):
    label = VOC_CLASSES[(number + (i > 1)) % 5]  # the first two are of a class
    # Of every seventh picture all objects are difficult, of others the second.
    objects.append((label, tight_box(mask), i == 1 or number % 7 == 3))
  return pixels, objects


def write_voc(folder, year="2007"):
  """PASCAL VOC: 30 pictures to train on, 12 to validate, 10 to test.

  The test archive of 2012 comes without annotations.
  """
  root = f"VOCdevkit/VOC{year}"
  archives = {"trainval": {}, "test": {}}
  lists, truths = {"train": [], "val": [], "test": []}, []
  for number in range(52):
    part = "train" if number < 30 else "val" if number < 42 else "test"
    files = archives["test" if part == "test" else "trainval"]
    name = f"{number + 5:06d}" if year == "2007" else f"2008_{number + 2:06d}"
    pixels, objects = voc_objects(number)
    image = encoded(pixels, quality=92)
    files[f"{root}/JPEGImages/{name}.jpg"] = image
    annotated = part != "test" or year == "2007"
    if annotated:
      files[f"{root}/Annotations/{name}.xml"] = voc_xml(
        name, pixels.shape, objects
      )
    lists[part].append(f"{name}\n")
    labels, boxes, difficult = map(list, zip(*objects, strict=True))
    boxes = [fractions(box, pixels.shape) for box in boxes]
    truths.append(Truth(image, labels, boxes, difficult))
  for part, lines in lists.items():
    files = archives["test" if part == "test" else "trainval"]
    files[f"{root}/ImageSets/Main/{part}.txt"] = "".join(lines)
  official = {
    "2007": ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"),
    "2012": ("VOCtrainval_11-May-2012.tar", "VOC2012test.tar"),
  }[year]
  write_tar(folder / official[0], archives["trainval"], "w")
  write_tar(folder / official[1], archives["test"], "w")
  return truths


BIRDS = {
  0: "Black_footed_Albatross",
  1: "Laysan_Albatross",
  16: "Cardinal",
  199: "Common_Yellowthroat",
}


def write_birds(folder):
  """Caltech-UCSD Birds 2011: 30 pictures to train on, 18 to test.

  Masks are what five annotators drew, in steps of a fifth of 255.
  """
  archive, masks, truths = {}, {}, []
  names, parts, boxes = [], [], []
  for number in range(48):
    label = list(BIRDS)[number % 4]
    species = BIRDS[label]
    name = f"{label + 1:03d}.{species}/{species}_{number:04d}_{7 * number}"
    pixels, (mask,) = picture(number)
    image = encoded(pixels, quality=91)
    archive[f"CUB_200_2011/images/{name}.jpg"] = image
    drawn = sum(
      np.roll(mask, shift, (0, 1)).astype(int)
      for shift in [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)]
    )
    levels = (51 * drawn).astype(np.uint8)
    masks[f"segmentations/{name}.png"] = encoded(levels, "png")
    top, left, bottom, right = tight_box(mask)
    training = number % 8 < 5
    names.append(f"{number + 1} {name}.jpg\n")
    parts.append(f"{number + 1} {int(training)}\n")
    boxes.append(
      f"{number + 1} {left:.1f} {top:.1f} {right - left:.1f} "
      f"{bottom - top:.1f}\n"
    )
    labels = [species.lower().replace("_", " ")]
    box = fractions((top, left, bottom, right), mask.shape)
    truths.append(Truth(image, labels, [box], [False], levels > 127))
  for file, lines in (
    ("images", names),
    ("train_test_split", parts),
    ("bounding_boxes", boxes),
  ):
    archive[f"CUB_200_2011/{file}.txt"] = "".join(lines)
  write_tar(folder / "CUB_200_2011.tgz", archive)
  write_tar(folder / "segmentations.tgz", masks)
  return truths


FLOWERS = ("dandelion", "daisy", "tulips", "sunflowers", "roses")


def write_flowers(folder):
  """TensorFlow's flowers: 50 pictures, all to train on."""
  archive, truths = {"flower_photos/LICENSE.txt": "CC-BY"}, []
  for number in range(50):
    image = encoded(picture(number)[0])
    label = FLOWERS[number % 5]
    archive[f"flower_photos/{label}/{number}.jpg"] = image
    truths.append(Truth(image, [label]))
  write_tar(folder / "flower_photos.tgz", archive)
  return truths


CIFAR = (
  *("airplane", "automobile", "bird", "cat", "deer"),
  *("dog", "frog", "horse", "ship", "truck"),
)


def write_cifar(folder):
  """CIFAR-10 in its binary form: 50 pictures to train on, 10 to test."""
  root, truths, files = "cifar-10-batches-bin", [], {}
  for number in range(60):
    image = PIL.Image.fromarray(picture(number)[0]).resize((32, 32))
    pixels = np.asarray(image)
    file = f"data_batch_{number // 10 + 1}" if number < 50 else "test_batch"
    record = bytes([number % 10]) + pixels.transpose(2, 0, 1).tobytes()
    files[f"{root}/{file}.bin"] = files.get(f"{root}/{file}.bin", b"") + record
    truths.append(Truth(pixels, [CIFAR[number % 10]]))
  files[f"{root}/batches.meta.txt"] = "\n".join(CIFAR) + "\n\n"
  write_tar(folder / "cifar-10-binary.tar.gz", files)
  return truths


def write_imagenet_v2(folder):
  """ImageNet-v2, matched frequency: 12 pictures, all to test."""
  truths, files = [], {}
  for number in range(12):
    image = encoded(picture(number)[0])
    label = 97 * number % 1000
    root = "imagenetv2-matched-frequency-format-val"
    files[f"{root}/{label}/{number}.jpeg"] = image
    truths.append(Truth(image, [str(label)]))
  write_tar(folder / "imagenetv2-matched-frequency.tar.gz", files)
  return truths


WRITERS = {
  "oxford_iiit_pet": write_pets,
  "voc/2007": write_voc,
  "voc/2012": lambda folder: write_voc(folder, "2012"),
  "caltech_birds2011": write_birds,
  "tf_flowers": write_flowers,
  "cifar10": write_cifar,
  "imagenet_v2/matched-frequency": write_imagenet_v2,
}
