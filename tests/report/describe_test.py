"""Descriptions: sentences, names, what sets runs apart."""

import pytest

from gc_jax.report import describe
from gc_jax.report.run import load_finished_run, load_run
from tests.report import workdirs


@pytest.fixture
def make(tmp_path):
  def make_run(name, **changes):
    return load_run(workdirs.write(tmp_path / name, workdirs.config(**changes)))

  return make_run


def test_the_sentence_says_what_was_trained(make):
  assert describe.sentence(make("gc")) == (
    "ResNet18 with global average pooling, trained for 10 epochs on context "
    "digits (16×16, background follows the class 50% of the time) with the "
    "Grad-CAM consistency loss, λ = 25, packed composites, seed 0."
  )


def test_a_baseline_is_said_to_train_without_the_loss(make):
  run = make("base", loss__consistency_weight=0.0, num_epochs=1)
  text = describe.sentence(run)
  assert "for 1 epoch on" in text
  assert text.endswith("without the consistency loss, seed 0.")


def test_names_are_the_papers(make):
  off = {"loss__consistency_weight": 0.0}
  gmp = {"model__name": "resnet18-gmp"}
  runs = [
    make("a", **off),
    make("b"),
    make("c", **off, **gmp),
    make("d", **gmp),
  ]
  assert list(describe.group_runs(runs)) == ["Baseline", "GC", "GMP", "GMP+GC"]


def test_runs_that_differ_by_seed_only_are_one_group(make):
  runs = [make("a"), make("b", seed=1), make("c", loss__consistency_weight=5.0)]
  groups = describe.group_runs(runs)
  assert list(groups) == ["GC, λ=25", "GC, λ=5"]
  assert groups["GC, λ=25"] == runs[:2]
  assert describe.sentence(runs[0], runs[:2]).endswith("seeds 0 and 1.")


def test_settings_of_the_loss_do_not_set_baselines_apart(make):
  runs = [
    make("a", loss__consistency_weight=0.0),
    make("b", loss__consistency_weight=0, compose__mode="independent", seed=1),
  ]
  assert list(describe.group_runs(runs)) == ["Baseline"]


def test_labels_name_what_short_names_do_not_tell_apart(make):
  runs = [
    make("a", compose__mode="independent"),
    make("b", model__name="alexnet"),
    make("c"),
  ]
  assert list(describe.group_runs(runs)) == [
    "ResNet18 GC, compose.mode=independent",
    "AlexNet GC",
    "ResNet18 GC, compose.mode=packed",
  ]


def test_25_and_25_0_are_one_configuration(make):
  runs = [make("a"), make("b", loss__consistency_weight=25, seed=1)]
  assert len(describe.group_runs(runs)) == 1


def test_runs_on_other_data_do_not_compare(make):
  runs = [make("a"), make("b", data__name="imagenet")]
  with pytest.raises(ValueError, match=r"share --config.data.name"):
    describe.check_comparable(runs)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match="does not exist"):
    load_run(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=r"has no config\.json"):
    load_run(tmp_path)


def test_an_unfinished_run_is_refused_with_what_to_do(tmp_path):
  workdirs.write(tmp_path / "a", workdirs.config())
  with pytest.raises(ValueError, match=r"command again \(it resumes"):
    load_finished_run(tmp_path / "a")
