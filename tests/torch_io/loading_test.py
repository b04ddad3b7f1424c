"""timm's config.json, and a card's code in the libraries that it names."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from jax import numpy as jnp

import gc_jax
from gc_jax import models, torch_io
from gc_jax.data import geometry
from gc_jax.models import architecture
from gc_jax.report import artefact
from gc_jax.torch_io import card, loading, names
from tests.report import evaluations
from tests.torch_io import torch_models

SIZE = 64
CLASSES = ("cat", "dog", "bird")


def exported(name, **fields):
  """Returns what a card is of: a run without results."""
  about = evaluations.about(
    architecture=name, trained=evaluations.config(**fields)
  )
  return card.Exported(
    name="gc",
    metadata=torch_io.Metadata(name, CLASSES, False, SIZE),
    num_classes=3,
    run=artefact.Evaluated(pathlib.Path("run"), about, {}),
    grid=(2, 2),
  )


def in_subprocess(script, env, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", script, *map(str, arguments)],
    capture_output=True,
    text=True,
    env=env,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


# What a user of timm writes, and the logits of pictures given as files.
_IN_TIMM = """
import json, sys
import numpy as np
import PIL.Image
import timm
import torch

photo, *folders = sys.argv[1:]
for folder in folders:
  model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
  how = timm.data.resolve_model_data_config(model)
  transform = timm.data.create_transform(**how, is_training=False)
  pixels = transform(PIL.Image.open(photo))[None]
  with torch.no_grad():
    logits = model(pixels)
  classifier = model.get_classifier()
  assert classifier is model.get_submodule(model.pretrained_cfg["classifier"])
  model.get_submodule(model.pretrained_cfg["first_conv"])
  print(json.dumps(model.pretrained_cfg["label_names"]))
  np.savez(f"{folder}/timm.npz", pixels=pixels.numpy(), logits=logits.numpy())
"""


@pytest.fixture(scope="module")
def in_timm(with_timm, tmp_path_factory):
  """Returns what timm makes of exported folders, all by one process."""

  def run(*made):
    folder = tmp_path_factory.mktemp("exported")
    noise = np.random.default_rng(0).integers(0, 256, (90, 123, 3), np.uint8)
    photo = folder / "photo.png"
    PIL.Image.fromarray(noise).resize((246, 180)).save(photo)
    folders = []
    for number, each in enumerate(made):
      model = _random(each.metadata.architecture)
      folders.append(folder / str(number))
      torch_io.save_model(folders[-1] / loading.WEIGHTS, model, each.metadata)
      config = json.dumps(loading.timm_config(each))
      (folders[-1] / loading.CONFIG).write_text(config)
    said = in_subprocess(_IN_TIMM, with_timm, photo, *folders).splitlines()
    assert all(json.loads(line) == [*CLASSES] for line in said)
    assert len(said) == len(made)
    return photo.read_bytes(), folders

  return run


def _random(name):
  """Returns our model with the weights of a random PyTorch twin."""
  tensors = torch_models.create(name, 3).state_dict()
  return names.from_torch(
    name, {key: value.numpy() for key, value in tensors.items()}, "the twin"
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    ("resnet18", "resnet34-gmp", "resnet50"),
    # Half a gigabyte of weights each.
    pytest.param(("resnet101-gmp", "vgg16"), marks=pytest.mark.large),
  ],
  ids="+".join,
)
def test_timm_gives_the_logits_of_a_folder_from_our_own_pixels(name, in_timm):
  """Pixels and logits: float32 roundings. With -gmp, pictures are squashed."""
  squash = [models.is_gmp(each) for each in name]
  made = [
    exported(each, data__eval_resize_px=75, data__eval_squash=is_squashed)
    for each, is_squashed in zip(name, squash, strict=True)
  ]
  photo, folders = in_timm(*made)
  for folder, is_squashed in zip(folders, squash, strict=True):
    image = geometry.decode_image(photo, SIZE, 75, is_squashed)[None]
    model = gc_jax.load(folder)
    with np.load(folder / "timm.npz") as found:
      theirs = dict(found)
    np.testing.assert_allclose(
      theirs["pixels"].transpose(0, 2, 3, 1),
      model.normalize(jnp.asarray(image)),
      atol=1e-5,
    )
    ours = np.asarray(gc_jax.predict(model, image))
    largest = np.abs(ours).max()
    assert np.abs(theirs["logits"] - ours).max() < 1e-4 * largest
    assert np.ptp(ours) > 1e-3 * largest


@pytest.mark.parametrize("size", [32, 64, 112, 224, 299])
def test_timm_resizes_to_the_pixel(size):
  for resize_px in range(size, 2 * size):
    assert math.floor(size / loading.crop_pct(size, resize_px)) == resize_px


# Without numbers: vgg16's would be half a gigabyte.
_IN_TORCHVISION = """
import json, sys
import torch
import torchvision

codes = json.loads(sys.argv[1])
shapes = {}
for name, code in codes.items():
  scope = {}
  with torch.device("meta"):
    exec(code, scope)
  state = scope["model"].state_dict()
  shapes[name] = {key: list(value.shape) for key, value in state.items()}
print(json.dumps([dir(torchvision.models), shapes]))
"""


@pytest.mark.slow
def test_torchvision_has_what_cards_name_with_our_names_and_shapes(with_timm):
  codes = {
    name: known.torch_code.format(num_classes=3, image_size=224)
    for name, known in models.MODELS.items()
    if not models.is_gmp(name)
  }
  there, shapes = json.loads(
    in_subprocess(_IN_TORCHVISION, with_timm, json.dumps(codes))
  )
  assert set(there) >= architecture.TORCHVISION
  assert len(codes) == 14
  for name in codes:
    ours = names.torch_shapes(name, 3)
    assert shapes[name] == {key: list(shape) for key, shape in ours.items()}


def test_no_card_names_a_model_that_torchvision_lacks(monkeypatch):
  with pytest.raises(
    ValueError, match="Unknown model of torchvision='resnet26'"
  ):
    architecture.from_torchvision("resnet26")
  wide = models.MODELS["resnet18"].changed(width=128)
  monkeypatch.setitem(models.MODELS, "wide", wide)
  assert loading.codes(exported("wide"), loading.WEIGHTS) == {}
  text = loading.section(exported("wide"), loading.WEIGHTS)
  assert "torchvision.models" not in text and "timm" not in text
  assert 'load_file("model.safetensors")' in text
  assert loading.timm_config(exported("wide"))["library"] == "pytorch"
  pooled = models.MODELS["resnet18"].changed(pooling="max")
  monkeypatch.setitem(models.MODELS, "mine", pooled)
  assert "AdaptiveMaxPool2d" in loading.code_by_names("a.pth", "mine", 3, 64)


def test_a_model_that_timm_lacks_names_its_library():
  config = loading.timm_config(exported("squeezenet1_1-gmp"))
  assert config["architecture"] == "squeezenet1_1-gmp"
  assert config["library"] == "torchvision" and "model_args" not in config
  assert config["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]
