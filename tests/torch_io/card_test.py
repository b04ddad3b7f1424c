"""Model cards: what was measured, what not, and the Hub's metadata."""

import dataclasses
import pathlib

import pytest
import yaml

from gc_jax import torch_io
from gc_jax.report import artefact
from gc_jax.torch_io import card
from tests.report import evaluations

RESULTS = {
  "step": 320,
  "val/top1": 91.25,
  "val/top1_low": 90.0,
  "val/top1_high": 92.5,
  "val/top5": None,
  "val/gradcam_elementwise/negative_quadrants_heatmap": 7.0,
  "val/uniform/negative_quadrants_heatmap": 75.0,
  "val/gradcam_elementwise/pointing_game": 20.0,
  "val/center/pointing_game": 60.0,
  "val/gradcam/content_heatmap": 50.0,
}


@pytest.fixture
def exported():
  """Returns a function: fields, and those of the run's configuration."""

  def make(results=RESULTS, fields=None, **config):
    about = evaluations.about(trained=evaluations.config(**config))
    run = artefact.Evaluated(pathlib.Path("run"), about, results, training=[])
    metadata = torch_io.Metadata("resnet18", ("a", "b", "c"), False, 64)
    made = card.Exported("gc", metadata, 3, run, (2, 2), 320, 4_000)
    return dataclasses.replace(made, **(fields or {}))

  return make


def part(text, title):
  return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_a_card_lists_what_was_measured_with_intervals(exported):
  text = card.model_card(exported(), "", {})
  rows = [r for r in part(text, "Results").splitlines() if r[:2] == "| "]
  assert rows[1:] == [
    "| Top-1 ↑ | 91.2 | 90.0 to 92.5 |  | images classified correctly |",
    "| PG ↑ | 20.0 |  |  | pointing game: maps that peak on the object |",
    "| NQH ↓ | 7.0 |  | 75.0 | negative quadrants heatmap: map of a composite "
    "on its distractors |",
  ]


def test_a_card_says_what_limits_the_model(exported):
  made = exported(
    data__train_split="train",
    init_from="/data/imagenet.pth",
    data__eval_resize_px=75,
  )
  text = card.model_card(made, "", {})
  limits = part(text, "Limits")
  assert "4,000 pictures of context digits, split train" in limits
  assert "started from the weights of `imagenet.pth`" in limits
  assert "/data/" not in text
  # A Gaussian in the centre points better.
  assert "a map that looks at nothing, does better: in PG (" in limits
  assert "shorter side scaled to 75 pixels" in part(text, "Pictures")
  assert "BSD-3-Clause" in part(text, "Licence")
  assert "left out" not in limits
  made.run.training.append({"train/masked_pairs_frac": 0.75})
  assert "left out 75 % of the pairs" in card.model_card(made, "", {})


def test_a_card_without_annotations_says_that_objects_were_not_looked_at(
  exported,
):
  results = {k: v for k, v in RESULTS.items() if "pointing" not in k}
  made = exported(results | {"val/num_pairs": 0})
  assert "No picture of this split has a mask" in card.model_card(made, "", {})
  assert "has a mask" not in card.model_card(exported(), "", {})


@pytest.mark.parametrize(
  "results, said", [({}, "None yet"), (RESULTS, "at step 320")]
)
def test_numbers_of_other_weights_are_not_theirs(exported, results, said):
  made = exported(results, {"step": 160})
  assert said in part(card.model_card(made, "", {}), "Results")
  assert "model-index" not in card.hub_metadata(made, "timm")


def test_the_hubs_metadata_is_a_block_of_yaml(exported):
  made = exported(fields={"license": "mit"})
  block = card.hub_metadata(made, "timm", "timm")
  front, text = card.model_card(made, "", block).split("\n---\n", 1)
  assert yaml.safe_load(front.removeprefix("---\n")) == block
  assert text.lstrip().startswith("# gc\n")
  assert block["license"] == "mit" and block["library_name"] == "timm"
  assert block["datasets"] == ["context_digits"]
  ((result,),) = (model["results"] for model in block["model-index"])
  assert result["dataset"]["split"] == "test"
  assert result["metrics"][0] == {
    "type": "top1",
    "name": "Top-1",
    "value": 91.25,
    "args": {"interval_95": [90.0, 92.5]},
  }
  assert "license" not in card.hub_metadata(exported(), "timm")
