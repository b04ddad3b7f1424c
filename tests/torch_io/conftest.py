"""The weights of a small model, and files that hold them."""

import numpy as np
import pytest
import safetensors.torch
import torch

from gc_jax import models
from gc_jax.torch_io import load_model, names

NAME = "resnet8-small"
KINDS = ("safetensors", "pickle", "old pickle")  # before PyTorch 1.6: old


@pytest.fixture(scope="session")
def weights():
  return names.to_torch(models.create(NAME, 3))


@pytest.fixture
def tensors(weights):
  return {key: torch.from_numpy(value) for key, value in weights.items()}


def save(content, path, kind="pickle"):
  if kind == "safetensors":
    safetensors.torch.save_file(content, path)
  else:
    is_old = kind == "old pickle"
    torch.save(content, path, _use_new_zipfile_serialization=not is_old)


def same(model, weights):
  back = names.to_torch(model)
  return all(np.array_equal(back[key], value) for key, value in weights.items())


def is_loaded(path, weights):
  return same(load_model(path, NAME)[0], weights)


def refused(path, name=NAME):
  """Returns the message that refuses a file: short, and names the file."""
  with pytest.raises(ValueError) as error:
    load_model(path, name)
  message = str(error.value)
  assert str(path) in message
  assert len(message) < 2_000 and len(message.splitlines()) == 1
  return message
