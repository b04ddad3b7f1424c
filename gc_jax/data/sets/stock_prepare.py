"""Finds a stock TFDS set on disk, or downloads and prepares it there.

Every failure is reported with what to do about it. TensorFlow must not be
imported. Builders take little from it: reading files, unpacking archives,
encoding pictures. The standard library and Pillow stand in while a set is
prepared; PNG is lossless, and most pictures stay as the archive has them.
"""

import contextlib
import glob
import importlib.abc
import importlib.machinery
import io
import logging
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.download import (
  download_manager,
  downloader,
  extractor,
)
from tensorflow_datasets.core.download.util import DownloadError
from tensorflow_datasets.core.features import image_feature

from gc_jax.data.decode import FORMATS
from gc_jax.data.sets.stock_sets import PREFIX
from gc_jax.data.storage import prepare
from gc_jax.runtime.messages import unknown_name_message

_logger = logging.getLogger(__name__)

# module -> what to install for it, where that has another name
_PACKAGES = {"cv2": "opencv-python-headless"}

# TFDS tries eleven times, for minutes, on a machine without a network.
_MAX_RETRIES = 3
_JPEG_QUALITY = 95  # TensorFlow's

_ENVIRONMENT = (
  "  python -m venv tfds-tools\n"
  "  tfds-tools/bin/pip install tensorflow tensorflow-datasets array_record"
)


def open_prepared(
  name: str,
  data_dir: str,
  check: Callable[[tfds.core.DatasetBuilder], None],
) -> tfds.core.DatasetBuilder:
  """Returns the builder of a set whose array_record files are on disk.

  `check` raises if the set is of no use; it is called before any download.

  Raises:
    ValueError: there is no such set, or it cannot be read or prepared here.
  """
  builder = _open(name, data_dir)
  check(builder)
  path = pathlib.Path(builder.data_path)
  if not path.exists():
    return _prepare(name, data_dir, builder)
  if not _is_readable(builder):
    # Only the files know the formats that were added later.
    builder = tfds.builder_from_directory(path)
  if not _is_readable(builder):
    raise ValueError(
      f"{path} must hold array_record files to be read without TensorFlow; it "
      f"was prepared as {builder.info.file_format.value}. Convert it, in an "
      f"environment of its own:\n{_ENVIRONMENT}\n"
      f"  tfds-tools/bin/tfds convert_format --dataset_version_dir={path} "
      "--out_file_format=array_record"
    )
  return builder


def _is_readable(builder: tfds.core.DatasetBuilder) -> bool:
  readable = tfds.core.FileFormat.with_random_access()
  return bool(builder.info.available_file_formats() & readable)


def _open(name: str, data_dir: str, **options: str) -> tfds.core.DatasetBuilder:
  """Returns a builder, from its code or else from the files it once wrote."""
  base, _, config = name.partition("/")
  try:
    with no_tensorflow():
      return tfds.builder(name, data_dir=data_dir or None, **options)
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    known = [PREFIX + each for each in known]
    raise ValueError(
      unknown_name_message("--config.data.name", PREFIX + name, known)
      + f" These are the sets of tensorflow-datasets {tfds.__version__}."
    ) from error
  except ModuleNotFoundError as error:
    try:
      # Files that were prepared elsewhere can be read without its code.
      return read_only_builder.builder_from_files(
        base,
        data_dir=data_dir or None,
        **({"config": config} if config else {}),
      )
    except tfds.core.DatasetNotFoundError:
      raise ValueError(_cannot_prepare(name, data_dir, error)) from error
  except ValueError as error:
    configs = tfds.builder_cls(base).builder_configs
    if not config or config in configs:
      raise  # something else is wrong
    message = (
      f"--config.data.name='{PREFIX}{name}' must be without a config: {base} "
      "has none."
    )
    if configs:
      known = [f"{PREFIX}{base}/{config}" for config in configs]
      message = unknown_name_message("--config.data.name", PREFIX + name, known)
    raise ValueError(message) from error


def _cannot_prepare(name: str, data_dir: str, error: Exception) -> str:
  """Says what the set needs, and how to prepare it elsewhere."""
  cause = _cause(error)
  if isinstance(cause, NeedsTensorFlowError) or cause.name == "tensorflow":
    where = f" --data_dir={data_dir}" if data_dir else ""
    return (
      f"{PREFIX}{name} needs TensorFlow to be prepared ({cause}), "
      "which must not be imported here. Prepare it once, in an environment of "
      f"its own, then run this again:\n{_ENVIRONMENT}\n"
      f"  tfds-tools/bin/tfds build {name}{where} --file_format=array_record"
    )
  package = _PACKAGES.get(cause.name, cause.name or cause)
  return (
    f"{PREFIX}{name} needs the Python package {package} to be prepared, which "
    f"is not installed: pip install {package}."
  )


def _cause(error: BaseException) -> BaseException:
  """Returns what was first missing: TFDS raises it again in other words."""
  found = error
  while (error := error.__cause__ or error.__context__) is not None:
    if isinstance(error, NeedsTensorFlowError | ImportError):
      found = error
  return found


def _cannot_download(
  name: str, builder: tfds.core.DatasetBuilder, cause: Exception
) -> str:
  """Says which files to bring by hand, and where to put them."""
  folder = pathlib.Path(builder.data_dir_root) / "downloads" / "manual"
  # A file may have several addresses, the first of them current.
  urls: dict[str, str] = {}
  for url, known in builder.url_infos.items():
    urls.setdefault(known.filename or url.rpartition("/")[2], url)
  files = "".join(f"\n  {url} as {file}" for file, url in urls.items())
  if len(builder.builder_configs) > 1:
    files += f"\n(those that {name} is made of)"
  return (
    f"{PREFIX}{name} must be downloaded once, and that failed: "
    f"{cause}. Run this again where there is a network, or bring these files "
    f"to {folder}:{files}."
  )


def _prepare(
  name: str, data_dir: str, builder: tfds.core.DatasetBuilder
) -> tfds.core.DatasetBuilder:
  _logger.info(
    f"Preparing {PREFIX}{builder.info.full_name} in {builder.data_dir_root}, "
    "once; archives are kept in its folder downloads."
  )
  try:
    with without_tensorflow(builder):
      return prepare(
        lambda: _open(name, data_dir, file_format="array_record"),
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        show_progress=True,
      )
  except (NeedsTensorFlowError, ImportError, extractor.ExtractError) as error:
    if not isinstance(_cause(error), NeedsTensorFlowError | ImportError):
      raise  # a broken archive: TFDS names it
    raise ValueError(_cannot_prepare(name, data_dir, error)) from error
  except (requests.RequestException, DownloadError) as error:
    raise ValueError(_cannot_download(name, builder, error)) from error
  except download_manager.NonMatchingChecksumError as error:
    raise ValueError(
      f"{PREFIX}{name}: an archive must be its publisher's, "
      f"and differs; download it again. {error}"
    ) from error
  except AssertionError as error:  # files that only a person may download
    raise ValueError(f"{PREFIX}{name}: {error}") from error


# What stands in for TensorFlow.


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


def _open_file(path: Any, mode: str = "r") -> Any:
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
  "tf.io.gfile.GFile": _open_file,
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
def without_tensorflow(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
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
    if not base.__module__.startswith(tfds.core.__name__)
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
