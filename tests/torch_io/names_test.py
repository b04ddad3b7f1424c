"""Weights go over to PyTorch and back whole, and compute the same there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gc_jax import models
from gc_jax.attribution import METHODS
from gc_jax.torch_io import names
from tests.torch_io import parameters, torch_models

GRAD_CAMS = ("gradcam", "gradcam_elementwise")

NAMES = sorted(set(models.MODELS) - {"resnet8-small", "resnet8-small-gmp"})
NUM_CLASSES = 5
HIDDEN = 64  # as the fixture `small_perceptrons` makes ours


def twin(name):
  small = {"hidden": HIDDEN} if name in ("alexnet", "vgg16") else {}
  return torch_models.create(name, NUM_CLASSES, **small).eval()


def arrays(model):
  return {key: value.numpy() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", parameters.deepest_apart(NAMES))
def test_there_and_back_every_bit_is_the_same(name, small_perceptrons):
  theirs = twin(name)
  there = arrays(theirs)
  back = names.to_torch(names.from_torch(name, there, "PyTorch"))
  assert back.keys() == there.keys()
  for key, value in there.items():
    assert back[key].dtype == value.dtype and back[key].shape == value.shape
    assert back[key].tobytes() == value.tobytes(), key
  theirs.load_state_dict(
    {key: torch.from_numpy(value) for key, value in back.items()}, strict=True
  )


# The deep ones of a family add blocks, and no kind of layer.
@pytest.mark.parametrize(
  "name",
  [
    "alexnet",
    "resnet18",
    "resnet18-gmp",
    "resnet50",
    "resnet50-gmp",
    "squeezenet1_1",
    "squeezenet1_1-gmp",
    "vgg16",
  ],
)
@pytest.mark.parametrize(
  "size",
  [(187, 251), pytest.param((128, 96), marks=pytest.mark.large)],
  ids=str,
)
def test_an_image_of_any_size_is_seen_as_pytorch_sees_it(
  name, size, small_perceptrons
):
  """Odd sizes show strides, paddings and borders; all float32."""
  theirs = twin(name)
  ours = names.from_torch(name, arrays(theirs), "PyTorch")
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  graphdef, state = nnx.split(ours)

  @jax.jit
  def run(state, images):
    model = nnx.merge(graphdef, state)
    normalized = model.normalize(images)
    features = model.features(normalized)
    target = jnp.array([[1], [3]])
    cams = {k: METHODS[k](model, images, target)[:, 0] for k in GRAD_CAMS}
    return normalized, features, model.classify(features), cams

  normalized, features, logits, cams = jax.tree.map(
    np.array, run(state, jnp.asarray(images))
  )
  with torch.no_grad():
    seen = theirs.features(torch.from_numpy(normalized).permute(0, 3, 1, 2))
  seen.requires_grad_()
  scores = theirs.classify(seen)
  assert features.shape == seen.permute(0, 2, 3, 1).shape

  def close(a, b):
    scale = max(1e-6, b.abs().max().item())
    np.testing.assert_allclose(a, b.detach(), rtol=0, atol=1e-4 * scale)

  close(features, seen.permute(0, 2, 3, 1))
  close(logits, scores)
  (gradient,) = torch.autograd.grad(scores[0, 1] + scores[1, 3], seen)
  mean = gradient.mean((2, 3), keepdim=True)
  close(cams["gradcam_elementwise"], (gradient * seen).sum(1).relu())
  close(cams["gradcam"], (mean * seen).sum(1).relu())


def test_keys_that_do_not_fit_are_listed_with_what_they_look_like():
  there = arrays(twin("resnet18"))
  with pytest.raises(ValueError, match=r"hold the weights of 'resnet34'") as e:
    names.from_torch("resnet34", there, "a.pth")
  assert "80 missing: layer1.2.bn1.bias" in str(e.value)
  assert "look like resnet18 (or its -gmp)" in str(e.value)

  del there["fc.weight"]
  there["head.weight"] = np.zeros((5, 512))
  there["conv1.weight"] = np.zeros((64, 3, 3, 3))
  with pytest.raises(ValueError, match=r"1 missing: fc\.weight; 1 not") as e:
    names.from_torch("resnet18", there, "a.pth")
  assert "1 not its own: head.weight" in str(e.value)
  shapes = "conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)"
  assert f"1 of another shape: {shapes}" in str(e.value)
  assert "none of the known architectures" in str(e.value)


def test_counts_of_batches_may_be_missing():
  """They are in files of before PyTorch 0.4.1."""
  there = arrays(twin("resnet18"))
  old = {k: v for k, v in there.items() if not k.endswith("tracked")}
  model = names.from_torch("resnet18", old, "old.pth")
  assert names.to_torch(model)["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet50"])
def test_weights_tell_how_many_classes_they_have(name):
  last = torch_models.create(
    name, 7, **({"hidden": 8} if name[0] == "a" else {})
  )
  assert names.num_classes(name, arrays(last)) == 7
  assert names.num_classes(name, {}) is None
