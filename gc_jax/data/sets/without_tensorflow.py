"""Prepares stock TFDS sets where TensorFlow is not, nor may be, imported.

Their builders take little from it: reading files, unpacking archives, and
encoding pictures. That much is done here by the standard library and Pillow,
for as long as a set is prepared; PNG is lossless, and pictures come as the
archive has them. A builder that wants more is told apart by the error.
"""

import builtins
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


class _Namespace(types.SimpleNamespace):
  """A part of TensorFlow, as far as builders use it."""

  def __getattr__(self, name: str) -> Any:
    raise NeedsTensorFlowError(f"tf.{self.path}{name}")


class _Reader(io.RawIOBase):
  """A file that may be read on after a `with` block left it, as tf's may.

  Builders rely on it: they walk to the end of an archive, and read what is in
  it later.
  """

  def __init__(self, path: Any):
    self._path = path
    self._position = 0
    self._reopen()

  def _reopen(self) -> None:
    self._file = builtins.open(self._path, "rb")  # noqa: SIM115 (see close)

  def __exit__(self, *_: Any) -> None:
    self._file.close()

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    if self._file.closed:
      self._reopen()
    self._file.seek(self._position)
    count = self._file.readinto(buffer)
    self._position += count
    return count

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    start = {
      io.SEEK_SET: 0,
      io.SEEK_CUR: self._position,
      io.SEEK_END: os.path.getsize(self._path),
    }[whence]
    self._position = start + offset
    return self._position

  def close(self) -> None:
    self._file.close()
    super().close()


def _open(path: Any, mode: str = "r") -> Any:
  if mode == "rb":
    return _Reader(path)
  text = {} if "b" in mode else {"encoding": "utf-8"}
  return builtins.open(path, mode, **text)


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
  encoded = _encode(pixels, "jpeg")
  return types.SimpleNamespace(numpy=lambda: encoded)


_STAND_IN = _Namespace(
  path="",
  compat=_Namespace(path="compat.", as_bytes=os.fsencode, as_text=os.fsdecode),
  image=_Namespace(path="image.", decode_image=_decode_image),
  io=_Namespace(
    path="io.",
    encode_jpeg=_encode_jpeg,
    gfile=_Namespace(
      path="io.gfile.",
      GFile=_open,
      exists=os.path.exists,
      glob=glob.glob,
      isdir=os.path.isdir,
      listdir=os.listdir,
      walk=os.walk,
    ),
  ),
  shape=np.shape,
)


def _encode_image(self: Any, np_image: np.ndarray) -> bytes:
  """Stands in for the method of TFDS's image feature; same checks."""
  image_feature._validate_np_array(
    np_image, shape=self.shape, dtype=self.np_dtype
  )
  return _encode(np_image, self.encoding_format)


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
    NeedsTensorFlowError: from within, where the builder wants more of
      TensorFlow than there is a stand-in for.
    ImportError: likewise, where a library of TFDS does.
  """
  users = {extractor} | {
    sys.modules[base.__module__]
    for base in type(builder).__mro__
    if not base.__module__.startswith(core.__name__)
  }
  logger = logging.getLogger("urllib3.connectionpool")
  level = logger.level
  with contextlib.ExitStack() as stack:
    for module in users:
      if hasattr(module, "tf"):
        stack.enter_context(_replaced(module, "tf", _STAND_IN))
    encoder = image_feature._ImageEncoder
    stack.enter_context(_replaced(encoder, "_encode_image", _encode_image))
    stack.enter_context(_replaced(downloader, "MAX_RETRIES", _MAX_RETRIES))
    stack.enter_context(no_tensorflow())
    logger.setLevel(logging.ERROR)  # each retry would warn
    stack.callback(logger.setLevel, level)
    yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
  before = vars(owner)[name]
  setattr(owner, name, value)
  try:
    yield
  finally:
    setattr(owner, name, before)
