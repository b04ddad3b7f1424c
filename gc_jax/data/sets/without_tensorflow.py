"""Prepares stock TFDS sets although TensorFlow must not be imported.

Their builders take little from it: reading files, unpacking archives, and
encoding pictures. The standard library and Pillow stand in while a set is
prepared; PNG is lossless, and most pictures stay as the archive has them. A
builder that needs more raises `NeedsTensorFlowError`.
"""

import contextlib
import glob
import importlib.abc
import importlib.machinery
import io
import logging
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
from tensorflow_datasets import core
from tensorflow_datasets.core.download import downloader, extractor
from tensorflow_datasets.core.features import image_feature

from gc_jax.data.decode import FORMATS

# TFDS tries eleven times, for minutes, on a machine without a network.
_MAX_RETRIES = 3
_JPEG_QUALITY = 95  # TensorFlow's


class NeedsTensorFlowError(Exception):
  """A builder asked for a part of TensorFlow that has no stand-in."""


class _File(io.FileIO):
  """A file that is open until it is garbage.

  Builders walk to the end of an archive, leave its `with` block, and read what
  is in it later. TensorFlow's files allow that.
  """

  def __exit__(self, *_: Any) -> None:
    pass

  def __del__(self) -> None:
    self.close()


def _open(path: Any, mode: str = "r") -> Any:
  if mode == "rb":
    return _File(path)
  return open(path, mode, encoding=None if "b" in mode else "utf-8")


def _decode_image(encoded: bytes) -> np.ndarray:
  with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
    return np.asarray(image.convert("RGBA" if image.mode == "RGBA" else "RGB"))


def _encode(pixels: np.ndarray, encoding: str) -> bytes:
  if pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  buffer = io.BytesIO()
  options = {"quality": _JPEG_QUALITY} if encoding == "jpeg" else {}
  PIL.Image.fromarray(pixels).save(buffer, format=encoding, **options)
  return buffer.getvalue()


def _encode_jpeg(pixels: np.ndarray) -> Any:
  return types.SimpleNamespace(numpy=lambda: _encode(pixels, "jpeg"))


def _encode_image(self: Any, np_image: np.ndarray) -> bytes:
  """Stands in for the method of TFDS's image feature; same checks."""
  image_feature._validate_np_array(
    np_image, shape=self.shape, dtype=self.np_dtype
  )
  return _encode(np_image, self.encoding_format)


_STAND_INS = {
  "tf.compat.as_bytes": os.fsencode,
  "tf.compat.as_text": os.fsdecode,
  "tf.image.decode_image": _decode_image,
  "tf.io.encode_jpeg": _encode_jpeg,
  "tf.io.gfile.GFile": _open,
  "tf.io.gfile.exists": os.path.exists,
  "tf.io.gfile.glob": glob.glob,
  "tf.io.gfile.isdir": os.path.isdir,
  "tf.io.gfile.listdir": os.listdir,
  "tf.io.gfile.walk": os.walk,
  "tf.shape": np.shape,
}


class _TensorFlow:
  """What builders import as `tf`, or a module of it."""

  def __init__(self, path: str = "tf"):
    self._path = path

  def __getattr__(self, name: str) -> Any:
    path = f"{self._path}.{name}"
    if path in _STAND_INS:
      return _STAND_INS[path]
    if any(known.startswith(f"{path}.") for known in _STAND_INS):
      return _TensorFlow(path)
    raise NeedsTensorFlowError(path)


class _NoTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds TensorFlow where it is, and does not load it.

  It has to be found: libraries ask, and remember, whether it is there.
  """

  @classmethod
  def find_spec(cls, fullname: str, path: Any, target: Any = None) -> Any:
    if fullname != "tensorflow":
      return None  # others find it
    spec = importlib.machinery.PathFinder.find_spec(fullname, path)
    if spec is not None:
      spec.loader = cls()
    return spec

  def exec_module(self, module: types.ModuleType) -> None:
    raise ModuleNotFoundError(
      f"No module named {module.__name__!r}", name=module.__name__
    )


@contextlib.contextmanager
def no_tensorflow() -> Iterator[None]:
  """Makes `import tensorflow` fail within, whether it is installed or not.

  TFDS answers a failed import with a banner on stdout; nothing is printed.
  """
  sys.meta_path.insert(0, _NoTensorFlow)  # first in line
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    sys.meta_path.remove(_NoTensorFlow)


@contextlib.contextmanager
def without_tensorflow(builder: core.DatasetBuilder) -> Iterator[None]:
  """Lets a builder prepare its data; TensorFlow is not imported meanwhile.

  Raises:
    NeedsTensorFlowError, ImportError: from within, where the builder or a
      library of TFDS needs a part of TensorFlow that has no stand-in.
  """
  replacements = [
    (image_feature._ImageEncoder, "_encode_image", _encode_image),
    (downloader, "MAX_RETRIES", _MAX_RETRIES),
  ]
  modules = {
    sys.modules[base.__module__]
    for base in type(builder).__mro__
    if not base.__module__.startswith(core.__name__)
  }
  for module in modules | {extractor}:
    if hasattr(module, "tf"):
      replacements.append((module, "tf", _TensorFlow()))
  logger = logging.getLogger("urllib3.connectionpool")
  with contextlib.ExitStack() as stack:
    for owner, name, value in replacements:
      stack.callback(setattr, owner, name, vars(owner)[name])
      setattr(owner, name, value)
    stack.enter_context(no_tensorflow())
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.ERROR)  # each retry would warn
    yield
