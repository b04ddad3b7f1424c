"""Models exchanged with PyTorch: files in, files out, both sides compared."""

from gc_jax.torch_io import card, compare, names
from gc_jax.torch_io.files import (
  SUFFIXES,
  WRITTEN,
  Metadata,
  check_suffix,
  import_torch,
  load_model,
  read,
  save_model,
)

__all__ = [
  "SUFFIXES",
  "WRITTEN",
  "Metadata",
  "card",
  "check_suffix",
  "compare",
  "import_torch",
  "load_model",
  "names",
  "read",
  "save_model",
]
