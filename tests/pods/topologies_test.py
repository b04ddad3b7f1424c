"""Topologies by name, and the messages if one cannot be had."""

import importlib.metadata
import math

import jax
import pytest

from gc_jax.pods import topologies


def test_local_devices_are_those_here_and_a_cpu_has_no_known_limit():
  assert list(topologies.devices("local")) == jax.devices()
  assert topologies.memory_limit("local", jax.devices()) is None


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v9:2x2", "", "v5e:32x32"])
def test_an_unknown_topology_lists_the_known_ones(name):
  with pytest.raises(ValueError, match="Unknown --topology=") as raised:
    topologies.devices(name)
  message = str(raised.value)
  assert all(known in message for known in ("local", *topologies.TOPOLOGIES))


def test_slices_grow_and_each_is_named_once():
  assert len(set(topologies.TOPOLOGIES)) == len(topologies.TOPOLOGIES)
  for sizes in topologies.SLICES.values():
    chips = [math.prod(map(int, size.split("x"))) for size in sizes]
    assert chips == sorted(set(chips))


def test_without_libtpu_the_message_names_the_version_to_install(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError) as raised:
    topologies.devices("v5e:2x2")
  (named,) = (
    line.split(";")[0].strip()
    for line in importlib.metadata.requires("jax")
    if line.startswith("libtpu")
  )
  assert named.startswith("libtpu==")
  assert f"pip install '{named}'" in str(raised.value)
