"""Models exchanged with PyTorch: files in, files out, both sides compared."""

from gc_jax.torch_io import card, loading, names, proof
from gc_jax.torch_io.files import (
  Metadata,
  Source,
  check_layout,
  check_suffix,
  load_initial,
  load_model,
  on_disk,
  read,
  save_model,
)
from gc_jax.torch_io.packaged import is_packaged
from gc_jax.torch_io.pickles import import_torch
from gc_jax.torch_io.reading import SUFFIXES, in_folder

__all__ = [
  "SUFFIXES",
  "Metadata",
  "Source",
  "card",
  "check_layout",
  "check_suffix",
  "import_torch",
  "in_folder",
  "is_packaged",
  "load_initial",
  "load_model",
  "loading",
  "names",
  "on_disk",
  "proof",
  "read",
  "save_model",
]
