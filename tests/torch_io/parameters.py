"""Architectures as parameters of tests."""

import pytest


def deepest_apart(names):
  """Returns the names as parameters of a test, ResNet101's only if asked."""
  return [
    pytest.param(name, marks=[pytest.mark.large] * name.startswith("resnet101"))
    for name in names
  ]
