"""TFDS's own builders run over small archives in their publishers' layout."""

import io
import json
import logging
import pathlib
import pickle
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, downloader

from configs import base
from gc_jax import data
from gc_jax.data import dataset as datasets
from gc_jax.data import geometry, pipeline
from gc_jax.data.sets import stock, stock_prepare, stock_sets
from tests.data import evaluated, stock_archives
from tests.data.load_test import run_beside_tensorflow
from tests.data.photos import decode, tight_box

MASKED = ("oxford_iiit_pet", "caltech_birds2011")


def sanction(patch):
  """Lets TFDS take archives of the right names for those of its checksums."""

  def registered(path):
    known = {
      info.filename: info
      for name in stock_archives.WRITERS
      for info in tfds.builder_cls(name.split("/")[0]).url_infos.values()
    }
    return known[pathlib.Path(path).name]

  patch.setattr(checksums, "compute_url_info", registered)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  """Returns a TFDS directory with all sets, and what their archives say."""
  data_dir, truths = tmp_path_factory.mktemp("stock"), {}
  with pytest.MonkeyPatch.context() as patch:
    sanction(patch)
    for name, write in stock_archives.WRITERS.items():
      truths[name] = write(data_dir / "downloads" / "manual")
      stock.load(name, "test", data_dir=data_dir)
  # Whatever comes later is read from the prepared files alone.
  shutil.rmtree(data_dir / "downloads")
  return data_dir, truths


@pytest.fixture(scope="session")
def load(prepared):
  def load(name, split):
    return stock.load(name, split, data_dir=prepared[0])

  return load


def records_of(load, prepared, name, splits):
  """Yields (dataset, record, truth) of every record of our splits."""
  truths = {
    truth.image if isinstance(truth.image, bytes) else truth.image.tobytes(): (
      truth
    )
    for truth in prepared[1][name]
  }
  for split in splits:
    dataset = load(name, split)
    for record in dataset.source:
      key = record["image"]
      if name == "cifar10":
        key = decode(key).tobytes()
      yield dataset, record, truths.get(key)


def refused(data_dir, name, message):
  with pytest.raises(ValueError, match=message):
    stock.load(name, "train", data_dir=data_dir)


OURS = ("train", "validation", "test")
# Pictures in train, validation and test, as the archives' splits make them;
# classes; whether a picture shows several; what the files' names hold.
SETS = {
  "oxford_iiit_pet": ((36, 4, 15), 37, False, ".jpg"),
  "voc/2007": ((30, 12, 10), 20, True, ".jpg"),
  "voc/2012": ((27, 3, 12), 20, True, ".jpg"),
  "caltech_birds2011": ((27, 3, 18), 200, False, ".jpg"),
  "tf_flowers": ((40, 5, 5), 5, False, None),
  "cifar10": ((45, 5, 10), 10, False, "t"),
  "imagenet_v2/matched-frequency": ((0, 0, 12), 1_000, False, ".jpeg"),
}


@pytest.mark.parametrize("name", SETS)
def test_images_labels_and_names_are_those_of_the_archive(load, prepared, name):
  counts, num_classes, multi_label, file_name = SETS[name]
  splits = [split for split, n in zip(OURS, counts, strict=True) if n]
  assert tuple(len(load(name, s).source) for s in splits) == tuple(
    filter(None, counts)
  )
  recoded, images = 0, set()
  for dataset, record, truth in records_of(load, prepared, name, splits):
    assert len(dataset.class_names) == num_classes
    assert dataset.multi_label == multi_label
    assert (file_name is None) == ("name" not in record)
    assert file_name is None or file_name in record["name"]
    images.add(record["image"])
    if truth is None:  # by the builder, for its defects
      recoded += 1
    elif name.startswith("imagenet_v2"):
      assert record["labels"] == [int(truth.labels[0])]
    else:
      names = [dataset.class_names[label] for label in record["labels"]]
      assert names == truth.labels
  assert recoded == (3 if name == "oxford_iiit_pet" else 0)
  assert len(images) == sum(counts), "no picture is in two splits"


@pytest.mark.parametrize("name", ["voc/2007", "voc/2012", *MASKED])
def test_objects_are_those_of_the_archive(load, prepared, name):
  seen = 0
  for dataset, record, truth in records_of(load, prepared, name, OURS):
    if truth is None:
      continue
    objects = record["objects"]
    seen += len(objects["bbox"])
    names = [dataset.class_names[label] for label in objects["label"]]
    assert names == truth.labels
    if truth.boxes:
      # Six digits in the archive's own numbers; float32 in the files.
      np.testing.assert_allclose(objects["bbox"], truth.boxes, atol=1e-6)
      assert [bool(d) for d in objects["difficult"]] == truth.difficult
    if name in MASKED:
      pixels = decode(objects["mask"][0])
      np.testing.assert_array_equal(pixels, truth.mask)
      assert pixels.shape == decode(record["image"]).shape[:2]
    if name == "oxford_iiit_pet":  # around the mask, not the head
      height, width = truth.mask.shape
      box = objects["bbox"][0] * [height, width, height, width]
      # A thousandth of a pixel: float32 of a fraction, times the side.
      np.testing.assert_allclose(box, tight_box(truth.mask), atol=1e-3)
      assert list(objects["difficult"]) == [False]
  assert seen >= 40


def test_defective_pets_are_recoded_as_rgb_jpeg(load, prepared):
  """GIF, PNG with alpha and a JPEG, under names that TFDS knows for bad."""
  originals = [
    np.asarray(PIL.Image.open(io.BytesIO(truth.image)).convert("RGB"), float)
    for truth in prepared[1]["oxford_iiit_pet"]
    if truth.image[:3] != b"\xff\xd8\xff"
  ]
  assert len(originals) == 2
  recoded = [
    record["image"]
    for _, record, truth in records_of(load, prepared, "oxford_iiit_pet", OURS)
    if truth is None
  ]
  assert len(recoded) == 3
  assert all(image[:3] == b"\xff\xd8\xff" for image in recoded)
  for original in originals:
    same_size = [k for k in map(decode, recoded) if k.shape == original.shape]
    # A few levels: JPEG at quality 95, with colours at half the resolution.
    assert min(np.abs(k - original).mean() for k in same_size) < 6


def test_a_mask_without_a_pixel_leaves_the_box(load):
  source = load("caltech_birds2011", "test").source
  record = dict(source.source[0])
  empty = stock_archives.encoded(np.full((40, 30), 102, np.uint8), "png")
  (layout,) = source.convert.args
  emptied = stock.record_of(layout, record | {"segmentation_mask": empty})
  objects = emptied["objects"]
  assert objects["mask"][0] == b"" and objects["bbox"][0].max() < 1
  (label,) = objects["label"]
  (found,) = geometry.decode_object_masks(emptied, int(label), 32)
  assert found.any() and not found.all()


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "voc/2007"])
def test_batches_can_be_made_of_them(load, prepared, name):
  dataset = load(name, "test")
  _, batch = evaluated.batch(dataset, 32)
  assert batch["first"].sum() == len(dataset.source) and batch["mask"].all()
  assert batch["object_mask"].any((1, 2)).all()
  train = pipeline.train_batches(
    load(name, "train"), seed=0, start_step=0, batch_size=8, image_size=32
  )
  assert next(train)["image"].shape == (8, 32, 32, 3)
  assert len(pickle.loads(pickle.dumps(dataset)).source) == len(dataset.source)


@pytest.mark.parametrize(
  ("split", "theirs"),
  [
    ("train", range(36)),
    ("train[:10]", range(10)),
    ("train[50%:]", range(18, 36)),
    ("validation", range(36, 40)),
    ("validation[1:3]", range(37, 39)),
    ("train[-2:]+validation[:50%]", range(34, 38)),
    ("train+validation", range(40)),
  ],
)
def test_parts_of_our_splits_are_parts_of_theirs(load, prepared, split, theirs):
  builder = tfds.builder("oxford_iiit_pet", data_dir=prepared[0])
  source = builder.as_data_source("train", decoders=stock._decoders(builder))
  images = [source[i]["image"] for i in theirs]
  assert [r["image"] for r in load("oxford_iiit_pet", split).source] == images


@pytest.mark.parametrize(
  ("available", "mapped"),
  [
    ("train validation test", "train validation test"),
    ("train test", "train[:90%] train[90%:] test"),
    ("train validation", "train[:90%] train[90%:] validation"),
    ("train", "train[:80%] train[80%:90%] train[90%:]"),
  ],
)
def test_a_set_with_a_training_split_gets_our_three_splits(available, mapped):
  splits = stock_sets.map_splits([*available.split(), "extra"])
  assert [splits[name] for name in OURS] == mapped.split()
  assert splits["extra"] == "extra"
  assert stock_sets.map_splits(["test"]) == {"test": "test"}


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("voc/2007", "tset", r"tfds:voc/2007/5.0.0='tset'. .* Did you mean 'test'"),
    (
      "imagenet_v2/matched-frequency",
      "train[:10]",
      r"Known: test\. .*to train",
    ),
    ("voc/2012", "trainval", r"own test split comes without labels"),
  ],
)
def test_an_unknown_split_is_answered_with_those_there_are(
  load, name, split, message
):
  with pytest.raises(ValueError, match=rf"Unknown split of .*{message}"):
    load(name, split)


@pytest.mark.parametrize("name", [*stock_sets.EXAMPLES, *stock_sets.STOCK_SETS])
def test_the_features_of_the_table_are_those_of_this_tfds(name, tmp_path):
  builder = tfds.builder(name, data_dir=tmp_path)
  layout, features = stock._layout(builder), builder.info.features
  assert (layout is stock_sets.PLAIN) == (
    name.split("/")[0] not in "".join(stock_sets.STOCK_SETS)
  )
  stock._check_features(builder)
  if layout.objects:
    inner = features[layout.objects].feature
    assert isinstance(inner["bbox"], tfds.features.BBoxFeature)
    assert layout.label or "is_difficult" in set(inner.keys())
  if layout.box:
    assert isinstance(features[layout.box], tfds.features.BBoxFeature)
  if layout.mask:
    assert isinstance(features[layout.mask], tfds.features.Image)
  if layout.label_name:
    assert isinstance(features[layout.label_name], tfds.features.Text)


def test_a_set_without_objects_warns_once(load, caplog):
  datasets.warn_once.cache_clear()
  with caplog.at_level(logging.WARNING, "gc_jax"):
    for split in OURS:
      load("tf_flowers", split)
      load("voc/2007", split)
  (record,) = caplog.records
  assert record.message == (
    "tfds:tf_flowers/3.0.1 does not say where its objects are: localisation "
    "metrics stay empty."
  )


UNUSABLE = {
  "oxford_pet": r"^Unknown --config.data.name='tfds:oxford_pet'. Known: .* Did "
  r"you mean 'tfds:oxford_iiit_pet'\? These are the sets of tensorflow-data",
  "voc/2021": r"^Unknown --config.data.name='tfds:voc/2021'. Known: tfds:voc/2",
  "oxford_iiit_pet/small": r"small' must be without a config: .* has none",
  "ag_news_subset": r"must have an image and a class label to classify; its fea"
  r"tures are description, label, title. .*known to work: tfds:oxford",
  "lvis": r"image and a class label.*features are image, image/id, neg_",
  "coco/2014": r"tfds:coco/2014 needs TensorFlow to be prepared \(No module nam"
  r"ed 'tensorflow'\)(.|\n)*pip install tensorflow tensorflow-datasets "
  r"array_record\n  tfds-tools/bin/tfds build coco/2014 --data_dir=.* "
  r"--file_format=array_record",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_sets_are_refused_before_any_download(
  tmp_path, monkeypatch, name
):
  monkeypatch.setattr(stock_prepare, "prepare", None)
  refused(tmp_path, name, UNUSABLE[name])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["voc", "voc/2007"])
def test_other_failures_are_passed_on(tmp_path, monkeypatch, name):
  def broken(*_, **__):
    raise ValueError("a version that cannot be read")

  monkeypatch.setattr(tfds, "builder", broken)
  refused(tmp_path, name, r"^a version that cannot be read$")


def test_a_failed_download_names_the_files_and_where_to_put_them(
  tmp_path, monkeypatch
):
  def no_network(*_, **__):
    raise requests.ConnectionError("Name or service not known")

  monkeypatch.setattr(requests.Session, "get", no_network)
  message = (
    r"oxford_iiit_pet must be downloaded once, and that failed: Name.* bring "
    r"these files to .*/downloads/manual:\n  https://.*/annotations.tar.gz as "
    r"annotations.tar.gz\n  https://.*/images.tar.gz as images.tar.gz\."
  )
  refused(tmp_path, "oxford_iiit_pet", message)
  assert not (tmp_path / "oxford_iiit_pet" / "4.0.0").exists()


def test_files_brought_by_hand_are_enough(tmp_path, monkeypatch, capsys):
  """As the message says: no network, and the very next run succeeds."""
  sanction(monkeypatch)
  monkeypatch.setattr(requests.Session, "get", None)
  stock_archives.write_flowers(tmp_path / "downloads" / "manual")
  dataset = stock.load("tf_flowers", "train", data_dir=tmp_path)
  assert len(dataset.source) == 40
  said = capsys.readouterr()
  assert said.out == "" and said.err.startswith("Prepared 50 images of tf_flo")


def test_an_archive_of_something_else_is_refused(tmp_path):
  stock_archives.write_flowers(tmp_path / "downloads" / "manual")
  refused(tmp_path, "tf_flowers", r"an archive must be its publisher's, and d")


def test_a_builder_that_needs_tensorflow_is_answered_with_the_command(
  tmp_path, monkeypatch
):
  sanction(monkeypatch)
  stock_archives.write_flowers(tmp_path / "downloads" / "manual")
  builder_class = tfds.builder_cls("tf_flowers")
  module = sys.modules[builder_class.__module__]
  monkeypatch.setattr(module, "tf", None, raising=False)

  def generate(self, images_dir_path):
    module.tf.io.decode_webp(b"")
    yield

  monkeypatch.setattr(builder_class, "_generate_examples", generate)
  message = (
    r"tfds:tf_flowers needs TensorFlow to be prepared \(tf.io.decode_webp\)(.|"
    r"\n)*tfds build tf_flowers --data_dir=.* --file_format=array_record"
  )
  refused(tmp_path, "tf_flowers", message)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
  """TFDS itself would advise to install cv2, which is no package."""
  sanction(monkeypatch)
  monkeypatch.setitem(sys.modules, "cv2", None)
  stock_archives.write_birds(tmp_path / "downloads" / "manual")
  message = (
    r"needs the Python package opencv-python-headless .*: pip install op"
  )
  refused(tmp_path, "caltech_birds2011", message)


def test_sets_that_only_a_person_may_download_say_so(tmp_path):
  refused(tmp_path, "imagenet2012", r"Manual directory .*(.|\n)*instructions")


def test_tfrecord_files_are_answered_with_the_command_that_converts_them(
  prepared, tmp_path
):
  folder = tmp_path / "oxford_iiit_pet" / "4.0.0"
  shutil.copytree(prepared[0] / "oxford_iiit_pet" / "4.0.0", folder)
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  assert info["fileFormat"] == "array_record"
  path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  message = (
    r"4\.0\.0 must hold array_record files .* was prepared as tfrecord(.|\n)*tf"
    r"ds convert_format --dataset_version_dir=.*/4.0.0 --out_file_format=array"
  )
  refused(tmp_path, "oxford_iiit_pet", message)
  # That command leaves both formats behind, side by side.
  info |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
  path.write_text(json.dumps(info))
  dataset = stock.load("oxford_iiit_pet", "train", data_dir=tmp_path)
  assert len(dataset.source) == 36


def test_files_of_a_set_are_read_without_its_code(prepared, tmp_path):
  folder = tmp_path / "my_flowers" / "1.0.0"
  shutil.copytree(prepared[0] / "tf_flowers" / "3.0.1", folder)
  for path in folder.iterdir():
    path.rename(folder / path.name.replace("tf_flowers", "my_flowers"))
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  path.write_text(json.dumps(info | {"name": "my_flowers", "version": "1.0.0"}))
  dataset = stock.load("my_flowers", "test", data_dir=tmp_path)
  assert dataset.name == "tfds:my_flowers/1.0.0" and len(dataset.source) == 5


def test_preparing_leaves_tfds_as_it_was(tmp_path):
  builder = tfds.builder("voc/2007", data_dir=tmp_path)
  module = sys.modules[type(builder).__module__]
  before = module.tf, downloader.MAX_RETRIES, list(sys.meta_path)
  with stock_prepare.without_tensorflow(builder):
    assert module.tf is not before[0]
    with pytest.raises(ModuleNotFoundError, match="tensorflow"):
      import tensorflow  # noqa: F401
  assert "tensorflow" not in sys.modules
  assert (module.tf, downloader.MAX_RETRIES, list(sys.meta_path)) == before


def test_names_are_known_with_their_prefix(prepared):
  config_data = base.get_config().data
  config_data.dir = str(prepared[0])
  config_data.name = "tfds:voc/2007"
  assert data.load(config_data, "test").name == "tfds:voc/2007/5.0.0"
  config_data.name = "oxford_iiit_pet"
  with pytest.raises(ValueError, match="Did you mean 'tfds:oxford_iiit_pet'"):
    data.load(config_data, "test")


PROGRAM = """
import sys
from gc_jax.data.sets import stock
dataset = stock.load("tfds:voc/2007", "test", data_dir=sys.argv[1])
assert len([record["objects"] for record in dataset.source]) == 10
try:
  stock.load("tfds:coco/2014", "test", data_dir=sys.argv[1])
except ValueError as error:
  assert "needs TensorFlow" in str(error)
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_stays_out_even_where_it_is_installed(prepared, tmp_path):
  run_beside_tensorflow(PROGRAM, prepared[0], tmp_path)
