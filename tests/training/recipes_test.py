"""The recipes of the paper train, from the official archives in small."""

import json
import subprocess

import pytest
import safetensors.numpy

from configs import coco, finetune, imagenet
from gc_jax import models
from gc_jax.torch_io import names
from tests import smoke
from tests.data import archives

# In place of networks whose compilation takes a minute.
SMALL = {
  "alexnet": "alexnet-small",
  "resnet18": "resnet8-small",
  "resnet50": "resnet11-small",
}
# The others differ from them, and from those of the test below, by numbers that
# other tests see.
CHOSEN = (("imagenet", "alexnet-gc"),)
RECIPES = {"imagenet": imagenet, "coco": coco, "finetune": finetune}
EVERY = tuple(
  (name, variant)
  for name, recipe in RECIPES.items()
  for variant in recipe.VARIANTS
)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
  """The archives of ImageNet and COCO, four and five classes of them."""
  found = {}
  for name, build in (
    ("imagenet", archives.build_imagenet),
    ("coco", archives.build_coco),
  ):
    found[name] = tmp_path_factory.mktemp(name)
    build(found[name])
  return found


@pytest.fixture(scope="module")
def train(official, tmp_path_factory, compilation_cache):
  """Trains a variant for three steps of eight pictures; returns its results."""
  data_dir = tmp_path_factory.mktemp("tfds")

  def train(recipe, variant, workdir, *flags):
    name = "coco" if recipe == "coco" else "imagenet"
    architecture, _, row = variant.partition("-")
    pooled = "-gmp" * row.startswith("gmp")
    config = RECIPES[recipe].get_config(variant)
    settings = {
      "data.path": official[name],
      "data.dir": data_dir,
      "data.image_size": 64,
      "data.eval_resize_px": 72 if config.data.eval_resize_px else 0,
      "data.num_workers": 0,
      "model.name": SMALL[architecture] + pooled,
      "batch_size": 8,
      "eval.batch_size": 8,
      "num_epochs": 0.65,  # of four or five steps
      "log.every_steps": 1,
    }
    done = subprocess.run(
      smoke.command(
        workdir,
        f"--config=configs/{recipe}.py:{variant}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
        *flags,
      ),
      capture_output=True,
      text=True,
      cwd=smoke.ROOT,
      env=compilation_cache,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "results.json").read_text())

  return train


def check(results, workdir, recipe, variant):
  assert results["step"] == 3
  metric = "f1_overall" if recipe == "coco" else "top1"
  assert 0 <= results[f"val/{metric}"] <= 100
  assert results["val/gradcam_elementwise/content_heatmap"] > 0
  lines = (workdir / "metrics.jsonl").read_text()
  assert ("train/consistency_loss" in lines) == variant.endswith("gc")


@pytest.mark.slow  # a process that compiles each
@pytest.mark.parametrize(
  ("recipe", "variant"),
  [
    pytest.param(*each, marks=[pytest.mark.large] * (each not in CHOSEN))
    for each in EVERY
  ],
)
def test_three_steps_of_a_recipe_end_in_its_numbers(
  train, recipe, variant, tmp_path
):
  flags = []
  if recipe == "finetune":
    # As PyTorch names them, of other classes.
    weights = tmp_path / "weights.safetensors"
    model = models.create(SMALL[variant.partition("-")[0]], 7)
    safetensors.numpy.save_file(names.to_torch(model), weights)
    flags.append(f"--config.init_from={weights}")
  results = train(recipe, variant, tmp_path / "run", *flags)
  check(results, tmp_path / "run", recipe, variant)


@pytest.mark.slow
def test_coco_starts_from_a_run_on_imagenet(train, tmp_path):
  of_imagenet, of_coco = tmp_path / "imagenet", tmp_path / "coco"
  results = train("imagenet", "resnet18-gc", of_imagenet)
  check(results, of_imagenet, "imagenet", "resnet18-gc")
  flag = f"--config.init_from={of_imagenet}"
  results = train("coco", "resnet18-gc", of_coco, flag)
  check(results, of_coco, "coco", "resnet18-gc")
