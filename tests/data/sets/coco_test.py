"""COCO's official files in, records out: real pictures with real masks."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage

from gc_jax.data import pipeline
from gc_jax.data.sets import coco
from gc_jax.evaluation import classification
from gc_jax.training import guidance
from tests.data import archives, evaluated

FINAL = f"coco2014/{{}}/{coco.RELEASE.version}"
PARTS_LEFT_OUT = "polygons and run lengths left out: they cover no pixel"
NUM_IMAGES = {"train": 40, "validation": 12}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Returns the folder of zips and what they hold."""
  folder = tmp_path_factory.mktemp("coco")
  return folder, archives.build_coco(folder, NUM_IMAGES)


@pytest.fixture(scope="module")
def tfds_dir(built, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("tfds")
  for split in NUM_IMAGES:
    coco.load(split, path=built[0], data_dir=data_dir)
  return data_dir


def decode(mask):
  with PIL.Image.open(io.BytesIO(mask)) as image:
    assert image.mode == "1", "a bit a pixel"
    return np.asarray(image)


def digest(dataset):
  """Of every value of every record, in order."""
  whole = hashlib.sha256()
  for record in dataset.source:
    objects = record["objects"]
    whole.update(record["file_name"] + record["image"])
    whole.update(b"".join(objects["mask"]))
    for numbers in (record["labels"], objects["label"], objects["bbox"]):
      whole.update(np.array(numbers).tobytes())
  return whole.hexdigest()


@pytest.mark.parametrize("split", NUM_IMAGES)
def test_every_record_is_what_the_archives_say(built, tfds_dir, split):
  wanted, overlaps = built[1][split], []
  if split == "train":
    wanted = {name: p for name, p in wanted.items() if p.objects}
  dataset = coco.load(split, path=built[0], data_dir=tfds_dir)
  assert len(dataset.source) == len(wanted)
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
    width, height = picture.size
    for box, encoded, (_, (x, y, w, h), mask, exact) in zip(
      objects["bbox"], objects["mask"], picture.objects, strict=True
    ):
      np.testing.assert_allclose(
        np.array(box) * [height, width, height, width],
        [y, x, y + h, x + w],
        atol=1e-4,  # float32 shares of at most 300 pixels
      )
      found = decode(encoded)
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


def test_the_archives_hold_what_coco_does(built):
  folder, wanted = built
  pictures = [p for split in wanted.values() for p in split.values()]
  assert len(pictures) >= 50
  assert sum(not p.objects for p in pictures) == 8 + 2
  with zipfile.ZipFile(folder / coco.ANNOTATIONS) as archive:
    text = archive.read("annotations/instances_train2014.json")
  annotations = json.loads(text)["annotations"]
  kinds = {
    type(a["segmentation"]).__name__
    if isinstance(a["segmentation"], list)
    else type(a["segmentation"]["counts"]).__name__ + str(a["iscrowd"])
    for a in annotations
  }
  assert kinds == {"list", "list1", "str0"}


def test_categories_are_numbered_without_the_gaps(built, tfds_dir):
  dataset = coco.load("validation", path=built[0], data_dir=tfds_dir)
  assert dataset.class_names == archives.COCO_CLASSES
  assert dataset.multi_label


def test_unpacked_folders_give_the_same_as_zips(built, tfds_dir, tmp_path):
  for archive in built[0].glob("*.zip"):
    with zipfile.ZipFile(archive) as file:
      file.extractall(tmp_path / "unpacked")
  for split in NUM_IMAGES:
    unpacked = coco.load(
      split, path=tmp_path / "unpacked", data_dir=tmp_path / "tfds"
    )
    zipped = coco.load(split, path="", data_dir=tfds_dir)
    assert digest(unpacked) == digest(zipped)


def test_a_part_of_a_split_can_be_loaded(tfds_dir):
  whole, part = (
    coco.load(split, path="", data_dir=tfds_dir)
    for split in ("train", "train[75%:]")
  )
  assert len(part.source) == 8
  assert part.source[0]["file_name"] == whole.source[24]["file_name"]


def test_images_without_annotations_are_counted_on_either_side(
  built, tmp_path, capsys
):
  for split, said in (
    ("train", "8 images without annotations left out"),
    ("validation", "2 images without annotations kept"),
  ):
    coco.load(split, path=built[0], data_dir=tmp_path)
    assert said in capsys.readouterr().err


def test_an_image_without_annotations_counts_for_f1_and_for_no_map(tfds_dir):
  dataset = coco.load("validation", path="", data_dir=tfds_dir)
  rows, batch = evaluated.batch(dataset, 32)
  empty = ~batch["labels"].any(1)
  assert rows.index[empty].tolist() == [i for i in range(12) if i % 5 == 4]
  assert batch["mask"].all() and rows.first[empty].all()
  np.testing.assert_array_equal(batch["target_mask"] > 0, ~empty)
  assert not batch["object_mask"][empty].any()
  batch = {k: batch[k][rows.first] for k in ("labels", "mask")}

  # A detector that sees a person everywhere is wrong on these two as well.
  logits = jnp.full((12, 5), -1.0).at[:, 0].set(1.0)
  on_device = {name: jnp.asarray(value) for name, value in batch.items()}
  sums = classification.sums(logits, on_device)
  alarms = np.asarray(sums["false_positives"][0])
  assert alarms[0] == 12 - (batch["labels"][:, 0] > 0).sum() >= 2
  hits = (batch["labels"][:, 0] > 0).sum()
  misses = (batch["labels"][:, 1:] > 0).sum()
  results = classification.summarize(sums)
  expected = 2 * hits / (2 * hits + alarms[0])
  # F1 is 0 for the four classes that are never detected.
  assert results["f1_per_class"] == pytest.approx(100 * expected / 5)
  assert results["f1_overall"] == pytest.approx(
    100 * 2 * hits / (2 * hits + alarms[0] + misses)
  )


def test_labels_count_annotations_so_that_draws_are_by_instance(tfds_dir):
  import jax

  dataset = coco.load("train", path="", data_dir=tfds_dir)
  batch = dataset.encode_labels(dataset.source[0]["labels"])
  batch = {"labels": batch["labels"][None]}
  counts = np.bincount([int(k) for k in dataset.source[0]["labels"]])
  assert counts.max() > 1
  np.testing.assert_array_equal(batch["labels"][0][: len(counts)], counts)
  keys = jax.random.split(jax.random.key(0), 4_000)
  drawn = jax.vmap(lambda key: guidance.draw_target(key, batch, "instance"))(
    keys
  )
  share = np.bincount(np.asarray(drawn)[:, 0], minlength=5) / 4_000
  # Five standard deviations of a share of 4,000 draws.
  np.testing.assert_allclose(
    share[: len(counts)], counts / counts.sum(), atol=0.04
  )


def test_training_batches_come_without_empty_images(tfds_dir):
  dataset = coco.load("train", path="", data_dir=tfds_dir)
  batches = pipeline.train_batches(
    dataset, seed=0, start_step=0, batch_size=16, image_size=32
  )
  for _ in range(2):
    assert next(batches)["labels"].any(1).all()


def test_a_second_run_reads_what_is_there(built, tfds_dir, monkeypatch):
  def never(*_):
    raise AssertionError("read again")

  monkeypatch.setattr(coco, "read_annotations", never)
  dataset = coco.load("train", path=built[0], data_dir=tfds_dir)
  assert len(dataset.source) == 32


PROGRAM = """
import os, signal, sys
from gc_jax.data.sets import coco

coco._SHARD_IMAGES = 10
example, seen = coco.Coco2014._example, []

def deadly(*arguments):
  seen.append(1)
  if len(seen) == int(sys.argv[3]):
    os.kill(os.getpid(), signal.SIGKILL)
  return example(*arguments)

coco.Coco2014._example = deadly
coco.load("train", path=sys.argv[1], data_dir=sys.argv[2])
"""


def test_kill_9_and_again_is_the_same_and_finished_parts_are_kept(
  built, tfds_dir, tmp_path, capsys, monkeypatch
):
  died = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(built[0]), str(tmp_path), "25"],
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    capture_output=True,
    text=True,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr
  (parts,) = tmp_path.glob("coco2014/train/incomplete.parts_*")
  finished = {
    path.name: path.stat().st_ino
    for path in parts.glob("*array_record-*-of-*")
    if "unfinished" not in path.name
  }
  assert len(finished) == 2

  monkeypatch.setattr(coco, "_SHARD_IMAGES", 10)
  dataset = coco.load("train", path=built[0], data_dir=tmp_path)
  assert "Continuing: 2 of 4 parts" in capsys.readouterr().err
  folder = tmp_path / FINAL.format("train")
  for name, inode in finished.items():
    assert (folder / name).stat().st_ino == inode, f"{name} was written again"
  whole = coco.load("train", path="", data_dir=tfds_dir)
  assert digest(dataset) == digest(whole)


@pytest.fixture
def folder(built, tmp_path):
  """A copy of the archives, to break."""
  copy = tmp_path / "archives"
  shutil.copytree(built[0], copy)
  return copy


def refused(folder, tmp_path, split="train"):
  """Returns the message, and sees that nothing came of it."""
  with pytest.raises(ValueError) as caught:
    coco.load(split, path=folder, data_dir=tmp_path / "tfds")
  assert not (tmp_path / "tfds" / FINAL.format(split)).exists()
  return str(caught.value)


def test_without_a_folder_the_message_says_what_to_set(tmp_path):
  for path in ("", tmp_path / "nowhere"):
    message = refused(path, tmp_path)
    assert re.search(r"--config.data.path='.*' must be the folder of", message)
    assert "https://cocodataset.org" in message
  with pytest.raises(ValueError, match="Did you mean 'validation'"):
    coco.load("validaton", path="", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["train2014.zip", coco.ANNOTATIONS])
def test_a_missing_file_is_named_with_where_to_get_it(folder, tmp_path, name):
  (folder / name).unlink()
  message = refused(folder, tmp_path)
  assert f"--config.data.path='{folder}' must hold {name}" in message
  assert "it holds " in message
  assert "https://cocodataset.org" in message


@pytest.mark.parametrize("name", ["train2014.zip", coco.ANNOTATIONS])
def test_a_truncated_file_is_named(folder, tmp_path, name):
  path = folder / name
  path.write_bytes(path.read_bytes()[:-5_000])
  message = refused(folder, tmp_path)
  assert name in message
  assert "cut short" in message


def test_a_split_needs_only_its_own_pictures(folder, tmp_path):
  (folder / "train2014.zip").unlink()
  dataset = coco.load("validation", path=folder, data_dir=tmp_path)
  assert len(dataset.source) == 12


def rewritten(folder, change):
  """Passes what the annotations of training say through `change`."""
  path = folder / coco.ANNOTATIONS
  name = "annotations/instances_train2014.json"
  with zipfile.ZipFile(path) as archive:
    document = json.loads(archive.read(name))
  change(document)
  (folder / name).parent.mkdir(exist_ok=True)
  (folder / name).write_text(json.dumps(document))


def test_a_picture_that_is_missing_is_named(folder, tmp_path):
  path = folder / "train2014.zip"
  with zipfile.ZipFile(path) as archive:
    entries = [(n, archive.read(n)) for n in archive.namelist()]
  lost = entries.pop(3)[0].split("/")[1]
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in entries:
      archive.writestr(name, data)
  message = refused(folder, tmp_path)
  assert "train2014.zip" in message
  assert f"1 of 40 pictures that {folder}" in message
  assert lost in message


def _repeat(field):
  return lambda d: d[field].append(d[field][0])


def _set(field, value):
  def change(document):
    document["annotations"][0][field] = value

  return change


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_repeat("images"), "every image id once"),
    (_repeat("annotations"), "every annotation id once"),
    (_repeat("categories"), "every category id once"),
    (
      lambda d: d["images"].append({**d["images"][0], "id": 1}),
      "every image file name once",
    ),
    (
      _set("category_id", 12),
      r"category_id must be the id of .*, and is 12",
    ),
    (_set("image_id", 3), r"image_id must be the id of .*, and is 3"),
    (_set("image_id", "3"), r"annotation \d+: image_id .* is the text '3'"),
    (_set("category_id", True), r"category_id must be .* is the word true"),
    (_set("bbox", [1, 2, "3", 4]), r"annotation \d+: bbox .* is the text '3'"),
    (_set("bbox", [1, 2, None, 4]), r"one of them is missing or null"),
    (_set("bbox", [1, 2, 3]), r"bbox must be four numbers, x y width height"),
    (_set("bbox", [1, 2, float("nan"), 4]), r"one of them is nan"),
    (
      lambda d: d["annotations"].clear(),
      "one annotation or more, and has n",
    ),
    (lambda d: d["images"][0].pop("file_name"), r"images\[0\]: file_name must"),
    (lambda d: d["categories"][1].pop("name"), r"categories\[1\]: name must"),
    (lambda d: d["images"][2].update(width="48"), r"width .* is the text '48'"),
    (lambda d: d.pop("annotations"), "its annotations are missing or null"),
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
  rewritten(folder, change)
  refusal = refused(folder, tmp_path)
  assert "instances_train2014.json" in refusal
  assert re.search(message, refusal), refusal


def test_the_first_five_of_many_entries_are_named(folder, tmp_path):
  def change(document):
    for annotation in document["annotations"]:
      annotation["image_id"] = str(annotation["image_id"])

  rewritten(folder, change)
  message = refused(folder, tmp_path)
  assert message.count("is the text") == 5
  assert re.search(r"and \d+ more\n", message)


def test_a_prepared_set_of_fractions_is_refused(folder, tmp_path):
  def change(document):
    sizes = {i["id"]: (i["width"], i["height"]) for i in document["images"]}
    for annotation in document["annotations"]:
      x, y, w, h = annotation["bbox"]
      width, height = sizes[annotation["image_id"]]
      annotation["bbox"] = [x / width, y / height, w / width, h / height]

  rewritten(folder, change)
  message = refused(folder, tmp_path)
  assert "instances_train2014.json: boxes must be in pixels" in message
  assert "Are they fractions of the picture?" in message


def _drop(*fields):
  def change(document):
    for annotation in document["annotations"]:
      for field in fields:
        annotation.pop(field)

  return change


def _without_sizes(document):
  for image in document["images"]:
    del image["width"], image["height"]


def test_without_sizes_those_of_the_pictures_count(built, tfds_dir, folder):
  rewritten(folder, _without_sizes)
  dataset = coco.load("train", path=folder, data_dir=folder / "tfds")
  whole = coco.load("train", path="", data_dir=tfds_dir)
  assert digest(dataset) == digest(whole)


def test_without_segmentations_the_boxes_are_the_masks(
  built, folder, tmp_path, capsys
):
  rewritten(folder, _drop("segmentation", "iscrowd", "area", "id"))
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  wanted = [p for p in built[1]["train"].values() if p.objects]
  number = sum(len(p.objects) for p in wanted)
  said = capsys.readouterr().err
  assert f"{number} empty masks, replaced by their box" in said
  for record, picture in zip(dataset.source, wanted, strict=True):
    for encoded, (_, (x, y, w, h), *_) in zip(
      record["objects"]["mask"], picture.objects, strict=True
    ):
      mask = decode(encoded)
      assert mask.sum() == w * h
      assert mask[int(y) : int(y + h), int(x) : int(x + w)].all()


def test_without_boxes_those_of_the_masks_count(folder, tmp_path, capsys):
  rewritten(folder, _drop("bbox"))
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  assert "empty boxes, replaced by that of the mask" in capsys.readouterr().err
  for record in dataset.source:
    objects = record["objects"]
    assert len(objects["bbox"]) == len(record["labels"])


def test_every_annotation_is_an_object_or_is_counted(folder, tmp_path, capsys):
  seen = []

  def change(document):
    generator = np.random.default_rng(2)
    for annotation in document["annotations"]:
      if generator.random() < 0.4:
        annotation["segmentation"] = [[1.0, 1.0, 5.0, 5.0], [9_999.0, 0.0] * 4]
      if generator.random() < 0.4:
        annotation["bbox"] = [5.0, 5.0, 0.0, 0.0]
    seen.append(len(document["annotations"]))

  rewritten(folder, change)
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  counts = json.loads(
    (tmp_path / FINAL.format("train") / "facts.json").read_text()
  )["counts"]
  used = sum(len(record["objects"]["label"]) for record in dataset.source)
  left_out = counts["objects left out: neither mask nor box"]
  assert left_out > 0
  assert used + left_out == seen[0]
  assert sum(len(record["labels"]) for record in dataset.source) == seen[0]
  assert counts[PARTS_LEFT_OUT] % 2 == 0


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
def test_what_is_only_told_by_the_pictures_is_told_before_training(
  folder, tmp_path, change, message
):
  def of_polygons_alone(document):
    for annotation in document["annotations"]:
      if not isinstance(annotation["segmentation"], list):
        annotation["segmentation"] = []
    change(document)

  rewritten(folder, of_polygons_alone)
  refusal = refused(folder, tmp_path)
  assert "instances_train2014.json" in refusal
  assert re.search(message, refusal), refusal


def test_objects_of_a_picture_that_is_stored_turned_are_left_out(
  folder, tmp_path, capsys
):
  path = folder / "train2014"
  with zipfile.ZipFile(folder / "train2014.zip") as archive:
    archive.extractall(folder)
  name = sorted(p.name for p in path.iterdir())[0]
  image = PIL.Image.open(path / name).convert("RGB")
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  turned = image.transpose(PIL.Image.Transpose.ROTATE_90)
  turned.save(path / name, exif=exif)
  dataset = coco.load("train", path=folder, data_dir=tmp_path)
  record = next(r for r in dataset.source if r["file_name"] == name.encode())
  number = len(record["labels"])
  assert number and not len(record["objects"]["label"])
  said = capsys.readouterr().err
  assert f"{number} objects left out: their picture is stored turned" in said


def test_odd_objects_are_mended_or_left_out_and_counted(
  folder, tmp_path, capsys
):
  changed = {}

  def change(document):
    first = document["annotations"][:5]
    image = next(
      i for i in document["images"] if i["id"] == first[0]["image_id"]
    )
    changed.update(width=image["width"], height=image["height"])
    # No mask: the box; no box: that of the mask; neither: nothing.
    first[0].update(segmentation=[], bbox=[10.5, 20.0, 30.0, 40.0])
    first[1]["bbox"] = [50.0, 50.0, -4.0, 10.0]
    first[2].update(segmentation=[], bbox=[5_000.0, 0.0, 10.0, 10.0])
    first[3]["bbox"] = [-20.0, 0.0, 5_000.0, 30.0]

  rewritten(folder, change)
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
  size = np.array([changed["height"], changed["width"]] * 2)
  np.testing.assert_allclose(
    objects["bbox"][0] * size, [20, 10.5, 60, 40.5], atol=1e-4
  )
  mask = decode(objects["mask"][0])
  assert mask[20:60, 10:41].all()
  assert mask.sum() == 40 * 31
  mask = decode(objects["mask"][1])
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  np.testing.assert_allclose(
    objects["bbox"][1] * size,
    [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1],
    atol=1e-4,
  )
  np.testing.assert_allclose(
    objects["bbox"][2] * size, [0, 0, 30, changed["width"]], atol=1e-4
  )
