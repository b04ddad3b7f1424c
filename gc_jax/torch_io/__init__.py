"""Models exchanged with PyTorch: files in, files out, both sides compared."""

from gc_jax.torch_io.files import Metadata, load_model, save_model

__all__ = ["Metadata", "load_model", "save_model"]
