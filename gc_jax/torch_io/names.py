"""A model's variables under PyTorch's names, in PyTorch's layouts, and back.

Module paths are torchvision's already (see `gc_jax.models`): a key is a path
with its first and last part renamed, and a kernel is transposed. Files add the
names of what the model was part of when it was saved.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gc_jax import models
from gc_jax.models.architecture import Architecture
from gc_jax.models.network import Network
from gc_jax.runtime import messages

_LAST = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
# BatchNorms did not count before PyTorch 0.4.1.
COUNTER = "num_batches_tracked"

# Parts that wrappers add to the names of what they wrap: DataParallel and
# AveragedModel, torch.compile, FSDP, checkpointed activations.
_WRAPPERS = (
  "module",
  "_orig_mod",
  "_fsdp_wrapped_module",
  "_checkpoint_wrapped_module",
)
# Saved with a model, but no weights: the number of averaged models, a
# profiler's counts, the class weights of a loss.
_BOOKKEEPING = re.compile(
  r"(.*\.)?(n_averaged|total_ops|total_params)"
  r"|(criterion|loss|loss_fn|loss_function)\.(pos_)?weight"
)
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged|average|shadow)([._]|$)")

_Arrays = Mapping[str, np.ndarray]


def torch_key(network: type[Network], path: Sequence[str | int]) -> str:
  """Returns PyTorch's key of a network's variable: "layer1.0.bn1.weight".

  Of a module of a user's it is the module's own: "blocks.1.conv.kernel".
  """
  names = [*map(str, path)]
  if network.torch_names is None:
    return ".".join(names[1:])
  names[0] = network.torch_names.get(names[0], names[0])
  names[-1] = _LAST.get(names[-1], names[-1])
  return ".".join(names)


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
  """Returns the state dict that the same model has in torchvision.

  Contiguous arrays by key: convolutions `[out in h w]`, dense layers
  `[out in]`, counts int64, everything else float32. Of a module of a user's
  they are its own, under its own names; states of random numbers are left out.
  """
  network = type(model)
  # Copies: jax lends arrays that cannot be written to.
  return {
    torch_key(network, path): np.array(
      _in_layout(network, np.asarray(variable[...]), to_torch=True), order="C"
    )
    for path, variable in _kept(nnx.state(model))
  }


def _kept(state: nnx.State) -> list[tuple[tuple, nnx.Variable]]:
  """Returns path and variable of what files hold."""
  return [
    (path, variable)
    for path, variable in nnx.to_flat_state(state)
    if not isinstance(variable, nnx.RngState)
  ]


def from_torch(name: str, tensors: _Arrays, source: str) -> nnx.Module:
  """Returns a model in evaluation mode, with the weights of a state dict.

  Args:
    name: of `models.find`.
    tensors: PyTorch's arrays by key; floating ones of any width.
    source: where they come from, for messages.

  Raises:
    ValueError: lists the keys and shapes that are not the architecture's, and
      says which architecture they look like.
  """
  architecture = models.find(name)
  problems = _problems(torch_shapes(name, num_classes(name, tensors)), tensors)
  if problems:
    known = architectures(tensors)
    looks = [
      f"{k} (or its -gmp)" if f"{k}-gmp" in models.MODELS else k for k in known
    ]
    advice = (
      f"They look like {' or '.join(looks)}: name that instead."
      if known
      else "They look like none of the known architectures: "
      f"{', '.join(models.MODELS)}."
    )
    raise ValueError(
      f"{source} must hold the weights of {name!r}, and its keys do not fit: "
      f"{'; '.join(problems)}. {advice}"
    )
  graphdef, state = _traced(architecture, num_classes(name, tensors))
  filled = []
  for path, variable in nnx.to_flat_state(state):
    array = tensors.get(torch_key(architecture.network, path))
    value = _filled(architecture.network, variable, array)
    filled.append((path, variable.replace(value)))
  model = nnx.merge(graphdef, nnx.from_flat_state(filled))
  model.eval()
  return model


def of_one_model(
  name: str, tensors: _Arrays, source: str
) -> tuple[dict[str, np.ndarray], str, list[str]]:
  """Returns the arrays of one model under its own keys.

  Wrappers are taken off, and so is the prefix of a complete model ("model.",
  "module.backbone."). Known bookkeeping is left out; any other key must begin
  with the prefix.

  Returns:
    The arrays, which need not fit; what to call the source from now on; and
    remarks on what was taken off and left out.

  Raises:
    ValueError: there are several models, or one beside something else.
  """
  arrays, wrappers, left_out = _unwrapped(tensors, source)
  if models.find(name).network.torch_names is None:
    return arrays, source, []
  found = _prefixes(name, arrays)
  trained = [p for p in found if not is_average(p)] or found
  if len(trained) > 1:
    below = [f"under {p!r}" if p else "under bare names" for p in trained]
    raise ValueError(
      f"{source} must hold the weights of one {name}; it holds "
      f"{len(below)}: {listed(below)}. Save one of them alone: "
      f"{_saving(max(trained))}."
    )
  prefix = trained[0] if trained else _likely_prefix(name, arrays)
  averages = tuple(p for p in found if p != prefix and is_average(p))
  own, others = {}, []
  for key, array in arrays.items():
    if key.startswith(averages):
      continue
    if key.startswith(prefix):
      own[key.removeprefix(prefix)] = array
    else:
      others.append(key)
  if others:
    raise ValueError(
      f"{source} must hold the weights of {name!r} alone; "
      f"{len(arrays) - len(others)} of its {len(arrays)} keys begin with "
      f"{prefix!r}, and without that they are {name}'s, but the others are "
      f"not: {listed(others)}. Save the first alone, if they are the whole "
      f"classifier: {_saving(prefix)}."
    )
  taken = [f"{part}." for part in wrappers] + [prefix] * bool(prefix)
  remarks = []
  if taken:
    remarks.append(f"{' and '.join(map(repr, taken))} taken off its keys")
  if averages:
    below = listed(map(repr, averages))
    remarks.append(f"averaged weights under {below} not read")
  if left_out:
    remarks.append(f"no weights, and left out: {listed(left_out)}")
  if prefix:
    source = f"{source} (without {prefix!r}, which its keys begin with)"
  return own, source, remarks


def is_average(key: str) -> bool:
  """Returns whether a name speaks of an average over training steps."""
  return bool(_AVERAGE.search(key.lower()))


def architectures(tensors: _Arrays) -> list[str]:
  """Returns the models, -gmp aside, that have exactly these weights."""
  arrays, _, _ = _unwrapped(tensors, "")
  return [
    name
    for name in models.MODELS
    if not models.is_gmp(name)
    and any(_is_whole(name, arrays, p) for p in _prefixes(name, arrays))
  ]


def _is_whole(name: str, tensors: _Arrays, prefix: str) -> bool:
  below = {
    key.removeprefix(prefix): array
    for key, array in tensors.items()
    if key.startswith(prefix)
  }
  return not _problems(torch_shapes(name, num_classes(name, below)), below)


def _unwrapped(
  tensors: _Arrays, source: str
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
  """Returns the arrays without wrappers; the wrappers; the keys left out."""
  arrays: dict[str, np.ndarray] = {}
  full: dict[str, str] = {}
  left_out, seen = [], []
  for key, array in tensors.items():
    parts = key.split(".")
    short = ".".join(part for part in parts if part not in _WRAPPERS)
    if _BOOKKEEPING.fullmatch(short):
      left_out.append(key)
      continue
    seen += [part for part in parts if part in _WRAPPERS]
    if short in arrays:
      raise ValueError(
        f"{source} must hold each array once; it holds {short!r} twice, as "
        f"{full[short]!r} and as {key!r}. Save one of the two."
      )
    arrays[short], full[short] = array, key
  return arrays, list(dict.fromkeys(seen)), left_out


def _prefixes(name: str, tensors: _Arrays) -> list[str]:
  """Returns the prefixes under which a file holds a complete model."""
  last = f"{_last_layer(name)}.bias"
  starts = [
    key.removesuffix(last)
    for key in tensors
    if key == last or key.endswith(f".{last}")
  ]
  if not starts:
    return []
  count = num_classes(name, {last: tensors[starts[0] + last]})
  own = [k for k in torch_shapes(name, count) if not k.endswith(COUNTER)]
  return [p for p in starts if all(p + key in tensors for key in own)]


def _likely_prefix(name: str, tensors: _Arrays) -> str:
  """Returns the common prefix that leaves most keys to the model, or ""."""
  first, last = min(tensors, default=""), max(tensors, default="")
  starts = [first[: i + 1] for i, letter in enumerate(first) if letter == "."]
  common = [start for start in starts if last.startswith(start)]
  own = torch_shapes(name, None)
  fitting = lambda start: sum(key.removeprefix(start) in own for key in tensors)
  return max(["", *common], key=fitting)


def _last_layer(name: str) -> str:
  network = models.find(name).network
  return torch_key(network, [*network.last_layer, "bias"]).removesuffix(".bias")


def _saving(prefix: str) -> str:
  chosen = f"k.startswith({prefix!r})"
  return (
    f"torch.save({{k: v for k, v in STATE_DICT.items() if {chosen}}}, FILE)"
  )


def num_classes(name: str, tensors: _Arrays) -> int | None:
  """Returns K by the shape of the last layer; None where it is missing."""
  if models.find(name).network.torch_names is None:
    return _own_num_classes(name, tensors)
  last = _last_layer(name)
  bias, kernel = (tensors.get(f"{last}.{n}") for n in ("bias", "weight"))
  if bias is not None and bias.ndim == 1:
    return len(bias)
  return len(kernel) if kernel is not None and kernel.ndim > 1 else None


def _own_num_classes(name: str, tensors: _Arrays) -> int | None:
  """Returns K by the first array whose shape depends on it."""
  two, three = (torch_shapes(name, count) for count in (2, 3))
  for key, shape in two.items():
    if shape != three[key]:
      if key not in tensors or tensors[key].ndim != len(shape):
        return None
      changes = np.not_equal(shape, three[key])
      return tensors[key].shape[int(changes.argmax())]
  return None


def torch_shapes(name: str, count: int | None) -> dict[str, tuple[int, ...]]:
  """Returns PyTorch's shapes by key; K = None fits no weights."""
  architecture = models.find(name)
  network = architecture.network
  _, state = _traced(architecture, count)
  empty = lambda variable: np.empty(variable.shape, np.bool_)
  return {
    torch_key(network, path): _in_layout(network, empty(v), True).shape
    for path, v in _kept(state)
  }


@functools.cache
def _traced(architecture: Architecture, count: int | None):
  """Returns a model's structure and shapes: a second for a deep network."""
  make = lambda key: architecture(count or 1, rngs=nnx.Rngs(key))
  return nnx.split(nnx.eval_shape(make, models.init_key(0)))


def _in_layout(
  network: type[Network], array: np.ndarray, to_torch: bool
) -> np.ndarray:
  """Returns a kernel in the other's layout, a count in the other's integer."""
  if network.torch_names is None:
    return array
  if array.ndim == 4:  # [h w in out] <-> [out in h w]
    return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
  if array.ndim == 2:
    return array.T
  if array.dtype.kind == "i":
    return array.astype(np.int64 if to_torch else np.int32)
  return array


def _filled(
  network: type[Network], variable: nnx.Variable, array: np.ndarray | None
):
  if array is None:
    return jnp.zeros(variable.shape, variable.dtype)
  if jnp.issubdtype(variable.dtype, jnp.integer):
    # A count moves no logit; in averaged weights it may be any number.
    largest = jnp.iinfo(variable.dtype).max
    count = np.clip(np.nan_to_num(array.astype(np.float64)), 0, largest)
    return jnp.asarray(count, variable.dtype)
  array = _in_layout(network, array, to_torch=False)
  return jnp.asarray(array, variable.dtype)


def _problems(
  shapes: Mapping[str, tuple[int, ...]], tensors: _Arrays
) -> list[str]:
  """Returns what is missing, what is too much, and what has another shape."""
  kinds = {
    "missing": [
      key for key in shapes if key not in tensors and not key.endswith(COUNTER)
    ],
    "not its own": [key for key in tensors if key not in shapes],
    "of another shape": [
      f"{key} {tuple(tensors[key].shape)} instead of {shape}"
      for key, shape in shapes.items()
      if key in tensors and tuple(tensors[key].shape) != shape
    ],
  }
  return [
    f"{len(names)} {kind}: {listed(names)}"
    for kind, names in kinds.items()
    if names
  ]


def listed(names: Iterable[str]) -> str:
  """Returns the first few names of a file, and how many more there are."""
  return messages.listed(
    [f"{n if n.isprintable() else repr(n):.100}" for n in names]
  )
