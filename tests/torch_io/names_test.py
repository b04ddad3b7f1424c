"""Weights go over to PyTorch and back whole, and compute the same there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gc_jax import models
from gc_jax.attribution import METHODS
from gc_jax.models import network
from gc_jax.torch_io import load_initial, load_model, names, proof
from tests.torch_io import torch_models
from tests.torch_io.conftest import NAME, same, save

GRAD_CAMS = ("gradcam", "gradcam_elementwise")

# The deep, wide and small ones of a family have no other kind of layer.
NAMES = sorted(
  name
  for name in models.MODELS
  if "-small" not in name
  and models.without_gmp(name)
  not in ("resnet34", "resnet101", "vit_small", "vit_base")
)
NUM_CLASSES = 5


def twin(name):
  small = torch_models.small(name)
  return torch_models.create(name, NUM_CLASSES, **small).eval()


def arrays(model):
  return {key: value.numpy() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_to_pytorch_and_back_bit_for_bit(name, small_models):
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


@pytest.mark.parametrize("name", NAMES)
def test_features_logits_and_maps_are_pytorchs_at_any_size(name, small_models):
  """Odd sizes show strides, paddings and borders; all float32."""
  theirs = twin(name)
  ours = names.from_torch(name, arrays(theirs), "PyTorch")
  size = (187, 251) if name != "vit_tiny" else (176, 256)  # of whole patches
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

  def close(a, b):
    scale = max(1e-6, b.abs().max().item())
    np.testing.assert_allclose(a, b.detach(), rtol=0, atol=1e-4 * scale)

  # The pass in PyTorch that the network itself states, which --verify runs.
  ops = proof.Operations(torch, arrays(theirs))
  inputs = torch.from_numpy(normalized).permute(0, 3, 1, 2)
  with torch.no_grad():
    seen = theirs.features(inputs)
    close(ours.torch_features(ops, inputs), seen)
    close(ours.torch_classify(ops, seen), theirs.classify(seen))
  seen.requires_grad_()
  scores = theirs.classify(seen)
  assert features.shape == seen.permute(0, 2, 3, 1).shape
  close(features, seen.permute(0, 2, 3, 1))
  close(logits, scores)
  (gradient,) = torch.autograd.grad(scores[0, 1] + scores[1, 3], seen)
  explained = seen.shape[1] - network.context_of(ours)
  seen, gradient = seen[:, :explained], gradient[:, :explained]
  mean = gradient.mean((2, 3), keepdim=True)
  close(cams["gradcam_elementwise"], (gradient * seen).sum(1).relu())
  close(cams["gradcam"], (mean * seen).sum(1).relu())


def test_keys_that_do_not_fit_are_listed_with_the_architecture_they_suggest():
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
  """PyTorch had none before 0.4.1."""
  there = arrays(twin("resnet18"))
  old = {k: v for k, v in there.items() if not k.endswith("tracked")}
  model = names.from_torch("resnet18", old, "old.pth")
  assert names.to_torch(model)["bn1.num_batches_tracked"] == 0


# Files that hold more than a bare model.


@pytest.fixture(params=["safetensors", "pickle", "memory"])
def loaded(request, tmp_path):
  """Loads arrays, by way of a file of either kind or of none, as a model."""

  def loaded(arrays, name=NAME, load=load_model):
    if request.param == "memory":
      return load(arrays, name)[0]
    tensors = {
      k: torch.from_numpy(np.array(v, order="C")) for k, v in arrays.items()
    }
    save(tensors, tmp_path / "a.pth", request.param)
    return load(tmp_path / "a.pth", name)[0]

  return loaded


def under(prefix, arrays):
  return {prefix + key: array for key, array in arrays.items()}


@pytest.mark.parametrize("load", [load_model, load_initial])
@pytest.mark.parametrize(
  ("prefix", "taken"),
  [
    ("model.", "'model.'"),
    ("module.", "'module.'"),
    ("_orig_mod.", "'_orig_mod.'"),
    ("module.model.backbone.", "'module.' and 'model.backbone.'"),
    ("model._orig_mod.module.", "'_orig_mod.' and 'module.' and 'model.'"),
    ("my.own classifier.", "'my.own classifier.'"),
    ("_fsdp_wrapped_module.", "'_fsdp_wrapped_module.'"),
    ("ema_model.module.", "'module.' and 'ema_model.'"),
    ("fc.", "'fc.'"),
    (".", "'.'"),
  ],
)
def test_a_common_prefix_of_all_keys_is_taken_off_and_logged(
  loaded, weights, prefix, taken, load, caplog
):
  assert same(loaded(under(prefix, weights), load=load), weights)
  (message,) = caplog.messages
  assert message.endswith(f": {taken} taken off its keys.")


@pytest.mark.parametrize(
  ("name", "part", "wrapper"),
  [
    (NAME, "layer1.", "_checkpoint_wrapped_module."),
    ("squeezenet1_1", "features.", "module."),  # the release's DataParallel
    ("squeezenet1_1", "", "features."),
  ],
)
def test_wrappers_of_parts_are_taken_off(loaded, name, part, wrapper):
  weights = names.to_torch(models.create(name, 2))
  inner = {k.replace(part, part + wrapper, 1): v for k, v in weights.items()}
  assert inner.keys() != weights.keys() and same(loaded(inner, name), weights)


@pytest.mark.parametrize(
  "extra",
  ["n_averaged", "model.n_averaged", "criterion.weight", "loss_fn.pos_weight",
   "total_ops", "model.layer1.total_params"],
)  # fmt: skip
def test_bookkeeping_beside_a_model_is_left_out_and_logged(
  loaded, weights, extra, caplog
):
  arrays = {**under("model.", weights), extra: np.ones((), np.float32)}
  assert same(loaded(arrays), weights)
  assert f"no weights, and left out: {extra}." in caplog.text


@pytest.mark.parametrize("extra", ["train_acc.tp", "fc.weight"])
def test_other_arrays_beside_a_model_are_refused_by_name(
  loaded, weights, extra
):
  """The trained classifier may stand behind a backbone."""
  arrays = {**under("model.", weights), extra: np.ones(2, np.float32)}
  count = len(weights)
  with pytest.raises(
    ValueError,
    match=rf"'{NAME}' alone; {count} of its {count + 1} keys begin "
    rf"with 'model\.', .* they are {NAME}'s, but the others are not: {extra}"
    r"\. Save .*torch\.save\(\{k: v .* if k\.startswith\('model\.'\)\}, FILE\)",
  ):
    loaded(arrays)


@pytest.mark.parametrize(
  ("a", "b"), [("teacher.", "student."), ("", "teacher."), ("m.a.", "m.b.")]
)
def test_several_models_in_a_file_are_refused(loaded, weights, a, b):
  arrays = {**under(a, weights), **under(b, weights)}
  named = [f"under {p!r}" if p else "under bare names" for p in (a, b)]
  with pytest.raises(ValueError, match=rf"one {NAME}; it holds 2: ") as error:
    loaded(arrays)
  assert all(name in str(error.value) for name in named)


@pytest.mark.parametrize("plain", ["", "model.", "module."])
@pytest.mark.parametrize("average", ["ema.", "ema_model.module.", "net_swa."])
def test_trained_weights_come_before_their_averages(
  loaded, weights, plain, average, caplog
):
  other = {key: array * 0 for key, array in weights.items()}
  arrays = {**under(average, other), **under(plain, weights)}
  assert same(loaded(arrays), weights)
  shown = average.replace("module.", "")
  assert f"averaged weights under {shown!r} not read" in caplog.text


def test_an_array_under_two_names_is_refused(loaded, weights):
  with pytest.raises(
    ValueError,
    match=r"'fc\.bias' twice, as 'fc\.bias' and as 'module\.fc\.bias'\. Save "
    "one of the two",
  ):
    loaded({**weights, "module.fc.bias": weights["fc.bias"] * 0})


def test_weights_of_another_model_are_refused_without_their_prefix(
  loaded, weights
):
  arrays = under("model.", weights)
  for name, message in (
    (
      "resnet18",
      r"\(without 'model\.', which its keys begin with\) must hold the weights "
      r"of 'resnet18'.* look like resnet8-small \(or its -gmp\)",
    ),
    ("squeezenet1_1", r"They look like resnet8-small"),
    (None, "like --arch=resnet8-small, or resnet8-"),
  ):
    with pytest.raises(ValueError, match=message):
      loaded(arrays, name)
  del arrays["model.fc.bias"]
  with pytest.raises(
    ValueError, match=r"do not fit: 1 missing: fc\.bias\. The"
  ):
    loaded(arrays)


def test_the_first_layers_alone_keep_their_names(loaded):
  weights = names.to_torch(models.create("squeezenet1_1", 2))
  trunk = {k: v for k, v in weights.items() if k.startswith("features.")}
  with pytest.raises(ValueError, match=r"2 missing: classifier\.1\.(bias|wei)"):
    loaded(trunk, "squeezenet1_1")


def test_a_list_of_names_is_short_and_printable():
  many = [f"layer{i}" for i in range(100)]
  assert names.listed(many) == ", ".join(many[:5]) + ", and 95 more"
  assert names.listed(["a\nb", "\udc80"]) == "'a\\nb', '\\udc80'"
  assert len(names.listed(["a" * 10_000] * 9)) < 600
