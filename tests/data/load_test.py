import os
import subprocess
import sys

import pytest

from configs import base
from gc_jax import data
from gc_jax.data.sets import context, context_sets, imagenet_files
from tests.data import photos


@pytest.fixture
def config_data(tmp_path):
  config_data = base.get_config().data
  config_data.dir = str(tmp_path)
  return config_data


def test_an_unknown_data_set_is_answered_with_the_nearest(config_data):
  config_data.name = "context_digit"
  with pytest.raises(
    ValueError,
    match=r"Unknown --config.data.name='context_digit'. Known: context_digits, "
    r"context_digits_multi, .*\. Did you mean 'context_digits'\?",
  ):
    data.load(config_data, "train")


def test_every_field_of_the_config_reaches_the_builder(
  config_data, load_small, monkeypatch
):
  dataset, seen = load_small("train"), []

  def load(builder, split, **kwargs):
    seen.append((builder, split, kwargs))
    return dataset

  monkeypatch.setattr(context, "load", load)
  config_data.image_size, config_data.background_frac = 48, 0.25
  config_data.name = "context_digits_multi"
  assert data.load(config_data, "validation") is dataset
  expected = {
    "data_dir": config_data.dir,
    "image_size": 48,
    "background_frac": 0.25,
    "multi_label": True,
  }
  assert seen == [(context_sets.ContextDigits, "validation", expected)]


@pytest.mark.parametrize(
  ("name", "files", "splits"),
  [
    ("imagenet", "ILSVRC2012_img_train.tar", r"train, validation\."),
    ("coco", "train2014.zip", r"train, validation\."),
    ("context_digits", "", "train, validation, test. Did you mean 'test'"),
  ],
)
def test_what_is_missing_is_told_before_anything_is_prepared(
  config_data, name, files, splits, tmp_path
):
  config_data.name, config_data.path = name, str(tmp_path / "nowhere")
  with pytest.raises(
    ValueError, match=f"Unknown split='tset'. Known: {splits}"
  ):
    data.load(config_data, "tset")
  if files:  # which are not downloaded
    with pytest.raises(
      ValueError, match=rf"data.path='.*nowhere' must .*{files}"
    ):
      data.load(config_data, "train")
  assert not list(tmp_path.iterdir())


def test_a_dataset_knows_its_classes_and_how_many_an_image_shows(load_small):
  single, multi = (load_small("train", multi_label=m) for m in (False, True))
  assert single.class_names == multi.class_names == tuple("0123456789")
  assert multi.multi_label and not single.multi_label
  assert single.name.startswith("context_digits/single-64px-background50")


def test_a_part_of_a_split_can_be_loaded(load_small):
  whole, part = load_small("train"), load_small("train[:25%]")
  assert len(part.source) == 10
  assert part.source[9]["image"] == whole.source[9]["image"]


PROGRAM = """
import sys
import gc_jax.data
cheap = {"tensorflow_datasets", "grain", "mlxtend", "skimage", "PIL"}
assert not cheap & set(sys.modules), "importing gc_jax.data must be cheap"
from gc_jax.data import pipeline
from gc_jax.data.sets import context
from gc_jax.data.sets.context_sets import ContextDigits
dataset = context.load(
  ContextDigits, "test", data_dir=sys.argv[1], num_examples=(1, 1, 3)
)
sizes = {"batch_size": 2, "image_size": 64}
next(pipeline.train_batches(dataset, seed=0, start_step=0, **sizes))
from gc_jax.data import dataset as datasets, pairs
rows = pairs.all_pairs(dataset.all_labels())
square = pairs.Square(datasets.Reader(dataset), 64, with_objects=True)
assert len(list(pairs.batches(rows, range(3), square, 2))) == 2
assert "tensorflow" not in sys.modules
"""


def run_beside_tensorflow(program, folder, tmp_path):
  """Runs a program that must neither import it, print, nor leave folders."""
  fake, temporary = tmp_path / "site" / "tensorflow", tmp_path / "temporary"
  photos.write(fake, "__init__.py", "raise SystemExit('imported')")
  temporary.mkdir()
  path = os.pathsep.join([str(fake.parent), os.getcwd()])
  done = subprocess.run(
    [sys.executable, "-c", program, str(folder)],
    env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert not list(temporary.iterdir()), "TFDS would leave some there"
  # Neither a bar nor TFDS's announcements.
  assert done.stdout == ""
  return done


def test_tensorflow_and_temporary_folders_stay_out(tmp_path):
  done = run_beside_tensorflow(PROGRAM, tmp_path / "tfds", tmp_path)
  assert len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith("Prepared 5 images of context_digits/single-64")


# Classes without data.


def test_the_classes_that_are_settled_are_those_of_the_builders():
  for builder in context_sets.BUILDERS.values():
    count = len(builder.CLASS_NAMES)
    assert classes_of(builder.name) == data.Classes(count, False)
    assert classes_of(f"{builder.name}_multi") == data.Classes(count, True)
  assert classes_of("imagenet") == (imagenet_files.NUM_CLASSES, False)
  assert classes_of("coco") == (80, True)  # https://cocodataset.org


def classes_of(name, path="", count=0):
  config_data = base.get_config().data
  config_data.name = name
  config_data.path = str(path)
  return data.classes(config_data, count)


def test_the_classes_of_a_folder_are_the_names_in_it(tmp_path):
  names = ("train/cat/1.png", "train/dog/2.png", "train/owl/3.png")
  photos.touch(tmp_path, *names)  # not opened
  assert classes_of("folder", tmp_path) == (3, False)


@pytest.mark.parametrize("name", ["folder", "tfds:voc/2007"])
def test_classes_known_only_with_the_data_are_asked_for(name):
  with pytest.raises(ValueError, match=r"say it: --num_classes=K\."):
    classes_of(name)


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_entry_states_its_title_terms_and_classes(name):
  entry = data.DATASETS[name]
  assert entry.title == data.title(name)
  assert entry.license.endswith(".") and len(entry.license) > 40
  # As runtime/saved_config tells the sets that the field shapes.
  assert entry.background_frac == name.startswith("context_")
  assert classes_of(name, count=7).count == 7
  if name != "folder":
    assert classes_of(name).count > 1


@pytest.mark.parametrize(
  ("name", "title"),
  [
    ("coco", "MS-COCO"),
    ("context_digits_multi", "context digits multi"),
    ("tfds:voc/2007", "PASCAL VOC 2007"),
    ("tfds:oxford_iiit_pet", "Oxford-IIIT Pet"),
    ("tfds:tf_flowers", "tf flowers"),
  ],
)
def test_reports_call_a_data_set_by_its_title_or_else_its_name(name, title):
  assert data.title(name) == title


def test_of_a_stock_set_it_is_known_whether_a_picture_shows_several():
  assert classes_of("tfds:voc/2007", count=20) == (20, True)
  assert classes_of("tfds:oxford_iiit_pet", count=37) == (37, False)
