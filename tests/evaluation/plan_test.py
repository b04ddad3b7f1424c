"""Passes of an evaluation, under both protocols, against brute force."""

import dataclasses
import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gc_jax.data import decode, geometry
from gc_jax.data.dataset import Dataset
from gc_jax.evaluation import examples, localisation, summary
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation.ledger import Ledger
from gc_jax.method.metrics import METRICS, Key
from gc_jax.report.rows import CONFIDENCE
from gc_jax.runtime import parallel
from tests.data import photos

METHODS = ("gradcam", "gradcam_elementwise")
RUNS = ("classification", "localisation")
SIZES = [(60, 40), (40, 60), (40, 40), (61, 40), (60, 40), (60, 40), (40, 60)]
LABELS = [[0, 2], [1], [], [3], [2], [1, 4], [0]]


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
def model(make_tiny):
  net = make_tiny("max")
  net.eval()
  return net


@pytest.fixture(scope="module")
def planned(model, dataset):
  """Returns a planner of a configuration, on all devices or on some."""

  def make(devices=None, dataset=dataset, model=model, **fields):
    config = base.get_config()
    config.data.image_size = 16
    few = {"batch_size": 4, "costly_rows": 4, "faithfulness_steps": 2}
    few |= {"shorter_side_px": 32, "epsilons": (1, 8)}
    for name, value in (few | fields).items():
      config.update_from_flattened_dict({f"eval.{name}": value})
    mesh = parallel.make_mesh()
    if devices is not None:
      kind = (jax.sharding.AxisType.Auto,)
      mesh = jax.make_mesh((len(devices),), ("data",), kind, devices=devices)
    there = parallel.on_all_devices(model, mesh)
    return plans.Planner(there, dataset, config, mesh)

  return make


def measured(planner, plan=None, ledger=None, stop=None):
  """Runs passes, by default those of a run; returns ledger and batches."""
  plan = planner.passes(RUNS, METHODS) if plan is None else plan
  ledger = Ledger(len(planner.pairs.index)) if ledger is None else ledger
  running = plans.run(plan, planner, ledger)
  count = sum(1 for _ in itertools.islice(running, stop))
  running.close()
  return ledger, count


def assert_equal(ledger, other, atol=0.0, loss_rtol=0.0):
  for key, column in ledger.columns.items():
    np.testing.assert_allclose(
      other.columns[key], column, rtol=0, atol=atol, err_msg=str(key)
    )
  for key, (total, weight) in ledger.totals.items():
    rtol = loss_rtol if key.metric == "loss" else 0
    np.testing.assert_allclose(other.totals[key][0], total, rtol=rtol)
    np.testing.assert_array_equal(other.totals[key][1], weight)


def frame_metrics(model, record, target, size):
  """PG, SPG exact and CH of one pair alone, in the annotation's own pixels."""
  header = decode.read_header(record["image"])
  image = np.asarray(decode.scaled(header, size[::-1]))
  objects = geometry.object_masks(record, header, int(target))
  mask = np.any([np.asarray(one) > 127 for one in objects], axis=0)
  near = geometry.dilate(mask, 15.0)
  cam = localisation.ALL_METHODS["gradcam_elementwise"](
    model, jnp.asarray(image)[None], jnp.array([[target]])
  )[0, 0]
  height, width = mask.shape
  cam = cv2.resize(np.asarray(cam, np.float64), (width, height))
  cam = cam / cam.sum() if cam.sum() > 0 else np.full(cam.shape, 1 / cam.size)
  peak = (cam / cam.max()).round(6).argmax()
  return float(near.ravel()[peak]), cam[near].sum(), cam[mask].sum()


@pytest.fixture(scope="module")
def by_paper(planned):
  return measured(planned(protocol="paper"))[0]


def test_whole_pictures_are_of_whole_patches(planned, make_tiny_vit):
  model = make_tiny_vit()
  model.eval()
  planner = planned(protocol="release", shorter_side_px=30, model=model)
  plan = planner.passes(RUNS, METHODS)
  names = [one.name for one in plan if "frames" in one.name]
  assert names == ["frames 32x44", "frames 44x32"]


def test_the_release_measures_whole_pictures_in_their_own_pixels(
  planned, by_paper, model, dataset
):
  planner = planned(protocol="release")
  plan = planner.passes(RUNS, METHODS)
  # A program for each shape, one for predictions, one for composites.
  frames = ["frames 32x48", "frames 48x32"]
  assert [one.name for one in plan] == ["predictions", *frames, "composites"]
  ledger, count = measured(planner, plan)
  assert count == sum(one.num_batches for one in plan)
  names = ("pointing_game", "stochastic_pointing_game_exact", "content_heatmap")
  keys = [Key(name, "gradcam_elementwise") for name in names]
  for row, (index, target, _) in enumerate(zip(*planner.pairs, strict=True)):
    found = [ledger.columns[key][row] for key in keys]
    if target < 0:
      assert np.isnan(found).all()
      continue
    width, height = geometry.frame_size(SIZES[index], 32)
    expected = frame_metrics(
      model, dataset.source[index], target, (height, width)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
  difficult = ledger.columns[localisation.DIFFICULT]
  assert difficult[planner.pairs.index == 3] == 1
  assert np.nansum(difficult) == 1
  # Under either protocol every picture is predicted once.
  for key, (total, weight) in by_paper.totals.items():
    assert np.max(weight) == len(dataset.source)
    np.testing.assert_allclose(total, ledger.totals[key][0], rtol=1e-5)


def test_neither_batch_nor_devices_change_the_numbers(planned, by_paper):
  larger = measured(planned(batch_size=8))[0]
  alone = measured(planned(devices=jax.devices()[:1]))[0]
  for other in (larger, alone):
    assert_equal(by_paper, other, atol=1e-5, loss_rtol=1e-5)
  uniform = by_paper.columns[Key("negative_quadrants_heatmap", "uniform")]
  assert (uniform[~np.isnan(uniform)] == 0.75).all()
  assert np.isnan(uniform).sum() == 1  # the picture without a class


@pytest.fixture(scope="module")
def without_objects(planned, dataset):
  """Returns a planner of the pictures alone, and what it measures."""
  records = [
    {k: v for k, v in record.items() if k != "objects"}
    for record in dataset.source
  ]
  bare = dataclasses.replace(dataset, source=records)
  planner = planned(dataset=bare, protocol="corrected")
  plan = planner.passes((*RUNS, "faithfulness"), METHODS)
  return planner, plan, measured(planner, plan)[0]


def test_without_objects_nothing_is_asked_of_them(without_objects):
  planner, plan, ledger = without_objects
  names = [one.name for one in plan]
  assert names == ["squares", "composites", "insertion and deletion"]
  assert all(getattr(one.maker, "grids", ()) == () for one in plan)
  metrics = {key.metric for key in (*ledger.columns, *ledger.totals)}
  needing = {k for k, metric in METRICS.items() if metric.needs_objects}
  assert not metrics & (needing | {"difficult", localisation.BOXES})
  assert {"negative_quadrants_heatmap", "zero_map_frac"} <= metrics
  results, by_class = summary.results(
    ledger, planner.pairs, planner.config.eval, list("abcdefghij")
  )
  numbers = [*results, *(key for own in by_class.values() for key in own)]
  assert not {key.metric for key in numbers} & needing
  assert results[Key("num_pairs")].value == 0


def _telling(planner, ledger, **columns):
  for metric, values in columns.items():
    key = Key(metric, "" if metric == CONFIDENCE else "gradcam")
    ledger.columns[key] = np.float32(values)
  return examples.telling(planner, ledger, "gradcam")


@pytest.mark.parametrize(
  "ranked_by, empty",
  [
    ("content_heatmap", "zero_map_frac"),
    ("negative_quadrants_heatmap", "zero_composite_frac"),
    (CONFIDENCE, "zero_map_frac"),
  ],
)
def test_the_gallery_is_ranked_by_what_there_is_and_an_empty_map_is_worst(
  planned, ranked_by, empty
):
  planner = planned()
  first = planner.pairs.first & (planner.pairs.target >= 0)
  rows = np.flatnonzero(first)
  ledger = Ledger(len(first))
  values = np.where(first, np.arange(len(first)) / 10, np.nan)
  best = rows[0 if ranked_by.startswith("negative") else -1]
  columns = {ranked_by: values, empty: 0 * values}
  found = _telling(planner, ledger, **columns)
  assert found.ranked_by == ranked_by
  assert found.chosen["best"][0] == best
  assert found.with_composites == ranked_by.startswith("negative")
  columns[empty][best] = 1
  found = _telling(planner, ledger, **columns)
  assert best not in found.chosen["best"]
  assert found.chosen["worst"][0] == best
  columns[empty][first] = 1
  assert _telling(planner, ledger, **columns).chosen["best"] == []


def test_the_gallery_shows_where_the_model_is_surely_wrong():
  ledger = Ledger(8)
  every = np.ones(8, bool)
  assert examples.surely_wrong(ledger, every) == []  # of several labels
  ledger.columns[Key("top1")] = np.float32([0, 1, 0, 0, 0, 0, np.nan, 0])
  ledger.columns[Key(CONFIDENCE)] = np.float32(
    [0.3, 0.9, 0.1, 0.2, 0.05, 0.4, 0.0, np.nan]
  )
  assert examples.surely_wrong(ledger, every) == [4, 2, 3, 0]
  every[2] = False
  assert examples.surely_wrong(ledger, every) == [4, 3, 0, 5]


def test_rounding_bounds_the_programs_and_too_many_are_refused(planned):
  def frames(**fields):
    plan = planned(protocol="release", **fields).passes(RUNS, METHODS)
    return [one.name for one in plan if one.name.startswith("frames")]

  assert len(frames(round_px=32)) <= 2
  with pytest.raises(ValueError, match=r"max_shapes=1 .*round_px=32"):
    frames(max_shapes=1)


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(planned):
  planner = planned()
  plan = [*planner.passes(RUNS, METHODS), *planner.passes(("attacks",))]
  whole, total = measured(planner, plan)
  assert total == 8
  for stop in (1, 3, 6):
    ledger, _ = measured(planner, plan, stop=stop)
    ledger, rest = measured(planner, plan, ledger)
    assert rest == total - stop
    assert_equal(whole, ledger)


def test_an_evaluation_goes_on_in_batches_of_another_size(planned, by_paper):
  """After memory was short, say: every row is measured once."""
  ledger, _ = measured(planned(batch_size=8), stop=1)
  ledger, _ = measured(planned(), ledger=ledger)
  # A float32 loss was added up in another order.
  assert_equal(by_paper, ledger, atol=1e-5, loss_rtol=1e-6)


def test_each_process_holds_its_own_maps_against_its_boxes(
  planned, monkeypatch
):
  """Maps come from all processes, boxes are those of its share."""
  monkeypatch.setattr(plans.parallel, "process", lambda: (1, 2))
  monkeypatch.setattr(
    plans.parallel, "added", lambda sums: jax.tree.map(lambda x: x + 10, sums)
  )
  told = []

  def on_host(cams, boxes):
    told.append((cams["gradcam"][:, 0, 0].tolist(), boxes))
    return {Key("boxes", "gradcam"): (np.float64(2), np.float64(3))}

  (few,) = planned().passes(("faithfulness",), ("gradcam",))
  one = dataclasses.replace(few, on_host=on_host)
  cams = {"gradcam": np.arange(4.0).reshape(4, 1, 1)}
  shown = plans.logs.Progress(4, enabled=False, name="few")
  ledger = Ledger(4)
  measured = plans.Measured({}, {}, cams)
  plans._added(ledger, shown, one, measured, np.arange(4), ["c", None])
  assert told == [([2, 3], ["c", None])]
  assert ledger.totals == {Key("boxes", "gradcam"): (12, 13)}


@pytest.mark.parametrize("costly_rows", [9, 5])
def test_pgd_attacks_pictures_without_a_class_as_fgsm_does(
  planned, costly_rows
):
  """Their false alarms count in F1. The third picture's row is the fourth."""
  planner = planned(costly_rows=costly_rows)
  fgsm, pgd = planner.passes(("attacks",))
  every = range(len(planner.pairs.index))
  first = [row for row in every if planner.pairs.first[row]]
  assert list(fgsm.rows) == first and 3 in first
  drawn = set(every[:: 8 // (costly_rows - 1)])
  assert list(pgd.rows) == [row for row in first if row in drawn]


def costly(planner):
  return planner.passes(("localisation",), ("smoothgrad",), ("smoothgrad",))[
    -2:
  ]


def test_boxes_and_curves_are_measured_on_few_rows(planned):
  planner = planned()
  few = planner.few()
  assert len(few) == 4 and (planner.pairs.target[few] >= 0).all()
  plan = [*planner.passes(("faithfulness",), METHODS), *costly(planner)]
  ledger, _ = measured(planner, plan)
  for metric, method in (
    ("content_heatmap", "smoothgrad"),
    ("insertion_auc", "gradcam"),
  ):
    column = ledger.columns[Key(metric, method)]
    assert set(np.flatnonzero(~np.isnan(column))) == set(few)
  correct, count = ledger.totals[Key(localisation.BOXES, "gradcam")]
  assert count == 4 and correct.shape == (3, 100)
  assert 0 < correct.max() <= 4


def test_the_thread_compiles_all_that_is_run(planned, caplog):
  """Sizes of its own, so that no other test has compiled it before."""
  sizes = {"costly_rows": 3, "faithfulness_steps": 3, "batch_size": 3}
  planner = planned(epsilons=(1, 4), **sizes)
  methods = (*METHODS, "fullgrad", "cmwp")
  plan = [
    *planner.passes(RUNS, METHODS),
    *costly(planner),
    *planner.passes(("faithfulness", "attacks"), methods),
  ]
  # A setting of this thread: the other says nothing of what it compiles.
  with jax.log_compiles():
    measured(planner, plan)
    jax.jit(_said)(np.ones(7))
  compiled = [
    record.args[0]
    for record in caplog.records
    if record.msg.startswith("Compiling")
  ]
  assert compiled == ["jit(_said)"]


def _said(x):
  return x + 1


def test_every_pass_says_how_many_pictures_are_done_before_it_computes(
  planned, monkeypatch
):
  """All questions at once, FGSM and PGD too; nothing is compiled here."""
  told = []

  class Told(plans.logs.Progress):
    def __init__(self, total, done=0, **fields):
      super().__init__(total, done, **fields)
      self._of = fields["name"].removeprefix("measuring "), total

    def update(self, step, metrics=None):
      told.append((*self._of, step))

  monkeypatch.setattr(plans.logs, "Progress", Told)
  planner = planned()

  def silent(one):
    def step(call, batch):
      assert call is not plans._called or told[-1][0] == one.name
      return plans.Measured({}, {}, {})

    return dataclasses.replace(one, step=step, on_host=None)

  questions = ("classification", "localisation", "faithfulness", "attacks")
  plan = planner.passes(questions, (*METHODS, "smoothgrad"), ("smoothgrad",))
  measured(planner, [silent(one) for one in plan])
  assert {"FGSM", "PGD", "insertion, deletion and boxes"} <= {
    one.name for one in plan
  }
  for one in plan:
    steps = [step for name, _, step in told if name == one.name]
    assert steps[0] == 0 and steps[-1] == len(one.rows), one.name
    assert len(steps) == 1 + one.num_batches
  (pgd,) = (one for one in plan if one.name == "PGD")
  assert pgd.batch_size <= plans.MAPS_AT_ONCE  # 10 steps an epsilon
