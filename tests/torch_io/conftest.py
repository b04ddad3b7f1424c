"""Small perceptrons: AlexNet and VGG16 at a thirtieth of their size."""

import functools

import pytest

from gc_jax import models

HIDDEN = 64


@pytest.fixture
def small_perceptrons(monkeypatch):
  for name in ("alexnet", "vgg16"):
    small = functools.partial(models.MODELS[name], hidden=HIDDEN)
    monkeypatch.setitem(models.MODELS, name, small)
