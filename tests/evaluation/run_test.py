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


def digits(multi_label=False):
  """Seven pictures of two sizes, whose objects must not be read."""
  records = []
  for i, size in enumerate([(60, 40), (40, 60), (40, 40)] * 2 + [(40, 41)]):
    image = np.asarray(photos.load("coffee.png", size))
    labels = [i % 3, 4] if multi_label and i else [i % 3]
    records.append(
      {
        "image": photos.encode(np.roll(image, 7 * i, 0), "png"),
        "labels": labels,
        "objects": Unread(),
      }
    )
  return Dataset(
    source=records,
    class_names=tuple("abcdefghij"),
    multi_label=multi_label,
    name="photographs",
  )


def config():
  c = base.get_config()
  c.data.image_size = 16
  c.eval.batch_size = 4
  return c


@pytest.fixture(scope="module")
def model(make_tiny):
  net = make_tiny()
  net.eval()
  return net


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_quick_evaluation_reads_no_object_and_ships_pictures_alone(
  model, monkeypatch, multi_label
):
  dataset = digits(multi_label)
  monkeypatch.setattr(run.data, "load", lambda *_: dataset)

  def refuse(*args):
    raise AssertionError("a mask was decoded")

  monkeypatch.setattr(geometry, "object_masks", refuse)
  shipped = []
  to_devices = parallel.to_devices

  def noted(batch, mesh):
    shipped.append(batch)
    return to_devices(batch, mesh)

  monkeypatch.setattr(parallel, "to_devices", noted)
  mesh = parallel.make_mesh()
  found = run.Evaluation(config(), mesh).quick(
    parallel.on_all_devices(model, mesh)
  )
  assert len(shipped) == 2
  for batch in shipped:
    size = {k: np.asarray(v).nbytes for k, v in batch.items() if k != "image"}
    assert sum(v for k, v in size.items() if k != "annotations") < 1_000
    assert "object_mask" not in batch and batch["annotations"] == {}
  # All pictures at once, outside of the evaluation.
  images = jnp.stack(
    [geometry.decode_image(record["image"], 16) for record in dataset.source]
  )
  logits = model.classify(model.features(model.normalize(images)))
  logits = np.asarray(logits)
  if multi_label:
    present = np.zeros((7, 10), bool)
    for row, record in enumerate(dataset.source):
      present[row, record["labels"]] = True
    hits = (present & (logits > 0)).sum()
    wrong = (present != (logits > 0)).sum()
    f1 = 100 * 2 * hits / (2 * hits + wrong)
    assert found["val/f1_overall"] == pytest.approx(f1)
  else:
    labels = [record["labels"][0] for record in dataset.source]
    top1 = 100 * np.mean(logits.argmax(1) == labels)
    assert found["val/top1"] == pytest.approx(top1)
  assert "val/loss" in found and "val/num_pairs" not in found


def test_the_quick_evaluation_passes_over_a_broken_picture(model, monkeypatch):
  dataset = digits()
  dataset.source[3]["image"] = b"no picture"
  monkeypatch.setattr(run.data, "load", lambda *_: dataset)
  mesh = parallel.make_mesh()
  settings = config()
  settings.data.on_error = "skip"
  evaluation = run.Evaluation(settings, mesh)
  one = evaluation.quick(parallel.on_all_devices(model, mesh))
  kept = [record for i, record in enumerate(dataset.source) if i != 3]
  monkeypatch.setattr(
    run.data,
    "load",
    lambda *_: dataclasses.replace(dataset, source=kept),
  )
  other = run.Evaluation(settings, mesh).quick(
    parallel.on_all_devices(model, mesh)
  )
  assert one == pytest.approx(other)
