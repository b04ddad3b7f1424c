"""The evaluations of a training run: what the quick one reads, and finds."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gc_jax.data import geometry
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation import run
from gc_jax.runtime import parallel
from tests.data import photos


class Unread:
  """Objects that nobody may look at."""

  def __getitem__(self, name):
    raise AssertionError(f"an object's {name} was read")


def photographs(multi_label=False):
  """Seven pictures of several sizes, whose objects must not be read."""
  records = []
  for i, size in enumerate([(60, 40), (40, 60), (40, 40)] * 2 + [(40, 41)]):
    image = np.asarray(photos.load("coffee.png", size))
    records.append(
      {
        "image": photos.encode(np.roll(image, 7 * i, 0), "png"),
        "labels": [i % 3, 4] if multi_label and i else [i % 3],
        "objects": Unread(),
      }
    )
  return Dataset(
    source=records,
    class_names=tuple("abcdefghij"),
    multi_label=multi_label,
    name="photographs",
  )


@pytest.fixture(scope="module")
def model(make_tiny):
  net = make_tiny()
  net.eval()
  return net


@pytest.fixture
def quick(model, monkeypatch):
  """Returns the quick evaluation of a data set."""

  def quick(dataset, on_error="raise"):
    monkeypatch.setattr(run.data, "load", lambda *_: dataset)
    config = base.get_config()
    config.data.image_size, config.eval.batch_size = 16, 4
    config.data.on_error = on_error
    mesh = parallel.make_mesh()
    there = parallel.on_all_devices(model, mesh)
    return run.Evaluation(config, mesh).quick(there)

  return quick


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_quick_evaluation_reads_and_ships_pictures_alone(
  quick, model, monkeypatch, multi_label
):
  def refuse(*_):
    raise AssertionError("a mask was decoded")

  shipped = []
  to_devices = parallel.to_devices

  def noted(batch, mesh):
    shipped.append(batch)
    return to_devices(batch, mesh)

  monkeypatch.setattr(geometry, "object_masks", refuse)
  monkeypatch.setattr(parallel, "to_devices", noted)
  dataset = photographs(multi_label)
  found = quick(dataset)
  assert len(shipped) == 2
  for batch in shipped:
    assert "object_mask" not in batch and batch.pop("annotations") == {}
    del batch["image"]
    assert sum(np.asarray(v).nbytes for v in batch.values()) < 1_000
  # All pictures at once, outside of the evaluation.
  images = jnp.stack(
    [geometry.decode_image(record["image"], 16) for record in dataset.source]
  )
  logits = model.classify(model.features(model.normalize(images)))
  logits = np.asarray(logits)
  present = np.zeros((7, 10), bool)
  for row, record in enumerate(dataset.source):
    present[row, record["labels"]] = True
  if multi_label:
    hits = (present & (logits > 0)).sum()
    wrong = (present != (logits > 0)).sum()
    f1 = 100 * 2 * hits / (2 * hits + wrong)
    assert found["val/f1_overall"] == pytest.approx(f1)
  else:
    top1 = 100 * np.mean(logits.argmax(1) == present.argmax(1))
    assert found["val/top1"] == pytest.approx(top1)
  assert "val/loss" in found and "val/num_pairs" not in found


def test_the_quick_evaluation_passes_over_a_broken_picture(quick):
  dataset = photographs()
  kept = dataset.source[:3] + dataset.source[4:]
  expected = quick(dataclasses.replace(dataset, source=kept))
  dataset.source[3]["image"] = b"no picture"
  assert quick(dataset, on_error="skip") == pytest.approx(expected)
