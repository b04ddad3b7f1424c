"""Descriptions: sentences, names, what sets models apart, what compares."""

import dataclasses
import re

import pytest

from gc_jax.report import artefact, describe
from tests.report import evaluations

OFF = {"loss__consistency_weight": 0.0}
GMP = {"model__name": "resnet18-gmp"}
FOLDER = {"data__name": "folder"}


@pytest.fixture
def make(tmp_path):
  """Makes an evaluation at the end of a run: of a name, with other settings."""

  def made(name, **changes):
    results = evaluations.run_results()
    tree = evaluations.config(**changes)
    about = artefact.make_about(tree, f"runs/{name}", results)
    return artefact.Evaluated(tmp_path / name, about, results, is_run=True)

  return made


def _about(evaluated, **changes):
  """Returns an evaluation, with other fields of what was evaluated."""
  about = dataclasses.replace(evaluated.about, **changes)
  return dataclasses.replace(evaluated, about=about)


def test_the_sentence_says_what_was_trained_and_evaluated(make):
  assert describe.sentence(make("gc").about) == (
    "ResNet18 with global average pooling, trained for 10 epochs on context "
    "digits (16×16, background follows the class 50% of the time) with the "
    "Grad-CAM consistency loss, λ = 25, packed composites, seed 0. Evaluated "
    "on 1,000 images of context digits, split test."
  )
  text = describe.training(make("base", **OFF, num_epochs=1).about)
  assert "for 1 epoch on" in text
  assert text.endswith("without the consistency loss, seed 0.")


def test_a_file_that_does_not_say_its_loss_is_not_given_one():
  about = evaluations.about(consistency=None, source="x/best.pth")
  text = describe.sentence(about)
  assert "whether with the consistency loss, its file does not say." in text
  assert describe.label(about) == "ResNet18 (best.pth)"


def test_a_loss_that_is_not_the_papers_is_said(make):
  energy = make("e", **OFF, loss__energy_weight=3.0)
  assert describe.label(energy.about) == "ResNet18 Energy"
  text = describe.sentence(energy.about)
  assert text.count("with a loss on the energy in the object, weight 3,") == 1
  both = make("b", loss__energy_weight=3.0, **GMP)
  assert describe.paper_names(both.about) == ["GMP+GC+Energy"]


def test_names_are_the_papers(make):
  alexnet = {"model__name": "alexnet"}
  changes = [OFF, {}, OFF | GMP, GMP, alexnet]
  made = [make(str(n), **own) for n, own in enumerate(changes)]
  assert list(describe.group(made)) == [
    *("ResNet18 Baseline", "ResNet18 GC", "ResNet18 GMP", "ResNet18 GMP+GC"),
    "AlexNet GC",
  ]


# By seed, and by what says where and how a run happens: the same experiment.
@pytest.mark.parametrize(
  "first, changes",
  [
    ({}, {}),
    ({}, {"data__path": "/disk/archives"}),
    (
      FOLDER | {"data__path": "pets"},
      FOLDER | {"data__path": "pets/", "data__dir": "/tfds"},
    ),
    ({}, {"checkpoint__keep": 7}),
    ({}, {"model__remat": True}),
    ({}, {"profile_steps": [3, 5]}),
    (
      {},
      {"eval__batch_size": 7, "data__num_workers": 2, "log__every_steps": 1},
    ),
    ({}, {"eval__max_shapes": 99}),
    ({}, {"eval__methods": ["cmwp"]}),
    ({}, {"loss__consistency_weight": 25}),
    (OFF, OFF | {"compose__mode": "independent"}),
  ],
  ids=str,
)
def test_runs_that_differ_by_seed_only_are_one_group(make, first, changes):
  one, other = make("a", **first), make("b", seed=1, **changes)
  describe.check_comparable([one, other])
  ((label, members),) = describe.group([one, other]).items()
  assert members == [one, other]
  text = describe.training(one.about, [one.about, other.about])
  assert text.endswith("seeds 0 and 1.")
  assert "," not in label


@pytest.mark.parametrize(
  "changes, own, other",
  [
    ({"loss__consistency_weight": 5.0}, "λ=25", "λ=5"),
    (
      {"compose__mode": "independent", "optim__momentum": 0.5},
      "compose.mode=packed, optim.momentum=0.9",
      "compose.mode=independent, optim.momentum=0.5",
    ),
    (
      {"data__train_split": "train[:9]"},
      "data.train_split=train",
      "data.train_split=train[:9]",
    ),
  ],
)
def test_what_else_makes_the_model_makes_another_row(make, changes, own, other):
  groups = describe.group([make("a"), make("b", seed=1, **changes)])
  assert list(groups) == [f"ResNet18 GC, {words}" for words in (own, other)]


def test_a_run_and_its_evaluation_are_one_model(make, tmp_path):
  run = make("gc")
  evaluated = _about(
    dataclasses.replace(run, folder=tmp_path / "eval"),
    config=evaluations.config(eval__costly_rows=3),
    questions=artefact.QUESTIONS,
  )
  describe.check_comparable([run, evaluated])
  assert len(describe.group([run, evaluated])) == 1
  (remark,) = describe.shared_seeds(describe.group([run, evaluated]))
  assert "ResNet18 GC share a seed" in remark


@pytest.mark.parametrize(
  "sources, labels",
  [
    (["x/a.pth", "x/b.pth"], ["(a.pth)", "(b.pth)"]),
    (["x.pth", "x.pth"], ["(x.pth), 0", "(x.pth), 1"]),
  ],
)
def test_namesakes_of_files_are_told_apart_by_their_source(
  tmp_path, sources, labels
):
  made = [
    evaluations.make(tmp_path / str(n), consistency=None, source=source)
    for n, source in enumerate(sources)
  ]
  assert list(describe.group(made)) == [f"ResNet18 {one}" for one in labels]


# What moves the numbers of an evaluation: none is compared without a word.
@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"data__name": "imagenet"}, "the data set, --config.data.name"),
    (
      {"eval__protocol": "release"},
      "whether pictures are whole, --config.eval.protocol",
    ),
    ({"data__eval_squash": True}, "--config.data.eval_squash"),
    ({"data__eval_resize_px": 18}, "--config.data.eval_resize_px"),
    ({"eval__tolerance_px": 9.0}, "--config.eval.tolerance_px"),
    ({"data__image_size": 32}, "--config.data.image_size"),
    ({"data__eval_split": "test[:5]"}, "--config.data.eval_split"),
    ({"data__background_frac": 0.9}, "--config.data.background_frac"),
    ({"eval__spg_samples": 5}, "--config.eval.spg_samples"),
  ],
)
def test_what_was_measured_otherwise_is_refused(make, changes, words):
  one, other = make("a"), make("b", **changes)
  for is_run in (True, False):
    other = dataclasses.replace(other, is_run=is_run)
    with pytest.raises(ValueError, match=f"must share {re.escape(words)} for"):
      describe.check_comparable([one, other])


def test_a_run_of_before_the_border_is_a_seed_of_those_after(make):
  before = make("before", seed=0)
  after = make("after", seed=1, eval__border="")
  (members,) = describe.group([before, after]).values()
  assert members == [before, after]
  # Where boxes differ, the label says so.
  both = [
    make(border or "own", eval__protocol="release", eval__border=border)
    for border in ("", "clipped")
  ]
  assert [name.split(" by ")[1] for name in describe.group(both)] == [
    "“release”",
    "“release”, border clipped",
  ]


def test_the_release_and_its_correction_stand_side_by_side(make):
  both = [
    make(name, eval__protocol=name, seed=seed)
    for name in ("release", "corrected")
    for seed in (0, 1)
  ]
  describe.check_comparable(both)
  groups = describe.group(both)
  assert [len(members) for members in groups.values()] == [2, 2]
  first, second = groups
  assert first.endswith(" by “release”") and second.endswith("“corrected”")
  said = describe.protocols([one.about for one in both])
  assert said.count("Protocol “") == 2 and said.endswith("cannot be compared.")


def test_two_folders_of_pictures_are_two_data_sets(make):
  one, same, other = (
    make(path[0], **FOLDER, data__path=path)
    for path in ("pets", "./pets/", "birds")
  )
  describe.check_comparable([one, same])
  with pytest.raises(ValueError, match=r"--config\.data\.path"):
    describe.check_comparable([one, other])


def test_settings_of_questions_that_one_did_not_ask_do_not_matter(make):
  runs = [make("a"), make("b", eval__epsilons=[3], eval__sanity_rows=1)]
  describe.check_comparable(runs)
  asked = [_about(one, questions=artefact.QUESTIONS) for one in runs]
  with pytest.raises(ValueError, match=r"--config\.eval\.epsilons"):
    describe.check_comparable(asked)


def test_other_numbers_of_images_are_refused_in_a_few_words(make):
  made = [make(str(n)) for n in range(9)]
  made.append(_about(make("x"), num_images=10))
  with pytest.raises(ValueError, match=r"number of eval.* and 5 more\."):
    describe.check_comparable(made)


def test_a_users_folder_is_called_by_its_name(tmp_path):
  tree = evaluations.config(data__name="folder", data__path="/data/birds")
  about = evaluations.about(data_name="folder", config=tree, trained=tree)
  assert describe.data_title(about) == "folder birds"
  told = describe.sentence(about)
  assert "on folder birds" in told and "images of folder birds, split" in told
  imagenet = evaluations.config(data__name="imagenet", data__path="/archives")
  about = evaluations.about(data_name="imagenet", config=imagenet)
  assert describe.data_title(about) == "ImageNet"


@pytest.mark.parametrize(
  "num_located, words",
  [
    (1200, "100 of the 1,200 (image, class) pairs"),
    (0, "100 of the 1,200 (image, class) pairs"),
    (80, "100 of the 1,200 (image, class) pairs (80 of all have an object)"),
  ],
)
def test_costly_numbers_are_of_fewer_pairs_however_many_are_located(
  tmp_path, num_located, words
):
  made = evaluations.make(tmp_path / "e")
  made.results["val/num_pairs"] = num_located
  assert describe.fewer_pairs(made) == words


def test_older_evaluations_count_their_pairs_in_their_rows(tmp_path):
  folder = evaluations.write(tmp_path / "e", num_costly_images=20, num_pairs=0)
  made = artefact.load(folder)
  assert made.about.num_pairs == 80
  assert describe.fewer_pairs(made).startswith("20 of the 80 (")
