"""ImageNet's official files in, records out: on small archives of real photos.

The folder of archives is built by `archives`, format for format.
"""

import collections
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from gc_jax.data import geometry
from gc_jax.data.sets import imagenet, imagenet_files, official, voc_xml
from tests.data import archives, evaluated

SPLITS = ("train", "validation")
FINAL = f"imagenet/{{}}/{imagenet_files.RELEASE.version}"
TRAIN, VALIDATION = (imagenet_files.ARCHIVES[split] for split in SPLITS)


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
  copy = tmp_path / "archives"
  shutil.copytree(built[0], copy)
  return copy


def digest(dataset):
  """Of every value of every record, in order."""
  whole = hashlib.sha256()
  for record in dataset.source:
    whole.update(record["file_name"] + record["image"])
    objects = record["objects"]
    for numbers in (
      record["labels"],
      objects["label"],
      objects["bbox"],
      objects["difficult"],
    ):
      whole.update(np.array(numbers).tobytes())
  return whole.hexdigest()


def check_objects(objects, picture):
  assert [int(k) for k in objects["label"]] == [b[0] for b in picture.boxes]
  assert [bool(d) for d in objects["difficult"]] == [
    b[2] for b in picture.boxes
  ]
  width, height = picture.size
  for read, (_, (xmin, ymin, xmax, ymax), _) in zip(
    objects["bbox"], picture.boxes, strict=True
  ):
    pixels = np.array(read) * [height, width, height, width]
    # float32 shares of at most 220 pixels.
    np.testing.assert_allclose(pixels, [ymin, xmin, ymax, xmax], atol=1e-4)


@pytest.mark.parametrize("split", SPLITS)
def test_every_record_is_what_the_archives_say(built, tfds_dir, split):
  wanted = dict(built[1][split])
  dataset = imagenet.load(split, path=built[0], data_dir=tfds_dir)
  assert len(dataset.source) == len(wanted)
  for record in dataset.source:
    picture = wanted.pop(record["file_name"].decode())
    assert record["image"] == picture.image, "no byte may change"
    assert [int(k) for k in record["labels"]] == [picture.label]
    check_objects(record["objects"], picture)
  assert not wanted


def test_there_are_over_forty_pictures_with_and_without_boxes(built):
  pictures = [p for split in built[1].values() for p in split.values()]
  assert len(pictures) >= 40
  assert 10 < sum(bool(p.boxes) for p in pictures) < len(pictures)


def test_classes_are_in_the_order_of_their_wnids_with_readable_names(tfds_dir):
  dataset = imagenet.load("train", path="", data_dir=tfds_dir)
  assert dataset.class_names == archives.CLASS_NAMES
  assert not dataset.multi_label


def test_names_that_repeat_are_told_apart():
  words = ["maillot", "maillot, tank suit", "crane", "crane", "cab, taxi"]
  wnids = ["n03710637", "n03710721", "n02012849", "n03126707", "n02930766"]
  assert imagenet_files.readable_names(words, wnids) == (
    "maillot",
    "maillot, tank suit",
    "crane (n02012849)",
    "crane (n03126707)",
    "cab",
  )


def test_the_odd_pictures_are_found_by_content_and_decode(built, tfds_dir):
  wanted = built[1]["train"]
  kinds = {imagenet.picture_kind(p.image): p.image for p in wanted.values()}
  assert set(kinds) == {
    "",
    "CMYK pictures",
    "grey pictures",
    "pictures that are PNG",
  }
  for image in kinds.values():
    assert geometry.decode_image(image, 64).shape == (64, 64, 3)
  assert imagenet.picture_kind(b"") == "pictures that cannot be opened"
  assert imagenet.picture_kind(b"text") == "pictures that cannot be opened"


def test_a_part_of_training_shows_every_class_and_parts_make_the_whole(
  tfds_dir,
):
  def load(split):
    dataset = imagenet.load(split, path="", data_dir=tfds_dir)
    return dataset, [r["file_name"] for r in dataset.source]

  whole = load("train")[1]
  first, rest = load("train[:60%]"), load("train[60%:]")
  assert first[1] + rest[1] == whole
  assert len(first[1]) == round(0.6 * len(whole))
  for dataset, _ in (first, rest):
    shown = {int(r["labels"][0]) for r in dataset.source}
    assert shown == set(range(4))
  # Validation keeps its own order.
  assert load("validation[:3]")[1] == [
    f"ILSVRC2012_val_{i:08d}.JPEG".encode() for i in (1, 2, 3)
  ]


def test_a_part_that_is_none_is_answered(tfds_dir):
  with pytest.raises(ValueError, match=r"split='train\[:x\]' must be a split"):
    imagenet.load("train[:x]", path="", data_dir=tfds_dir)
  with pytest.raises(ValueError, match="Did you mean 'validation'"):
    imagenet.load("validaton", path="", data_dir=tfds_dir)


def test_pictures_reach_evaluation_with_their_boxes(built, tfds_dir):
  dataset = imagenet.load("validation", path=built[0], data_dir=tfds_dir)
  _, batch = evaluated.batch(dataset, 32)
  shown = batch["object_mask"].any((1, 2))
  # The eighth has none, and is left out of the metrics of maps by that.
  assert shown.tolist() == [i != 7 for i in range(12)]


def test_a_second_run_reads_what_is_there(built, tfds_dir, monkeypatch):
  def never(*_):
    raise AssertionError("read again")

  monkeypatch.setattr(official.Release, "opened", never)
  dataset = imagenet.load("train", path=built[0], data_dir=tfds_dir)
  assert len(dataset.source) == len(built[1]["train"])


def test_a_split_needs_only_its_own_archive(folder, tmp_path):
  (folder / TRAIN).unlink()
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  assert len(dataset.source) == archives.NUM_VALIDATION


PROGRAM = """
import os, signal, sys
from gc_jax.data.sets import imagenet, imagenet_files

read_members = imagenet_files.read_members
seen = []

def deadly(read):
  def reading(*arguments):
    for name, data in read(*arguments):
      seen.append(name)
      if len(seen) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
      yield name, data
  return reading

imagenet_files.read_members = deadly(read_members)
imagenet.load(sys.argv[1], path=sys.argv[2], data_dir=sys.argv[3])
"""


def prepare_and_die(split, path, data_dir, at):
  return subprocess.run(
    [sys.executable, "-c", PROGRAM, split, str(path), str(data_dir), str(at)],
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ("split", "at", "kept"), [("train", 25, 2), ("validation", 6, 5)]
)
def test_kill_9_and_again_is_the_same_and_finished_parts_are_kept(
  built, tfds_dir, tmp_path, capsys, split, at, kept
):
  died = prepare_and_die(split, built[0], tmp_path, at)
  assert died.returncode == -signal.SIGKILL, died.stderr
  (parts,) = tmp_path.glob(f"imagenet/{split}/incomplete.parts_*")
  before = {p.name: p.stat().st_ino for p in parts.glob("*array_record-*-of-*")}
  finished = {k: v for k, v in before.items() if "unfinished" not in k}
  assert len(finished) == kept
  assert len(before) == kept + 1, "one was being written"

  dataset = imagenet.load(split, path=built[0], data_dir=tmp_path)
  assert f"Continuing: {kept} of" in capsys.readouterr().err
  (folder,) = tmp_path.glob(f"imagenet/{split}/[!.]*")
  assert folder.name == imagenet_files.RELEASE.version
  assert not list(folder.glob("*finished*"))
  for name, inode in finished.items():
    assert (folder / name).stat().st_ino == inode, f"{name} was written again"
  whole = imagenet.load(split, path=built[0], data_dir=tfds_dir)
  assert digest(dataset) == digest(whole)
  facts = [
    (root / FINAL.format(split) / "facts.json").read_text()
    for root in (tmp_path, tfds_dir)
  ]
  assert facts[0] == facts[1], "counts of killed runs must not add up"


def test_parts_of_other_archives_are_not_kept(built, folder, tmp_path, capsys):
  prepare_and_die("train", built[0], tmp_path, 25)
  (folder / "ILSVRC2012_bbox_train_v2.tar.gz").unlink()
  dataset = imagenet.load("train", path=folder, data_dir=tmp_path)
  said = capsys.readouterr().err
  assert "Continuing" not in said
  assert "No ILSVRC2012_bbox_train_v2.tar.gz" in said
  assert not any(len(r["objects"]["label"]) for r in dataset.source)


def test_prepared_data_of_other_archives_is_not_taken_for_these(
  folder, tmp_path
):
  imagenet.load("validation", path=folder, data_dir=tmp_path)
  with (folder / VALIDATION).open("ab") as file:
    file.write(bytes(10_240))
  with pytest.raises(
    ValueError,
    match=r"img_val.tar has [\d,]+ bytes now where .* saw [\d,]+ bytes; set "
    r"--config.data.dir",
  ):
    imagenet.load("validation", path=folder, data_dir=tmp_path)


def refused(folder, tmp_path, split="train"):
  """Returns the message, and sees that nothing came of it."""
  with pytest.raises(ValueError) as caught:
    imagenet.load(split, path=folder, data_dir=tmp_path / "tfds")
  assert not (tmp_path / "tfds" / FINAL.format(split)).exists()
  return str(caught.value)


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_without_a_folder_the_message_says_what_to_set(tmp_path, path):
  message = refused(path and tmp_path / path, tmp_path)
  assert re.search(r"--config.data.path='.*' must be the folder of", message)
  assert "https://image-net.org" in message


@pytest.mark.parametrize(
  ("split", "name"),
  [
    ("train", TRAIN),
    ("validation", VALIDATION),
    ("train", imagenet_files.DEVKIT),
  ],
)
def test_a_missing_archive_is_named_with_where_to_get_it(
  folder, tmp_path, split, name
):
  (folder / name).unlink()
  message = refused(folder, tmp_path, split)
  assert f"--config.data.path='{folder}' must hold {name}" in message
  assert "it holds ILSVRC2012_" in message
  assert "https://image-net.org" in message


@pytest.mark.parametrize(
  ("split", "name", "share"),
  [
    ("train", TRAIN, 0.9),
    ("train", TRAIN, 0.6),
    ("train", TRAIN, 0.0),
    ("validation", VALIDATION, 0.7),
    ("train", imagenet_files.DEVKIT, 0.5),
    ("validation", imagenet_files.BOXES["validation"], 0.5),
    ("train", imagenet_files.BOXES["train"], 0.9),
  ],
)
def test_a_truncated_archive_is_named(folder, tmp_path, split, name, share):
  path = folder / name
  whole = path.read_bytes()
  path.write_bytes(whole[: int(share * len(whole))])
  message = refused(folder, tmp_path, split)
  assert name in message
  assert "cut short" in message


def test_text_in_place_of_an_archive_is_named(folder, tmp_path):
  (folder / TRAIN).write_text("<html>please log in</html>" * 99)
  assert "img_train.tar must be the whole" in refused(folder, tmp_path)


def rewrite_train(folder, change):
  """Passes every class's entries through `change(wnid, entries)`."""
  path, classes = folder / TRAIN, []
  with tarfile.open(path) as outer:
    for member in outer:
      with tarfile.open(fileobj=outer.extractfile(member)) as inner:
        entries = [(m.name, inner.extractfile(m).read()) for m in inner]
      wnid = member.name.removesuffix(".tar")
      entries = change(wnid, entries)
      if entries:
        classes.append((member.name, archives.tar_of(entries)))
  path.write_bytes(archives.tar_of(classes))


def test_a_class_with_a_picture_too_few_is_named(folder, tmp_path):
  rewrite_train(folder, lambda wnid, e: e[1:] if wnid == "n02012849" else e)
  message = refused(folder, tmp_path)
  assert "n02012849 must have 10 images and has 9" in message


def test_a_class_that_is_missing_or_strange_is_named(folder, tmp_path):
  rewrite_train(folder, lambda wnid, e: e if wnid != "n02012849" else [])
  assert "it lacks n02012849" in refused(folder, tmp_path)
  archives.write_devkit(folder, [], synsets=archives.SYNSETS[1:])
  assert "it has n02105855" in refused(folder, tmp_path)


def test_a_picture_that_occurs_twice_is_named(folder, tmp_path):
  rewrite_train(folder, lambda wnid, e: [e[0], *e[:-1]])
  assert re.search(r"n\d+_5.JPEG occurs twice", refused(folder, tmp_path))


def test_files_that_are_no_pictures_are_passed_over(
  folder, built, tfds_dir, tmp_path
):
  path = folder / VALIDATION
  with tarfile.open(path, "a") as tar:
    archives.add(tar, "._ILSVRC2012_val_00000003.JPEG", b"of macOS")
    archives.add(tar, "readme.txt", b"text")
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  whole = imagenet.load("validation", path="", data_dir=tfds_dir)
  assert digest(dataset) == digest(whole)


def renamed(name, ending):
  return name.removesuffix(".JPEG") + ending


@pytest.mark.parametrize(
  "endings", [(".jpg",), (".JPG", ".jpeg", ".JPEG", ".png")]
)
@pytest.mark.parametrize("split", SPLITS)
def test_pictures_are_known_by_any_ending_in_any_case(
  folder, built, tmp_path, split, endings
):
  """A subset's own archive is often made of .jpg files."""

  def change(entries):
    return [
      (renamed(name, endings[i % len(endings)]), data)
      for i, (name, data) in enumerate(entries)
    ]

  if split == "train":
    rewrite_train(folder, lambda _, entries: change(entries))
  else:
    path = folder / VALIDATION
    with tarfile.open(path) as tar:
      entries = [(m.name, tar.extractfile(m).read()) for m in tar]
    path.write_bytes(archives.tar_of(change(entries)))
  dataset = imagenet.load(split, path=folder, data_dir=tmp_path)
  wanted = {name[: -len(".JPEG")]: p for name, p in built[1][split].items()}
  assert len(dataset.source) == len(wanted)
  for record in dataset.source:
    stem, _, ending = record["file_name"].decode().rpartition(".")
    picture = wanted.pop(stem)
    assert f".{ending}" in endings
    assert record["image"] == picture.image
    assert [int(k) for k in record["labels"]] == [picture.label]
    check_objects(record["objects"], picture)


def as_a_subset(folder):
  """Takes the counts of the kit away: a list of synsets is left."""
  (folder / imagenet_files.DEVKIT).unlink()
  lines = [f"{s.wnid} {s.words}\n" for s in archives.SYNSETS if not s.children]
  (folder / "LOC_synset_mapping.txt").write_text("".join(lines))


@pytest.mark.parametrize("with_kit", [True, False])
def test_a_class_without_pictures_says_what_it_holds(
  folder, tmp_path, with_kit
):
  if not with_kit:
    as_a_subset(folder)

  def change(wnid, entries):
    if wnid != "n02012849":
      return entries
    return [("notes.txt", b""), *((f"{n}.TXT", b"") for n, _ in entries)]

  whole = (folder / TRAIN).read_bytes()
  rewrite_train(folder, change)
  message = refused(folder, tmp_path)
  assert "n02012849.tar in " in message
  assert "holds none: it has 11 other files (.txt 11)" in message
  (folder / TRAIN).write_bytes(whole)
  dataset = imagenet.load("train", path=folder, data_dir=tmp_path / "tfds")
  assert len(dataset.source) == sum(archives.NUM_TRAIN.values())


@pytest.mark.parametrize("with_kit", [True, False])
@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ([], r"img_train.tar must hold an archive for each .*: it is empty"),
    (
      [("n01440764/a.jpg", b"a"), ("n01440764/b.jpg", b"b"), ("c", b"c")],
      r"img_train.tar must hold an archive for each class, .* and holds none: "
      r"it has 3 other files \(.jpg 2, no ending 1\)",
    ),
    (
      [("n01440764.tar.gz", b"a")],
      r"an archive for each class, .*: it has 1 other files \(.gz 1\)",
    ),
    (
      [(f"{wnid}.tar", archives.tar_of([])) for wnid in archives.CLASSES],
      r"n01440764.tar in .* must hold pictures .* and holds none: it is empty",
    ),
    (
      [
        (f"{w}.tar", archives.tar_of([(f"{w}.tar", archives.tar_of([]))]))
        for w in archives.CLASSES
      ],
      r"n01440764.tar in .* holds none: it has 1 other files \(.tar 1\)",
    ),
    (
      [(f"{wnid}.tar", b"no archive" * 60) for wnid in archives.CLASSES],
      r"img_train.tar must be the whole official file and is damaged",
    ),
  ],
)
def test_a_training_archive_without_pictures_says_what_it_holds(
  folder, tmp_path, entries, message, with_kit
):
  if not with_kit:
    as_a_subset(folder)
  (folder / TRAIN).write_bytes(archives.tar_of(entries))
  refusal = refused(folder, tmp_path)
  assert re.search(message, refusal), refusal


@pytest.mark.parametrize(
  ("entries", "held"),
  [
    ([], "it is empty"),
    ([("a.txt", b"a"), ("b.TXT", b"b")], r"it has 2 other files \(.txt 2\)"),
    ([("._ILSVRC2012_val_00000001.JPEG", b"of macOS")], "it is empty"),
  ],
)
def test_a_validation_archive_without_pictures_says_what_it_holds(
  folder, tmp_path, entries, held
):
  as_a_subset(folder)
  (folder / VALIDATION).write_bytes(archives.tar_of(entries))
  message = refused(folder, tmp_path, "validation")
  assert re.search(f"img_val.tar must hold pictures .*none: {held}", message)


def test_other_files_of_archives_are_counted(folder, tmp_path, capsys):
  rewrite_train(folder, lambda _, entries: [("a.txt", b""), *entries])
  with tarfile.open(folder / TRAIN, "a") as tar:
    archives.add(tar, "._n01440764.tar", b"of macOS")
    archives.add(tar, "README", b"text")
  dataset = imagenet.load("train", path=folder, data_dir=tmp_path)
  said = capsys.readouterr().err
  assert "4 files passed over (.txt)" in said
  assert "1 files passed over (no ending)" in said
  assert len(dataset.source) == sum(archives.NUM_TRAIN.values())


@pytest.mark.parametrize("split", SPLITS)
def test_a_damaged_header_does_not_end_an_archive(folder, tmp_path, split):
  """Python takes it for the end, and the pictures behind it for nothing."""
  as_a_subset(folder)
  name = TRAIN if split == "train" else VALIDATION
  with tarfile.open(folder / name) as tar:
    start = tar.getmembers()[2].offset
  if split == "train":
    start += 512 + 512  # within the class's archive: its first picture's data
    with tarfile.open(folder / name) as tar:
      member = tar.getmembers()[2]
      with tarfile.open(fileobj=tar.extractfile(member)) as inner:
        start = member.offset_data + inner.getmembers()[3].offset
  content = bytearray((folder / name).read_bytes())
  content[start : start + 512] = b"damaged!" * 64
  (folder / name).write_bytes(content)
  message = refused(folder, tmp_path, split)
  assert re.search(rf"{name} must be the whole .* starts no file", message)


def test_every_box_is_used_or_counted(folder, tmp_path, capsys):
  name, size = "ILSVRC2012_val_00000001", (80, 60)
  said = [
    ("n01440764", (5, 5, 900, 20), 0),
    ("n01440764", (50, 5, 40, 10), 0),
    ("n00015388", (1, 1, 20, 20), 0),
    ("n01440764", (90, 1, 95, 20), 0),
    ("n01440764", (1, 1, 9, 20), 0),
  ]
  archives.write_boxes(
    folder / imagenet_files.BOXES["validation"],
    [(f"val/{name}.xml", archives.xml(name, size, said))],
  )
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  told = capsys.readouterr().err
  counted = {what: int(n) for n, what in re.findall(r"; (\d+) ([^;\n]*)", told)}
  assert counted["boxes read"] == 5
  assert counted["boxes used"] == 2
  assert sum(len(r["objects"]["label"]) for r in dataset.source) == 2
  left_out = [n for what, n in counted.items() if "boxes left out" in what]
  assert sum(left_out) == 3


def test_ground_truth_must_fit_the_pictures(folder, tmp_path):
  archives.write_devkit(folder, [1] * 13)
  message = refused(folder, tmp_path, "validation")
  assert "img_val.tar" in message
  assert "it must have 13 images and has 12" in message
  archives.write_devkit(folder, [1, 1_001] * 6)
  message = refused(folder, tmp_path, "validation")
  assert "no class has ILSVRC2012_ID 1001" in message


@pytest.mark.parametrize(
  ("truth", "message"),
  [
    (["x"], r"ground_truth.txt, line 1, must be the ILSVRC2012_ID .* is 'x'"),
    ([1, "-2"], r"line 2, must be the ILSVRC2012_ID of a class, and is '-2'"),
    ([1, 2.5], r"line 2, must be the ILSVRC2012_ID of a class, and is '2.5'"),
    ([1, "é"], r"line 2, must be the ILSVRC2012_ID of a class"),
    ([0], r"no class has ILSVRC2012_ID 0"),
  ],
)
def test_ground_truth_that_is_no_number_is_named(
  folder, tmp_path, truth, message
):
  archives.write_devkit(folder, truth)
  refusal = refused(folder, tmp_path, "validation")
  assert "devkit_t12.tar.gz must be the whole" in refusal
  assert re.search(message, refusal), refusal


@pytest.mark.parametrize("meta", [b"", b"text", b"\0" * 300, None])
def test_a_table_of_the_kit_that_cannot_be_read_is_named(
  folder, tmp_path, meta
):
  import scipy.io

  if meta is None:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"something": np.zeros(3)})
    meta = buffer.getvalue()
  with tarfile.open(folder / imagenet_files.DEVKIT, "w:gz") as tar:
    archives.add(tar, "kit/data/meta.mat", meta)
    name = "kit/data/ILSVRC2012_validation_ground_truth.txt"
    archives.add(tar, name, b"1\n")
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


def test_a_list_of_synsets_does_in_place_of_the_kit(folder, built, tmp_path):
  (folder / imagenet_files.DEVKIT).unlink()
  # The class of a picture is then that of its first box, which the eighth of
  # these lacks.
  entries = [
    (name, picture)
    for name, picture in built[1]["validation"].items()
    if picture.boxes
  ]
  (folder / VALIDATION).write_bytes(
    archives.tar_of((name, p.image) for name, p in entries)
  )
  words = {s.wnid: s.words for s in archives.SYNSETS if not s.children}
  (folder / "LOC_synset_mapping.txt").write_text(
    "".join(f"{wnid} {text}\n" for wnid, text in words.items())
  )
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  assert dataset.class_names == archives.CLASS_NAMES
  assert [int(r["labels"][0]) for r in dataset.source] == [
    p.label for _, p in entries
  ]

  (folder / VALIDATION).write_bytes(
    archives.tar_of((n, p.image) for n, p in built[1]["validation"].items())
  )
  message = refused(folder, tmp_path, "validation")
  assert "The class of ILSVRC2012_val_00000008.JPEG must be known" in message

  (folder / "LOC_synset_mapping.txt").write_text("tench, Tinca tinca\n")
  assert "LOC_synset_mapping.txt:1 must be a new wnid" in refused(
    folder, tmp_path
  )


def test_a_thousand_classes_must_be_as_many_pictures_as_official(
  folder, tmp_path
):
  (folder / imagenet_files.DEVKIT).unlink()
  wnids = [*archives.CLASSES, *(f"n9{i:07d}" for i in range(996))]
  (folder / "synset_words.txt").write_text("\n".join(wnids))
  message = refused(folder, tmp_path, "validation")
  assert "must have 50,000 images and has 12" in message


def parse(*corners, size=(100, 50), wnid="n01440764"):
  counts = collections.Counter()
  data = archives.xml("x", size, [(wnid, c, 0) for c in corners])
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


def test_what_was_odd_is_told_once(folder, built, tmp_path, capsys):
  name, size = "ILSVRC2012_val_00000001", (80, 60)
  said = [
    ("n01440764", (5, 5, 900, 20), 0),
    ("n01440764", (50, 5, 40, 10), 0),
    ("n00015388", (1, 1, 20, 20), 0),
  ]
  archives.write_boxes(
    folder / imagenet_files.BOXES["validation"],
    [(f"val/{name}.xml", archives.xml(name, size, said))],
  )
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  said = capsys.readouterr().err
  for odd in (
    "1 boxes clipped to the picture",
    "1 boxes left out: inverted",
    "1 boxes left out: unknown class",
    "11 pictures without a box",
  ):
    assert odd in said
  (box,) = dataset.source[0]["objects"]["bbox"]
  np.testing.assert_allclose(box, [4 / 60, 4 / 80, 20 / 60, 1], rtol=1e-6)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"<annotation>", "no element found"),
    (b"", "no element found"),
    (archives.xml("x", (0, 5), []), "size must be positive"),
    (archives.xml("x", (0, 0), []), "size must be positive"),
    (archives.xml("x", ("a", 5), []), "<width>: 'a' must be a number"),
    (b"<annotation/>", "val/x.xml"),
    (b"<html>please log in</html>", "must be VOC's XML"),
    (archives.xml("x", (9, 9), [("", (1, 1, 2, 2), 0)]), "name must be"),
    (
      archives.xml("x", (9, 9), [("n1", (1, "", 2, 2), 0)]),
      "object 1: <ymin>: '' must be a number",
    ),
    (
      archives.xml("x", (9, 9), [("n1", (1, 1, 2, 2), "maybe")]),
      "object 1: difficult: 'maybe' must be",
    ),
    (
      b'<!DOCTYPE a [<!ENTITY a "b">]><annotation/>',
      "must not define entities",
    ),
    (
      archives.xml("x", (90, 90), [("n1", (0.1, 0.1, 0.5, 0.5), 0)] * 2),
      "all 2 boxes lie within 0 and 1, the first val/x.xml, object 1",
    ),
  ],
)
def test_a_broken_annotation_is_named(folder, tmp_path, data, message):
  path = folder / imagenet_files.BOXES["validation"]
  archives.write_boxes(path, [("val/x.xml", data)])
  refusal = refused(folder, tmp_path, "validation")
  assert path.name in refusal
  assert message in refusal


@pytest.mark.parametrize(
  ("entries", "held"),
  [
    ([], "it holds nothing"),
    ([("a.txt", b""), ("val/b.json", b"{}")], "it holds .json 1, .txt 1"),
    ([("val/._x.xml", b"of macOS")], "it holds nothing"),
  ],
)
def test_an_archive_of_boxes_without_any_says_what_it_holds(
  folder, tmp_path, entries, held
):
  path = folder / imagenet_files.BOXES["validation"]
  archives.write_boxes(path, entries)
  message = refused(folder, tmp_path, "validation")
  assert f"{path} must hold an .xml file for each picture" in message
  assert held in message


def test_boxes_are_known_by_their_ending_in_any_case(tmp_path):
  path = tmp_path / "boxes.tgz"
  entry = archives.xml("x", (90, 90), [("n1", (1, 1, 50, 50), "True")])
  hidden = ("._x.xml", b"of macOS")
  archives.write_boxes(path, [hidden, ("a/X.XML", entry)])
  counts = collections.Counter()
  found = imagenet_files.read_boxes(path, counts)
  assert found["X"][0].difficult
  assert counts == {"boxes read": 1}


def test_of_two_annotations_of_a_picture_the_first_counts(
  folder, tmp_path, capsys
):
  name, size = "val/ILSVRC2012_val_00000001.xml", (9, 9)
  corners = ((1, 1, 9, 9), (2, 2, 3, 3))
  entries = [
    (name, archives.xml("x", size, [("n01440764", c, 0)])) for c in corners
  ]
  archives.write_boxes(folder / imagenet_files.BOXES["validation"], entries)
  dataset = imagenet.load("validation", path=folder, data_dir=tmp_path)
  assert "1 annotations left out: second of a" in capsys.readouterr().err
  (box,) = dataset.source[0]["objects"]["bbox"]
  assert box.tolist() == [0, 0, 1, 1]


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


def test_what_tfds_prepared_is_joined_with_the_boxes(prepared, built, tmp_path):
  dataset = imagenet.load("validation", path=prepared, data_dir=tmp_path)
  assert dataset.class_names == archives.CLASS_NAMES
  assert dataset.name == "tfds/imagenet2012/5.1.0"
  wanted = dict(built[1]["validation"])
  for record in dataset.source:
    picture = wanted.pop(record["file_name"].decode())
    assert record["image"] == picture.image
    assert record["labels"].tolist() == [picture.label]
    check_objects(record["objects"], picture)
  assert not wanted
  assert not list(tmp_path.glob("imagenet/*")), "nothing is copied"
  train = imagenet.load("train[:50%]", path=prepared, data_dir=tmp_path)
  assert len(train.source) == 21
  _, batch = evaluated.batch(dataset, 32)
  assert batch["object_mask"].any((1, 2)).sum() == 11


def test_parts_of_two_splits_are_refused(prepared, tmp_path):
  with pytest.raises(
    ValueError, match=r"must be a split .*: its parts are of train and valid"
  ):
    imagenet.load("train[:10]+validation[:5]", path=prepared, data_dir=tmp_path)


def test_without_boxes_or_kit_it_still_classifies(prepared, tmp_path, capsys):
  (prepared / imagenet_files.BOXES["validation"]).unlink()
  (prepared / imagenet_files.DEVKIT).unlink()
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
  with pytest.raises(
    ValueError,
    match=r"holds tfrecord. (.|\n)*tfds convert_format "
    r"--dataset_version_dir=\S+imagenet2012/5.1.0 "
    r"--out_file_format=array_record --out_dir=\S+",
  ):
    imagenet.load("validation", path=prepared, data_dir=tmp_path)


def test_the_newest_version_is_taken(tmp_path):
  for version in ("5.1.0", "5.10.0", "5.2.0"):
    folder = tmp_path / "imagenet2012" / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
  assert imagenet.find_tfds(tmp_path).name == "5.10.0"
  assert imagenet.find_tfds(folder) == folder
  assert imagenet.find_tfds(folder.parent.parent.parent) is None


def test_the_fixture_writes_the_kit_as_it_is():
  table = imagenet_files_table()
  assert table.shape == (6, 1)
  leaf, inner = table[0, 0], table[4, 0]
  assert (leaf["ILSVRC2012_ID"].item(), str(leaf["WNID"].item())) == (
    1,
    "n03126707",
  )
  assert inner["children"].tolist() == [[1002, 1]]


def imagenet_files_table():
  import scipy.io

  return scipy.io.loadmat(io.BytesIO(archives.meta_mat()))["synsets"]


def test_pictures_are_photographs_of_many_sizes(built):
  sizes = {
    PIL.Image.open(io.BytesIO(p.image)).size for p in built[1]["train"].values()
  }
  assert len(sizes) > 30
