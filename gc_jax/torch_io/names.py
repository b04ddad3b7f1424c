"""A model's variables under PyTorch's names, in PyTorch's layouts, and back.

Module paths are torchvision's already (see `gc_jax.models`): a key is a path
with its first and last part renamed, and a kernel is transposed.
"""

import functools
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gc_jax import models
from gc_jax.models.layers import Architecture, Network

_LAST = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
# BatchNorms of before PyTorch 0.4.1 did not count.
_OPTIONAL = "num_batches_tracked"

_LISTED = 6  # names of a kind in a message


def torch_key(network: type[Network], path: Iterable[str | int]) -> str:
  """Returns PyTorch's key of a variable: "layer1.0.bn1.running_mean".

  Args:
    network: the class whose variable it is.
    path: to the variable.
  """
  first, *middle, last = map(str, path)
  first = network.torch_names.get(first, first)
  return ".".join([first, *middle, _LAST.get(last, last)])


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
  """Returns the state dict that the same model has in torchvision.

  Args:
    model: any of `models.MODELS`.

  Returns:
    Contiguous arrays by key: convolutions `[out in h w]`, dense layers
    `[out in]`, counts int64, everything else float32.
  """
  network = type(model)
  flat = nnx.to_flat_state(nnx.state(model))
  # Copies: what jax lends cannot be written to.
  return {
    torch_key(network, path): np.array(
      _transposed(np.asarray(variable[...]), to_torch=True), order="C"
    )
    for path, variable in flat
  }


def from_torch(
  name: str, tensors: Mapping[str, np.ndarray], source: str
) -> nnx.Module:
  """Returns a model in evaluation mode, with the weights of a state dict.

  Args:
    name: a key of `models.MODELS`.
    tensors: PyTorch's arrays by key; floating ones of any width.
    source: where they come from, for messages.

  Raises:
    ValueError: keys or shapes are not those of the architecture; lists them,
      and says which architecture they look like.
  """
  graphdef, state = _abstract(name, num_classes(name, tensors))
  flat = list(nnx.to_flat_state(state))
  network = models.MODELS[name].network
  problems = _problems(_torch_shapes(network, flat), tensors)
  if problems:
    raise ValueError(_message(name, problems, tensors, source))
  filled = []
  for path, variable in flat:
    array = tensors.get(torch_key(network, path))
    filled.append((path, variable.replace(_filled(variable, array))))
  model = nnx.merge(graphdef, nnx.from_flat_state(filled))
  model.eval()
  return model


def architectures(tensors: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the models that have just these weights, but for the pooling."""
  return [
    name
    for name in models.MODELS
    if not models.is_gmp(name)
    and not _problems(torch_shapes(name, num_classes(name, tensors)), tensors)
  ]


def num_classes(name: str, tensors: Mapping[str, np.ndarray]) -> int | None:
  """Returns K as the last layer's bias tells it; None where there is none."""
  network = models.MODELS[name].network
  bias = tensors.get(torch_key(network, [*network.last_layer, "bias"]))
  return None if bias is None or bias.ndim != 1 else len(bias)


def torch_shapes(name: str, count: int | None) -> dict[str, tuple[int, ...]]:
  """Returns PyTorch's shapes by key.

  Args:
    name: a key of `models.MODELS`.
    count: K; None where it is not known, which fits no weights.
  """
  _, state = _abstract(name, count)
  network = models.MODELS[name].network
  return _torch_shapes(network, nnx.to_flat_state(state))


def _abstract(name: str, count: int | None) -> tuple[nnx.GraphDef, nnx.State]:
  """Returns a model's structure and shapes; nothing is drawn or allocated."""
  return _traced(models.MODELS[name], count or 1)


@functools.cache
def _traced(architecture: Architecture, count: int):
  """Returns what `_abstract` does: a second of tracing for a deep network."""
  make = lambda key: architecture(count, rngs=nnx.Rngs(key))
  return nnx.split(nnx.eval_shape(make, models.init_key(0)))


def _torch_shapes(
  network: type[Network], flat: Iterable
) -> dict[str, tuple[int, ...]]:
  empty = lambda variable: np.empty(variable.shape, np.bool_)
  return {
    torch_key(network, path): _transposed(empty(variable), True).shape
    for path, variable in flat
  }


def _transposed(array: np.ndarray, to_torch: bool) -> np.ndarray:
  """Returns a kernel in the other's layout, a count in the other's integer."""
  if array.ndim == 4:  # [h w in out] <-> [out in h w]
    return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
  if array.ndim == 2:
    return array.T
  if array.dtype.kind == "i":
    return array.astype(np.int64 if to_torch else np.int32)
  return array


def _filled(variable: nnx.Variable, array: np.ndarray | None):
  if array is None:
    return jnp.zeros(variable.shape, variable.dtype)
  return jnp.asarray(_transposed(array, to_torch=False), variable.dtype)


def _problems(
  shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]
) -> list[str]:
  """Returns what is missing, what is too much, and what has another shape."""
  missing = [
    key for key in shapes if key not in tensors and not key.endswith(_OPTIONAL)
  ]
  extra = [key for key in tensors if key not in shapes]
  other = [
    f"{key} {tuple(tensors[key].shape)} instead of {shape}"
    for key, shape in shapes.items()
    if key in tensors and tuple(tensors[key].shape) != shape
  ]
  kinds = {"missing": missing, "not its own": extra, "of another shape": other}
  return [
    f"{len(names)} {kind}: {_listed(names)}"
    for kind, names in kinds.items()
    if names
  ]


def _message(
  name: str,
  problems: list[str],
  tensors: Mapping[str, np.ndarray],
  source: str,
) -> str:
  known = architectures(tensors)
  both = [
    f"{k} (or its -gmp)" if f"{k}-gmp" in models.MODELS else k for k in known
  ]
  advice = (
    f"They look like {' or '.join(both)}: name that instead."
    if known
    else "They look like none of the known architectures: "
    f"{', '.join(models.MODELS)}."
  )
  return (
    f"{source} must hold the weights of {name!r}, and its keys do not fit: "
    f"{'; '.join(problems)}. {advice}"
  )


def _listed(names: list[str]) -> str:
  rest = len(names) - _LISTED
  listed = ", ".join(names[:_LISTED])
  return f"{listed} and {rest} more" if rest > 0 else listed
