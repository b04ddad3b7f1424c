"""Files of weights, broken: read whole, or refused by name."""

import functools
import io
import json
import logging
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gc_jax import torch_io
from tests.data.fuzz_test import BUDGET, mutations, outcome
from tests.torch_io.conftest import KINDS, NAME, save


@pytest.fixture(autouse=True)
def quiet():
  """Without the log of what was taken off."""
  logging.disable(logging.WARNING)
  yield
  logging.disable(logging.NOTSET)


TENSORS = {
  "conv1.weight": torch.arange(12.0).reshape(3, 4),
  "bn1.num_batches_tracked": torch.tensor(7),
  "fc.bias": torch.ones(3, dtype=torch.bfloat16),
}


@functools.cache
def encoded(kind):
  if kind == "safetensors":
    metadata = {"format": "pt", "class_names": '["a", "b", "c"]'}
    return safetensors.torch.save(TENSORS, metadata)
  buffer = io.BytesIO()
  content = {"state_dict": TENSORS, "epoch": 3, "best": np.float64(1)}
  save(content, buffer, kind)
  return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@settings(parent=BUDGET, max_examples=120)
@given(mutations(), st.sampled_from((300, None)))
def test_a_broken_file_of_weights_is_refused_by_name(
  tmp_path, kind, mutate, reach
):
  content = encoded(kind)
  path = tmp_path / "weights.bin"
  path.write_bytes(
    mutate(content[:reach]) + (content[reach:] if reach else b"")
  )
  found = outcome(path, lambda: torch_io.read(path))
  for array in found[0].arrays.values() if found else ():
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32 or array.ndim == 0


HEADERS = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**40),
    st.sampled_from(("F32", "BF16", "F8_E4M3", "I64", "F4", "x", "[]")),
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(
      st.sampled_from(
        ("dtype", "shape", "data_offsets", "__metadata__", "fc.bias", "a")
      ),
      inner,
      max_size=4,
    ),
  ),
  max_leaves=12,
)


@BUDGET
@given(HEADERS, st.integers(-2, 2))
def test_a_header_that_lies_is_refused_by_name(tmp_path, header, off):
  text = json.dumps(header).encode()
  path = tmp_path / "weights.safetensors"
  length = struct.pack("<q", len(text) + off)
  path.write_bytes(length + text + bytes(64))
  outcome(path, lambda: torch_io.read(path))


VALUES = st.recursive(
  st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
      (
        torch.ones(2),
        torch.ones(2, dtype=torch.int8),
        torch.ones(2, dtype=torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, 2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.nn.Parameter(torch.ones(0)),
        np.float64(3),
        np.ones(2),
      )
    ),
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=2),
    st.dictionaries(
      st.one_of(
        st.sampled_from(
          ("state_dict", "model", "module.a", "net.a", "a", "ema")
        ),
        st.integers(0, 2),
      ),
      inner,
      max_size=3,
    ),
  ),
  max_leaves=8,
)


@BUDGET
@given(VALUES)
def test_any_saved_value_is_loaded_or_refused_by_name(tmp_path, value):
  path = tmp_path / "weights.pth"
  torch.save(value, path)
  outcome(path, lambda: torch_io.load_model(path, NAME))
