"""Models exchanged with PyTorch: files in, files out, both sides compared."""

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
  "check_layout",
  "check_suffix",
  "import_torch",
  "in_folder",
  "is_packaged",
  "load_initial",
  "load_model",
  "on_disk",
  "read",
  "save_model",
]
