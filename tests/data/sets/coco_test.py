"""COCO's official files in, records out: real pictures with real masks.

What holds for every data set of official archives is in official_test.py.
"""

import functools
import json
import re
import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage

from gc_jax.data.sets import coco, shapes
from tests.data import archives, evaluated, photos
from tests.data.archives import digest

refused = functools.partial(archives.refused, coco)

JSON = coco.JSON["train"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Returns the folder of zips and what they hold."""
  folder = tmp_path_factory.mktemp("coco")
  return folder, archives.build_coco(folder)


@pytest.fixture(scope="module")
def tfds_dir(built, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("tfds")
  for split in archives.NUM_COCO:
    coco.load(split, path=built[0], data_dir=data_dir)
  return data_dir


@pytest.fixture
def folder(built, tmp_path):
  """A copy of the archives, to break."""
  return shutil.copytree(built[0], tmp_path / "archives")


def in_pixels(objects, size):
  """Returns the boxes of a record: xmin ymin xmax ymax."""
  found = np.reshape(objects["bbox"], (-1, 4))[:, [1, 0, 3, 2]]
  return found * [*size, *size]


@pytest.mark.parametrize("split", archives.NUM_COCO)
def test_every_record_is_what_the_archives_say(built, tfds_dir, split):
  wanted, overlaps = built[1][split], []
  if split == "train":
    wanted = {name: p for name, p in wanted.items() if p.objects}
  dataset = coco.load(split, path=built[0], data_dir=tfds_dir)
  assert dataset.class_names == archives.COCO_CLASSES, "no gaps"
  assert dataset.multi_label
  for record, (name, picture) in zip(
    dataset.source, wanted.items(), strict=True
  ):
    assert record["file_name"].decode() == name
    assert record["image"] == picture.image, "no byte may change"
    objects = record["objects"]
    labels = [label for label, *_ in picture.objects]
    assert [int(k) for k in record["labels"]] == labels
    assert [int(k) for k in objects["label"]] == labels
    assert not any(objects["difficult"])
    np.testing.assert_allclose(
      in_pixels(objects, picture.size),
      np.reshape(
        [(x, y, x + w, y + h) for _, (x, y, w, h), *_ in picture.objects],
        (-1, 4),
      ),
      atol=1e-4,  # float32 shares of at most 300 pixels
    )
    for encoded, (*_, mask, exact) in zip(
      objects["mask"], picture.objects, strict=True
    ):
      found = photos.decode(encoded)
      if exact:
        np.testing.assert_array_equal(found, mask)
        continue
      # An outline forgets holes and cuts corners: nothing may be off by more
      # than a pixel.
      filled, grow = scipy.ndimage.binary_fill_holes(mask), np.ones((3, 3))
      inner = scipy.ndimage.binary_erosion(mask, grow, border_value=1)
      assert found[inner].all()
      assert scipy.ndimage.binary_dilation(filled, grow)[found].all()
      overlaps.append((found & filled).sum() / (found | filled).sum())
  # Slivers are all edge; most objects are not.
  assert np.median(overlaps) > 0.95


def test_unpacked_folders_give_the_same_as_zips(built, tfds_dir, tmp_path):
  for archive in built[0].glob("*.zip"):
    with zipfile.ZipFile(archive) as file:
      file.extractall(tmp_path / "unpacked")
  for split in archives.NUM_COCO:
    unpacked = coco.load(
      split, path=tmp_path / "unpacked", data_dir=tmp_path / "tfds"
    )
    zipped = coco.load(split, path="", data_dir=tfds_dir)
    assert digest(unpacked) == digest(zipped)


def counts_of(data_dir, split):
  """Returns how often which oddity occurred, as its preparation says."""
  (facts,) = data_dir.glob(f"coco2014/{split}/1.*/facts.json")
  return json.loads(facts.read_text())["counts"]


def test_images_without_annotations_are_counted_on_either_side(tfds_dir):
  train, validation = (counts_of(tfds_dir, s) for s in archives.NUM_COCO)
  assert train["images without annotations left out"] == 8
  assert validation["images without annotations kept"] == 2


def test_an_image_without_annotations_counts_for_f1_and_for_no_map(tfds_dir):
  dataset = coco.load("validation", path="", data_dir=tfds_dir)
  rows, batch = evaluated.batch(dataset, 32)
  empty = ~batch["labels"].any(1)
  assert rows.index[empty].tolist() == [i for i in range(12) if i % 5 == 4]
  assert batch["mask"].all() and rows.first[empty].all()
  np.testing.assert_array_equal(batch["target_mask"] > 0, ~empty)
  assert not batch["object_mask"][empty].any()


# What the annotations or the pictures may lack.


def rewrite(folder, change):
  """Passes what the annotations of training say through `change`."""
  with zipfile.ZipFile(folder / coco.ANNOTATIONS) as archive:
    document = json.loads(archive.read(JSON))
  change(document)
  (folder / JSON).parent.mkdir(exist_ok=True)
  (folder / JSON).write_text(json.dumps(document))


def unpack(folder):
  """Returns the folder of training pictures, unpacked."""
  with zipfile.ZipFile(folder / "train2014.zip") as archive:
    archive.extractall(folder)
  (folder / "train2014.zip").unlink()
  return folder / "train2014"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_picture_that_is_missing_is_named(folder, tmp_path, zipped):
  pictures = unpack(folder)
  lost = sorted(pictures.iterdir())[3]
  lost.unlink()
  where = pictures
  if zipped:
    shutil.make_archive(pictures, "zip", folder, pictures.name)
    shutil.rmtree(pictures)
    where = f"{pictures}.zip"
  message = refused(folder, tmp_path)
  assert f"{where} must be the whole official file" in message
  assert f"1 of 40 pictures that {folder}" in message
  assert lost.name in message


def _set(field, value):
  return lambda d: d["annotations"][0].update({field: value})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    # Every other entry that cannot be used: coco_json_test.py.
    (lambda d: d["images"].append(d["images"][0]), "every image id once"),
    (_set("image_id", "3"), r"annotation \d+: image_id .* is the text '3'"),
    (lambda d: d["annotations"].clear(), "one annotation or more, and has n"),
    (
      _set("segmentation", {"counts": [5, 5], "size": [9, 9]}),
      r"annotation \d+: its run lengths must be of the picture as it is stored",
    ),
    (
      _set("segmentation", "mask.png"),
      r"annotation \d+: its segmentation must be polygons or run lengths",
    ),
  ],
)
def test_annotations_that_contradict_themselves_are_named(
  folder, tmp_path, change, message
):
  (folder / "train2014.zip").unlink()  # they are checked before any picture
  rewrite(folder, change)
  refusal = refused(folder, tmp_path)
  assert "instances_train2014.json" in refusal
  assert re.search(message, refusal), refusal


def _without_sizes(document):
  for image in document["images"]:
    del image["width"], image["height"]


def test_without_sizes_those_of_the_pictures_count(tfds_dir, folder):
  rewrite(folder, _without_sizes)
  dataset = coco.load("train", path=folder, data_dir=folder / "tfds")
  whole = coco.load("train", path="", data_dir=tfds_dir)
  assert digest(dataset) == digest(whole)


def test_every_annotation_is_an_object_or_is_counted(folder, tmp_path):
  seen = []
  nothing = [[1.0, 1.0, 5.0, 5.0], [9_999.0, 0.0] * 4]

  def change(document):
    generator = np.random.default_rng(2)
    for annotation in document["annotations"]:
      if generator.random() < 0.4:
        annotation["segmentation"] = nothing
      if generator.random() < 0.4:
        annotation["bbox"] = [5.0, 5.0, 0.0, 0.0]
      seen.append(annotation["segmentation"] == nothing)

  rewrite(folder, change)
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  counts = counts_of(tmp_path, "train")
  used = sum(len(record["objects"]["label"]) for record in dataset.source)
  left_out = counts["objects left out: neither mask nor box"]
  assert left_out > 0
  assert used + left_out == len(seen)
  assert sum(len(record["labels"]) for record in dataset.source) == len(seen)
  parts = counts["polygons and run lengths left out: they cover no pixel"]
  assert parts == 2 * sum(seen)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda d: d["images"][0].update(width=d["images"][0]["width"] + 1),
      r"it says \d+x\d+ pixels, and it has",
    ),
    (
      lambda d: (
        _without_sizes(d),
        _set("segmentation", {"counts": [7], "size": [1, 7]})(d),
      ),
      r"annotation \d+: its run lengths must be of the picture",
    ),
  ],
)
def test_annotations_of_other_pictures_are_refused_before_training(
  folder, tmp_path, change, message
):
  def of_polygons_alone(document):
    for annotation in document["annotations"]:
      if not isinstance(annotation["segmentation"], list):
        annotation["segmentation"] = []
    change(document)

  rewrite(folder, of_polygons_alone)
  refusal = refused(folder, tmp_path)
  assert "instances_train2014.json" in refusal
  assert re.search(message, refusal), refusal


def test_objects_of_a_picture_that_is_stored_turned_are_left_out(
  folder, tmp_path, capsys
):
  path = sorted(unpack(folder).iterdir())[0]
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  turned = PIL.Image.open(path).transpose(PIL.Image.Transpose.ROTATE_90)
  turned.save(path, exif=exif)
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  record = dataset.source[0]
  assert record["file_name"] == path.name.encode()
  number = len(record["labels"])
  assert number and not len(record["objects"]["label"])
  said = capsys.readouterr().err
  assert f"{number} objects left out: their picture is stored turned" in said


def test_odd_objects_are_mended_or_left_out_and_counted(
  folder, tmp_path, capsys
):
  sizes = []

  def change(document):
    first = document["annotations"][:5]
    image = next(
      i for i in document["images"] if i["id"] == first[0]["image_id"]
    )
    sizes.append((image["width"], image["height"]))
    # No mask: the box; no box: that of the mask; neither: nothing.
    first[0].update(segmentation=[], bbox=[10.5, 20.0, 30.0, 40.0])
    first[1]["bbox"] = [50.0, 50.0, -4.0, 10.0]
    first[2].update(segmentation=[], bbox=[5_000.0, 0.0, 10.0, 10.0])
    first[3]["bbox"] = [-20.0, 0.0, 5_000.0, 30.0]

  rewrite(folder, change)
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  said = capsys.readouterr().err
  for odd in (
    "1 boxes clipped to the picture",
    "1 empty boxes, replaced by that of the mask",
    "1 empty masks, replaced by their box",
    "1 objects left out: neither mask nor box",
  ):
    assert odd in said
  record = dataset.source[0]
  objects = record["objects"]
  assert len(record["labels"]) == len(objects["label"]) + 1
  first, second = (photos.decode(encoded) for encoded in objects["mask"][:2])
  assert (
    shapes.box_of_mask(first) == (10, 20, 41, 60) and first.sum() == 40 * 31
  )
  np.testing.assert_allclose(
    in_pixels(objects, sizes[0])[:3],
    [(10.5, 20, 40.5, 60), shapes.box_of_mask(second), (0, 0, sizes[0][0], 30)],
    atol=1e-4,
  )
