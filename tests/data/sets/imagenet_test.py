"""ImageNet's official files in, records out: on small archives of real photos.

The folder of archives is built by `archives`, format for format. What holds for
every data set of official archives is in official_test.py.
"""

import collections
import functools
import io
import re
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gc_jax.data import geometry
from gc_jax.data.sets import imagenet, imagenet_files, voc_xml
from tests.data import archives, evaluated
from tests.data.archives import digest, tar_of, xml

refused = functools.partial(archives.refused, imagenet)

SPLITS = ("train", "validation")
TRAIN, VALIDATION = imagenet_files.ARCHIVES.values()
DEVKIT, BOXES = imagenet_files.DEVKIT, imagenet_files.BOXES["validation"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Returns the folder of archives and what they hold."""
  folder = tmp_path_factory.mktemp("imagenet")
  return folder, archives.build_imagenet(folder)


@pytest.fixture(scope="module")
def tfds_dir(built, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("tfds")
  for split in SPLITS:
    imagenet.load(split, path=built[0], data_dir=data_dir)
  return data_dir


@pytest.fixture
def folder(built, tmp_path):
  """A copy of the archives, to break."""
  return shutil.copytree(built[0], tmp_path / "archives")


def check_records(dataset, pictures, endings=(".JPEG",)):
  """Checks that a split holds exactly these pictures, whatever their ending."""
  wanted = {name.removesuffix(".JPEG"): p for name, p in pictures.items()}
  assert len(dataset.source) == len(wanted)
  for record in dataset.source:
    stem, _, ending = record["file_name"].decode().rpartition(".")
    assert f".{ending}" in endings
    picture = wanted.pop(stem)
    assert record["image"] == picture.image, "no byte may change"
    assert [int(k) for k in record["labels"]] == [picture.label]
    objects = record["objects"]
    found = zip(objects["label"], objects["difficult"], strict=True)
    assert [(int(k), bool(d)) for k, d in found] == [
      (label, difficult) for label, _, difficult in picture.boxes
    ]
    width, height = picture.size
    found = np.reshape(objects["bbox"], (-1, 4))[:, [1, 0, 3, 2]]
    # float32 shares of at most 220 pixels.
    np.testing.assert_allclose(
      found * [width, height, width, height],
      np.reshape([corners for _, corners, _ in picture.boxes], (-1, 4)),
      atol=1e-4,
    )


@pytest.mark.parametrize("split", SPLITS)
def test_every_record_is_what_the_archives_say(built, tfds_dir, split):
  dataset = imagenet.load(split, path=built[0], data_dir=tfds_dir)
  check_records(dataset, built[1][split])


def test_classes_are_in_the_order_of_their_wnids_with_readable_names(tfds_dir):
  dataset = imagenet.load("train", path="", data_dir=tfds_dir)
  assert dataset.class_names == archives.CLASS_NAMES
  assert not dataset.multi_label


def test_names_that_repeat_are_told_apart():
  words = ["maillot", "maillot, tank suit", "crane", "crane", "cab, taxi"]
  wnids = ["n03710637", "n03710721", "n02012849", "n03126707", "n02930766"]
  expected = (
    *("maillot", "maillot, tank suit"),
    *("crane (n02012849)", "crane (n03126707)", "cab"),
  )
  assert imagenet_files.readable_names(words, wnids) == expected


def test_the_odd_pictures_are_found_by_content_and_decode(built):
  pictures = built[1]["train"].values()
  kinds = {imagenet.picture_kind(p.image): p.image for p in pictures}
  assert set(kinds) == {
    *("", "CMYK pictures", "grey pictures", "pictures that are PNG")
  }
  for image in kinds.values():
    assert geometry.decode_image(image, 64).shape == (64, 64, 3)
  for nothing in (b"", b"text"):
    kind = imagenet.picture_kind(nothing)
    assert kind == "pictures that cannot be opened"


def test_a_part_of_training_shows_every_class_and_validation_is_in_order(
  tfds_dir,
):
  for part in ("train[:60%]", "train[60%:]"):
    dataset = imagenet.load(part, path="", data_dir=tfds_dir)
    labels = {int(record["labels"][0]) for record in dataset.source}
    assert labels == set(range(4))
  dataset = imagenet.load("validation[:3]", path="", data_dir=tfds_dir)
  assert [record["file_name"] for record in dataset.source] == [
    f"ILSVRC2012_val_{i:08d}.JPEG".encode() for i in (1, 2, 3)
  ]


def test_pictures_reach_evaluation_with_their_boxes(built, tfds_dir):
  dataset = imagenet.load("validation", path=built[0], data_dir=tfds_dir)
  _, batch = evaluated.batch(dataset, 32)
  shown = batch["object_mask"].any((1, 2))
  # The eighth has none, and is left out of the metrics of maps by that.
  assert shown.tolist() == [i != 7 for i in range(12)]


def test_without_boxes_every_picture_is_read_and_it_is_said(
  folder, tmp_path, capsys
):
  (folder / imagenet_files.BOXES["train"]).unlink()
  dataset = imagenet.load("train", path=folder, data_dir=tmp_path)
  assert "No ILSVRC2012_bbox_train_v2.tar.gz" in capsys.readouterr().err
  assert len(dataset.source) == sum(archives.NUM_TRAIN.values())
  assert not any(len(r["objects"]["label"]) for r in dataset.source)


# Archives of pictures.


def entries_of(data):
  with tarfile.open(fileobj=io.BytesIO(data)) as tar:
    return [(m.name, tar.extractfile(m).read()) for m in tar]


def rewrite_train(folder, change):
  """Passes every class's entries through `change(wnid, entries)`."""
  classes = []
  for name, data in entries_of((folder / TRAIN).read_bytes()):
    if changed := change(name.removesuffix(".tar"), entries_of(data)):
      classes.append((name, tar_of(changed)))
  (folder / TRAIN).write_bytes(tar_of(classes))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda wnid, e: e[1:] if wnid == "n02012849" else e,
      "n02012849 must have 10 images and has 9",
    ),
    (lambda wnid, e: e if wnid != "n02012849" else [], "it lacks n02012849"),
    (lambda wnid, e: [e[0], *e[:-1]], r"n\d+_5.JPEG occurs twice"),
  ],
)
def test_classes_that_are_not_as_the_kit_counts_are_named(
  folder, tmp_path, change, message
):
  rewrite_train(folder, change)
  assert re.search(message, refused(folder, tmp_path))


def test_a_class_that_the_kit_does_not_know_is_named(folder, tmp_path):
  archives.write_devkit(folder, [], archives.meta_mat(archives.SYNSETS[1:]))
  assert "it has n02105855" in refused(folder, tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_are_known_by_any_ending_in_any_case(
  folder, built, tmp_path, split
):
  endings = (".JPG", ".jpeg", ".JPEG", ".png")

  def change(entries):
    return [
      (name.removesuffix(".JPEG") + endings[i % len(endings)], data)
      for i, (name, data) in enumerate(entries)
    ]

  if split == "train":
    rewrite_train(folder, lambda _, entries: change(entries))
  else:
    path = folder / VALIDATION
    path.write_bytes(tar_of(change(entries_of(path.read_bytes()))))
  dataset = imagenet.load(split, path=folder, data_dir=tmp_path)
  check_records(dataset, built[1][split], endings)


def as_a_subset(folder):
  """Takes the counts of the kit away: a list of synsets is left."""
  (folder / DEVKIT).unlink()
  lines = [f"{s.wnid} {s.words}\n" for s in archives.SYNSETS if not s.children]
  (folder / "LOC_synset_mapping.txt").write_text("".join(lines))


def of_every_class(data):
  return [(f"{wnid}.tar", data) for wnid in archives.CLASSES]


NO_CLASS = r"img_train.tar must hold an archive for each class, .* holds none: "
NO_PICTURE = r"must hold pictures .* and holds none: "
IN_CLASS = "n01440764.tar in .*img_train.tar " + NO_PICTURE


@pytest.mark.parametrize(
  ("split", "entries", "message"),
  [
    ("train", [], NO_CLASS + "it is empty"),
    (
      "train",
      [("n01440764/a.jpg", b""), ("n01440764/b.jpg", b""), ("c.tar.gz", b"")],
      NO_CLASS + r"it has 3 other files \(.jpg 2, .gz 1\)",
    ),
    ("train", of_every_class(tar_of([])), IN_CLASS + "it is empty"),
    (
      "train",
      of_every_class(tar_of([("a.TXT", b""), ("b", b"")])),
      IN_CLASS + r"it has 2 other files \(.txt 1, no ending 1\)",
    ),
    (
      "train",
      of_every_class(b"no archive" * 60),
      r"img_train.tar must be the whole official file and is damaged",
    ),
    (
      "validation",
      [("a.txt", b"a"), ("b.TXT", b"b"), ("._c.JPEG", b"of macOS")],
      "img_val.tar " + NO_PICTURE + r"it has 2 other files \(.txt 2\)",
    ),
    ("validation", [("._c.JPEG", b"")], NO_PICTURE + "it is empty"),
  ],
)
@pytest.mark.parametrize("with_kit", [True, False])
def test_an_archive_without_pictures_says_what_it_holds(
  folder, tmp_path, split, entries, message, with_kit
):
  if not with_kit:
    as_a_subset(folder)
  (folder / imagenet_files.ARCHIVES[split]).write_bytes(tar_of(entries))
  refusal = refused(folder, tmp_path, split)
  assert re.search(message, refusal), refusal


def test_other_files_of_archives_are_passed_over_and_counted(
  folder, tfds_dir, tmp_path, capsys
):
  rewrite_train(folder, lambda _, entries: [("a.txt", b""), *entries])
  for archive in (TRAIN, VALIDATION):
    with tarfile.open(folder / archive, "a") as tar:
      archives.add(tar, "._n01440764.tar", b"of macOS")
      archives.add(tar, "._ILSVRC2012_val_00000003.JPEG", b"of macOS")
      archives.add(tar, "README", b"text")
  for split in SPLITS:
    dataset = imagenet.load(split, path=folder, data_dir=tmp_path)
    whole = imagenet.load(split, path="", data_dir=tfds_dir)
    assert digest(dataset) == digest(whole)
  said = capsys.readouterr().err
  assert "4 files passed over (.txt)" in said
  assert said.count("1 files passed over (no ending)") == 2


@pytest.mark.parametrize("split", SPLITS)
def test_a_damaged_header_does_not_end_an_archive(folder, tmp_path, split):
  """Python takes it for the end, and the pictures behind it for nothing."""
  as_a_subset(folder)
  path = folder / imagenet_files.ARCHIVES[split]
  with tarfile.open(path) as tar:
    member = tar.getmembers()[2]
    start = member.offset
    if split == "train":  # the header of a picture in the class's archive
      with tarfile.open(fileobj=tar.extractfile(member)) as inner:
        start = member.offset_data + inner.getmembers()[3].offset
  content = bytearray(path.read_bytes())
  content[start : start + 512] = b"damaged!" * 64
  path.write_bytes(content)
  message = refused(folder, tmp_path, split)
  assert re.search(f"{path.name} must be the whole .* starts no file", message)


# Classes: the kit, or a list of synsets.


@pytest.mark.parametrize(
  ("truth", "message"),
  [
    (["x"], r"ground_truth.txt, line 1, must be the ILSVRC2012_ID .* is 'x'"),
    ([1, "-2"], r"line 2, must be the ILSVRC2012_ID of a class, and is '-2'"),
    ([1, "é"], r"line 2, must be the ILSVRC2012_ID of a class"),
    ([1, 1_001], r"no class has ILSVRC2012_ID 1001"),
  ],
)
def test_ground_truth_that_names_no_class_is_refused(
  folder, tmp_path, truth, message
):
  archives.write_devkit(folder, truth)
  refusal = refused(folder, tmp_path, "validation")
  assert "devkit_t12.tar.gz must be the whole" in refusal
  assert re.search(message, refusal), refusal


def test_ground_truth_must_fit_the_pictures(folder, tmp_path):
  archives.write_devkit(folder, [1] * 13)
  message = refused(folder, tmp_path, "validation")
  assert "img_val.tar" in message
  assert "it must have 13 images and has 12" in message


@pytest.mark.parametrize(
  "meta", [b"", b"text", b"\0" * 300, archives.mat_of(something=np.zeros(3))]
)
def test_a_table_of_the_kit_that_cannot_be_read_is_named(
  folder, tmp_path, meta
):
  archives.write_devkit(folder, [1], meta)
  refusal = refused(folder, tmp_path)
  assert "devkit_t12.tar.gz must be the whole" in refusal
  assert "its data/meta.mat cannot be read" in refusal


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("between", [" ", "\t"])
def test_a_list_of_synsets_is_read_as_editors_save_it(
  tmp_path, encoding, between
):
  lines = ["n00000002", "dog, Hund\r\nn00000001", "café\r\n"]
  path = tmp_path / "synset_words.txt"
  path.write_bytes(between.join(lines).encode(encoding))
  synsets = imagenet_files.load_synsets(tmp_path)
  assert synsets.wnids == ("n00000001", "n00000002")
  assert synsets.names == ("café", "dog")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "synset_words.txt must name at least two classes, and names 0"),
    (b"n1 a\n", "must name at least two classes, and names 1"),
    (b"n1 a\nn1 b\n", "synset_words.txt:2 must be a new wnid"),
    (b"n1 a\ncat b\n", "synset_words.txt:2 must be a new wnid"),
    (b"n1,a\n", "synset_words.txt:1 must be a new wnid"),
    (b"n1 a\nn2 caf\xe9\n", "synset_words.txt, line 2 must be UTF-8"),
  ],
)
def test_a_list_of_synsets_that_cannot_be_read_is_named(
  tmp_path, content, message
):
  (tmp_path / "synset_words.txt").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    imagenet_files.load_synsets(tmp_path)


def test_without_the_kit_the_class_is_that_of_the_first_box(
  folder, built, tmp_path
):
  as_a_subset(folder)
  message = refused(folder, tmp_path, "validation")
  assert "The class of ILSVRC2012_val_00000008.JPEG must be known" in message
  boxed = {name: p for name, p in built[1]["validation"].items() if p.boxes}
  (folder / VALIDATION).write_bytes(
    tar_of((name, picture.image) for name, picture in boxed.items())
  )
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  assert dataset.class_names == archives.CLASS_NAMES
  check_records(dataset, boxed)


def test_a_thousand_classes_must_have_the_official_number_of_pictures(
  folder, tmp_path
):
  (folder / DEVKIT).unlink()
  wnids = [*archives.CLASSES, *(f"n9{i:07d}" for i in range(996))]
  (folder / "synset_words.txt").write_text("\n".join(wnids))
  message = refused(folder, tmp_path, "validation")
  assert "must have 50,000 images and has 12" in message


# Boxes.


def parse(*corners, size=(100, 50), wnid="n01440764"):
  counts = collections.Counter()
  data = xml("x", size, [(wnid, c, 0) for c in corners])
  boxes = imagenet_files.scaled_boxes(voc_xml.read(data), counts)
  pixels = [np.array(b.bbox) * [50, 100, 50, 100] for b in boxes]
  return np.array(pixels).round(6).tolist(), counts


def test_corners_are_inclusive_and_count_from_one():
  # The pixel at the top left; the whole picture; and counted from 0.
  boxes, counts = parse((1, 1, 1, 1), (1, 1, 100, 50), (0, 0, 100, 50))
  assert boxes == [[0, 0, 1, 1], [0, 0, 50, 100], [0, 0, 50, 100]]
  assert not counts


def test_boxes_outside_or_inverted_are_clipped_or_left_out_and_counted():
  boxes, counts = parse(
    (90, 40, 130, 60), (-5, 3, 10, 20), (120, 5, 130, 10), (50, 5, 40, 10)
  )
  assert boxes == [[39, 89, 50, 100], [2, 0, 20, 10]]
  assert counts == {
    "boxes clipped to the picture": 2,
    "boxes left out: outside the picture": 1,
    "boxes left out: inverted": 1,
  }


def test_every_box_is_used_or_counted_and_it_is_said(folder, tmp_path, capsys):
  name, size = "ILSVRC2012_val_00000001", (80, 60)
  said = [
    ("n01440764", (5, 5, 900, 20), 0),
    ("n01440764", (50, 5, 40, 10), 0),
    ("n00015388", (1, 1, 20, 20), 0),
    ("n01440764", (90, 1, 95, 20), 0),
    ("n01440764", (1, 1, 9, 20), 0),
  ]
  second = [("n01440764", (2, 2, 3, 3), 0)]
  entries = [
    (f"val/{name}.XML", xml(name, size, boxes)) for boxes in (said, second)
  ]
  entries.append(("val/._x.xml", b"of macOS"))
  archives.write_gzipped(folder / BOXES, entries)
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  told = capsys.readouterr().err
  counted = {what: int(n) for n, what in re.findall(r"; (\d+) ([^;\n]*)", told)}
  assert counted == {
    "annotations left out: second of a picture": 1,
    "boxes clipped to the picture": 1,
    "boxes left out: inverted": 1,
    "boxes left out: outside the picture": 1,
    "boxes left out: unknown class": 1,
    "boxes read": 5,
    "boxes used": 2,
    "pictures without a box": 11,
  }
  found = dataset.source[0]["objects"]["bbox"]
  # Corners count from 0 here, whatever the release makes of them.
  expected = [[5 / 60, 5 / 80, 21 / 60, 1], [1 / 60, 1 / 80, 21 / 60, 10 / 80]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  sliced = dataset.source[0]["objects"]["sliced"]
  expected = [[4 / 60, 4 / 80, 20 / 60, 900 / 80], [0, 0, 20 / 60, 9 / 80]]
  np.testing.assert_allclose(sliced, expected, rtol=1e-6)


FRACTIONS = xml("x", (90, 90), [("n1", (0.1, 0.1, 0.5, 0.5), 0)] * 2)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"<annotation>", "val/x.xml: it must be XML"),
    (b"<annotation/>", "val/x.xml: its size must be positive"),
    (xml("x", (9, 9), [("n1", (1, "", 2, 2), 0)]), "object 1: <ymin>: ''"),
    (FRACTIONS, "all 2 boxes lie within 0 and 1, the first val/x.xml, obje"),
  ],
)
def test_a_broken_annotation_is_named(folder, tmp_path, data, message):
  archives.write_gzipped(folder / BOXES, [("val/x.xml", data)])
  refusal = refused(folder, tmp_path, "validation")
  assert BOXES in refusal and message in refusal


@pytest.mark.parametrize(
  ("entries", "held"),
  [
    ([("a.txt", b""), ("val/b.json", b"{}")], "it holds .json 1, .txt 1"),
    ([("val/._x.xml", b"of macOS")], "it holds nothing"),
  ],
)
def test_an_archive_without_boxes_says_what_it_holds(
  folder, tmp_path, entries, held
):
  archives.write_gzipped(folder / BOXES, entries)
  message = refused(folder, tmp_path, "validation")
  assert f"{folder / BOXES} must hold an .xml file for each picture" in message
  assert held in message


# As TFDS prepared it.


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS's imagenet2012: the same name, features and splits."""

  name = "imagenet2012"
  VERSION = tfds.core.Version("5.1.0")

  def __init__(self, pictures, **kwargs):
    self.pictures = pictures
    super().__init__(**kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(names=archives.CLASSES),
          "file_name": tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(name) for name in self.pictures}

  def _generate_examples(self, split):
    for name, picture in self.pictures[split].items():
      yield (
        name,
        {"image": picture.image, "label": picture.label, "file_name": name},
      )


@pytest.fixture
def prepared(built, folder):
  """The box archive and the kit, beside what TFDS prepared."""
  (folder / TRAIN).unlink()
  (folder / VALIDATION).unlink()
  builder = Imagenet2012(built[1], data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return folder


def test_tfds_records_are_joined_with_the_boxes(prepared, built, tmp_path):
  dataset = imagenet.load("validation", path=prepared, data_dir=tmp_path)
  assert dataset.class_names == archives.CLASS_NAMES
  assert dataset.name == "tfds/imagenet2012/5.1.0"
  check_records(dataset, built[1]["validation"])
  assert not list(tmp_path.glob("imagenet/*")), "nothing is copied"
  train = imagenet.load("train[:50%]", path=prepared, data_dir=tmp_path)
  assert len(train.source) == 21
  _, batch = evaluated.batch(dataset, 32)
  assert batch["object_mask"].any((1, 2)).sum() == 11
  with pytest.raises(
    ValueError, match=r"must be a split .*: its parts are of train and valid"
  ):
    imagenet.load("train[:10]+validation[:5]", path=prepared, data_dir=tmp_path)


def test_without_boxes_or_kit_it_still_classifies(prepared, tmp_path, capsys):
  (prepared / BOXES).unlink()
  (prepared / DEVKIT).unlink()
  dataset = imagenet.load("validation", path=prepared, data_dir=tmp_path)
  assert dataset.class_names == archives.CLASSES
  assert "explanations cannot be scored" in capsys.readouterr().err
  assert not any(len(r["objects"]["label"]) for r in dataset.source)


def test_tfrecord_is_answered_with_the_command_that_converts(
  prepared, tmp_path
):
  info = prepared / "imagenet2012/5.1.0/dataset_info.json"
  text = info.read_text()
  assert '"fileFormat": "array_record"' in text
  info.write_text(text.replace("array_record", "tfrecord"))
  message = (
    r"holds tfrecord. (.|\n)*tfds convert_format --dataset_version_dir=\S+image"
    r"net2012/5.1.0 --out_file_format=array_record --out_dir=\S+"
  )
  with pytest.raises(ValueError, match=message):
    imagenet.load("validation", path=prepared, data_dir=tmp_path)


def test_the_newest_version_is_taken(tmp_path):
  for version in ("5.1.0", "5.10.0", "5.2.0"):
    folder = tmp_path / "imagenet2012" / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
  assert imagenet.find_tfds(tmp_path).name == "5.10.0"
  assert imagenet.find_tfds(folder) == folder
  assert imagenet.find_tfds(tmp_path.parent) is None
