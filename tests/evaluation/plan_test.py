"""Passes of an evaluation, under both protocols, against brute force."""

import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gc_jax.data import annotation, decode, geometry
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation import boxes, programs
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation.ledger import Ledger
from gc_jax.evaluation.localisation import DIFFICULT
from gc_jax.method.metrics import Key
from gc_jax.runtime import parallel
from tests.data import photos

METHODS = ("gradcam", "gradcam_elementwise")
RUNS = ("classification", "localisation")
SIZES = [(60, 40), (40, 60), (40, 40), (61, 40), (60, 40), (60, 40), (40, 60)]
LABELS = [[0, 2], [1], [], [3], [2], [1, 4], [0]]


def config(**fields):
  c = base.get_config()
  c.data.image_size = 16
  c.eval.batch_size = 4
  c.eval.costly_rows = 4
  c.eval.shorter_side_px = 32
  c.eval.faithfulness_steps = 2
  c.eval.epsilons = (1, 8)
  c.update_from_flattened_dict(
    {f"eval.{name}": value for name, value in fields.items()}
  )
  return c


@pytest.fixture(scope="module")
def dataset():
  records = []
  for i, (size, labels) in enumerate(zip(SIZES, LABELS, strict=True)):
    rng = np.random.default_rng(i)
    boxes = [[*rng.uniform(0, 0.5, 2), *rng.uniform(0.6, 1, 2)] for _ in labels]
    image = photos.load("coffee.png", size)
    records.append(
      {
        "image": photos.encode(np.roll(np.asarray(image), 7 * i, 0), "png"),
        "labels": labels,
        "objects": {
          "label": labels,
          "bbox": boxes,
          "difficult": [i == 3] * len(labels),
        },
      }
    )
  return Dataset(
    source=records,
    class_names=tuple("abcdefghij"),
    multi_label=True,
    name="photographs",
  )


@pytest.fixture(scope="module")
def mesh():
  return parallel.make_mesh()


@pytest.fixture(scope="module")
def model(make_tiny, mesh):
  net = make_tiny("max")
  net.eval()
  return parallel.on_all_devices(net, mesh)


@pytest.fixture(scope="module")
def ran(model, dataset, mesh):
  """Runs the standard passes of a configuration; returns planner and ledger."""

  def run(**fields):
    planner = plans.Planner(model, dataset, config(**fields), mesh)
    ledger = Ledger(len(planner.pairs.index))
    plan = planner.passes(RUNS, METHODS)
    count = sum(1 for _ in plans.run(plan, planner.pairs, mesh, ledger))
    assert count == sum(one.num_batches for one in plan)
    return planner, plan, ledger

  return run


def frame_metrics(model, record, target, size):
  """PG, SPG exact and CH of one pair alone, in the annotation's own pixels."""
  header = decode.read_header(record["image"])
  image = np.asarray(decode.scaled(header, size[::-1]))
  objects = geometry.object_masks(record, header, only=int(target))
  mask = np.any([np.asarray(one) > 127 for _, one in objects], axis=0)
  near = annotation.dilate(mask, 15.0)
  cam = programs.ALL_METHODS["gradcam_elementwise"](
    model, jnp.asarray(image)[None], jnp.array([[target]])
  )[0, 0]
  height, width = mask.shape
  cam = cv2.resize(np.asarray(cam, np.float64), (width, height))
  cam = cam / cam.sum() if cam.sum() > 0 else np.full(cam.shape, 1 / cam.size)
  peak = (cam / cam.max()).round(6).argmax()
  return float(near.ravel()[peak]), cam[near].sum(), cam[mask].sum()


def test_the_release_measures_whole_pictures_in_their_own_pixels(
  ran, model, dataset
):
  planner, plan, ledger = ran(protocol="release")
  shapes = [one.name for one in plan if one.name.startswith("frames")]
  assert shapes == ["frames 32x48", "frames 48x32"]
  # A program for each shape, one for predictions, one for composites.
  assert len(plan) == len(shapes) + 2
  names = [
    Key(metric, "gradcam_elementwise")
    for metric in (
      "pointing_game",
      "stochastic_pointing_game_exact",
      "content_heatmap",
    )
  ]
  for row, (index, target, _) in enumerate(zip(*planner.pairs, strict=True)):
    found = [ledger.columns[name][row] for name in names]
    if target < 0:
      assert np.isnan(found).all()
      continue
    width, height = geometry.frame_size(SIZES[index], 32)
    expected = frame_metrics(
      model, dataset.source[index], target, (height, width)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
  difficult = ledger.columns[DIFFICULT]
  assert difficult[planner.pairs.index == 3] == 1
  assert np.nansum(difficult) == 1


def test_every_picture_is_predicted_once_under_both_protocols(ran, dataset):
  totals = [ran(protocol=name)[2].totals for name in ("paper", "release")]
  for name, (total, weight) in totals[0].items():
    assert np.max(weight) == len(dataset.source)
    np.testing.assert_allclose(total, totals[1][name][0], rtol=1e-5)


def test_neither_batch_nor_devices_change_what_is_measured(ran, model, dataset):
  _, _, ledger = ran(protocol="paper")
  _, _, other = ran(protocol="paper", batch_size=8)
  alone = jax.make_mesh(
    (1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
  )
  planner = plans.Planner(
    parallel.on_all_devices(model, alone), dataset, config(), alone
  )
  single = Ledger(len(planner.pairs.index))
  for _ in plans.run(
    planner.passes(RUNS, METHODS), planner.pairs, alone, single
  ):
    pass
  for name, column in ledger.columns.items():
    for found in (other, single):
      np.testing.assert_allclose(
        found.columns[name], column, atol=1e-5, err_msg=str(name)
      )
  uniform = ledger.columns[Key("negative_quadrants_heatmap", "uniform")]
  assert (uniform[~np.isnan(uniform)] == 0.75).all()
  assert np.isnan(uniform).sum() == 1  # the picture without a class


def test_rounding_bounds_the_programs_and_too_many_are_refused(
  model, dataset, mesh
):
  def frames(**fields):
    planner = plans.Planner(
      model, dataset, config(protocol="release", **fields), mesh
    )
    plan = planner.passes(RUNS, METHODS)
    return [one.name for one in plan if one.name.startswith("frames")]

  assert len(frames(round_px=32)) <= 2
  with pytest.raises(ValueError, match=r"max_shapes=1 .*round_px=32"):
    frames(max_shapes=1)


def test_what_was_done_is_not_done_again(model, dataset, mesh):
  """Interrupted after any batch, the numbers are the same."""
  planner = plans.Planner(model, dataset, config(), mesh)
  plan = [*planner.passes(RUNS, METHODS), *planner.passes(("attacks",))]
  whole = Ledger(len(planner.pairs.index))
  total = sum(1 for _ in plans.run(plan, planner.pairs, mesh, whole))
  assert total == 8
  for stop in (1, 3, 6):
    ledger = Ledger(len(planner.pairs.index))
    first = plans.run(plan, planner.pairs, mesh, ledger)
    for _ in range(stop):
      next(first)
    first.close()
    rest = sum(1 for _ in plans.run(plan, planner.pairs, mesh, ledger))
    assert rest == total - stop
    for name, column in whole.columns.items():
      np.testing.assert_array_equal(ledger.columns[name], column)
    for key, (value, weight) in whole.totals.items():
      np.testing.assert_array_equal(ledger.totals[key][0], value)
      np.testing.assert_array_equal(ledger.totals[key][1], weight)


def test_it_goes_on_in_batches_of_another_size(model, dataset, mesh):
  """After memory was short, say: every row is measured once."""

  def measured(ledger, batch_size, stop=None):
    planner = plans.Planner(model, dataset, config(batch_size=batch_size), mesh)
    ledger = ledger or Ledger(len(planner.pairs.index))
    running = plans.run(
      planner.passes(RUNS, METHODS), planner.pairs, mesh, ledger
    )
    for _ in itertools.islice(running, stop):
      pass
    running.close()
    return ledger

  whole = measured(None, 4)
  found = measured(measured(None, 8, stop=1), 4)
  for name, column in whole.columns.items():
    np.testing.assert_allclose(found.columns[name], column, atol=1e-5)
  for key, (total, weight) in whole.totals.items():
    # Counts are the same; a float32 loss was added up in another order.
    rtol = 1e-6 if key == Key("loss") else 0
    np.testing.assert_allclose(found.totals[key][0], total, rtol=rtol)
    assert (found.totals[key][1] == weight).all()


def test_boxes_and_curves_are_of_few_rows(model, dataset, mesh):
  planner = plans.Planner(model, dataset, config(), mesh)
  few = planner.few()
  assert len(few) == 4 and (planner.pairs.target[few] >= 0).all()
  ledger = Ledger(len(planner.pairs.index))
  plan = [
    *planner.passes(("faithfulness",), METHODS),
    *planner.passes(("localisation",), ("smoothgrad",), ("smoothgrad",))[-2:],
  ]
  for _ in plans.run(plan, planner.pairs, mesh, ledger):
    pass
  for key in (
    Key("content_heatmap", "smoothgrad"),
    Key("insertion_auc", "gradcam"),
  ):
    assert set(np.flatnonzero(~np.isnan(ledger.columns[key]))) == set(few)
  correct, count = ledger.totals[Key(boxes.TOTAL, "gradcam")]
  assert count == 4 and correct.shape == (3, 100)
  assert 0 < correct.max() <= 4


def test_the_thread_compiles_what_is_run(model, dataset, mesh, caplog):
  """Sizes of its own, so that no other test has compiled it before."""
  fields = {"costly_rows": 3, "faithfulness_steps": 3, "batch_size": 3}
  fields["epsilons"] = (1, 4)
  planner = plans.Planner(model, dataset, config(**fields), mesh)
  plan = [
    *planner.passes(RUNS, METHODS),
    *planner.passes(("localisation",), ("smoothgrad",), ("smoothgrad",))[-2:],
    *planner.passes(
      ("faithfulness", "attacks"), (*METHODS, "fullgrad", "cmwp")
    ),
  ]
  ledger = Ledger(len(planner.pairs.index))
  # A setting of this thread: the other says nothing of what it compiles.
  with jax.log_compiles():
    for _ in plans.run(plan, planner.pairs, mesh, ledger):
      pass
    jax.jit(_said)(np.ones(7))
  compiled = [
    record.args[0]
    for record in caplog.records
    if record.msg.startswith("Compiling")
  ]
  assert compiled == ["jit(_said)"]


def _said(x):
  return x + 1
