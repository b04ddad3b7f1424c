"""A model's variables under PyTorch's names, in PyTorch's layouts, and back.

Module paths are torchvision's already (see `gc_jax.models`): a key is a path
with its first and last part renamed, and a kernel is transposed. Around them,
files carry the names of what the model stood in when it was saved.
"""

import functools
import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gc_jax import models
from gc_jax.models.network import Architecture, Network

_LAST = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
# BatchNorms of before PyTorch 0.4.1 did not count.
COUNTER = "num_batches_tracked"

# What stands around a module, anywhere in it, and adds a part to its names:
# DataParallel and AveragedModel, torch.compile, FSDP, checkpointed activations.
_WRAPPERS = (
  "module",
  "_orig_mod",
  "_fsdp_wrapped_module",
  "_checkpoint_wrapped_module",
)
# What is kept with a model and is none of its weights: the number of averaged
# models, the counts of a profiler, the class weights of a loss.
_BOOKKEEPING = re.compile(
  r"(.*\.)?(n_averaged|total_ops|total_params)"
  r"|(criterion|loss|loss_fn|loss_function)\.(pos_)?weight"
)
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged|average|shadow)([._]|$)")

_LISTED = 5  # names of a kind in a message


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


def of_one_model(
  name: str, tensors: Mapping[str, np.ndarray], source: str
) -> tuple[dict[str, np.ndarray], str, list[str]]:
  """Returns the arrays of one model under its own keys, whatever held it.

  Taken off are wrappers, and what all names of a complete model begin with
  ("model.", "module.backbone."). What is known to be no weight is left out;
  other keys stay, or are an error where they begin otherwise.

  Args:
    name: a key of `models.MODELS`, which the arrays are meant to be of.
    tensors: PyTorch's arrays by key, as in a file.
    source: where they come from, for messages.

  Returns:
    The arrays, which need not fit; the source as it is then to be called; and
    remarks on what was taken off and left out.

  Raises:
    ValueError: there are several models, or one beside something else.
  """
  arrays, wrappers, left_out = _unwrapped(tensors, source)
  found = _prefixes(name, arrays)
  trained = [p for p in found if not is_average(p)] or found
  if len(trained) > 1:
    below = [f"under {p!r}" if p else "under bare names" for p in trained]
    raise ValueError(
      f"{source} must hold the weights of one {name}; it holds "
      f"{len(below)}: {listed(below)}. Save the one that is meant alone: "
      f"{_saving(max(trained))}."
    )
  prefix = trained[0] if trained else _likely_prefix(name, arrays)
  averages = [p for p in found if p != prefix and is_average(p)]
  of_averages = {k for k in arrays if k.startswith(tuple(averages))}
  others = [
    key
    for key in arrays
    if not key.startswith(prefix) and key not in of_averages
  ]
  if others:
    raise ValueError(
      f"{source} must hold the weights of {name!r} alone; "
      f"{len(arrays) - len(others)} of its {len(arrays)} keys begin with "
      f"{prefix!r}, and without that they are {name}'s, but the others are "
      f"not: {listed(others)}. Save the first alone, if they are the whole "
      f"classifier: {_saving(prefix)}."
    )
  own = {
    key.removeprefix(prefix): array
    for key, array in arrays.items()
    if key not in of_averages
  }
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
  """Returns whether a name says that what it holds is averaged over steps."""
  return bool(_AVERAGE.search(key.lower()))


def architectures(tensors: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the models that have just these weights, but for the pooling.

  Under a prefix, too, which is taken off as by `of_one_model`.
  """
  arrays, _, _ = _unwrapped(tensors, "")
  return [
    name
    for name in models.MODELS
    if not models.is_gmp(name)
    and any(_is_whole(name, arrays, p) for p in _prefixes(name, arrays))
  ]


def _is_whole(
  name: str, tensors: Mapping[str, np.ndarray], prefix: str
) -> bool:
  below = {
    key.removeprefix(prefix): array
    for key, array in tensors.items()
    if key.startswith(prefix)
  }
  return not _problems(torch_shapes(name, num_classes(name, below)), below)


def _unwrapped(
  tensors: Mapping[str, np.ndarray], source: str
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
  """Returns the arrays without wrappers; which; and the keys left out.

  Raises:
    ValueError: two keys differ by wrappers alone.
  """
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


def _prefixes(name: str, tensors: Mapping[str, np.ndarray]) -> list[str]:
  """Returns what stands before the keys of each complete model in a file."""
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


def _likely_prefix(name: str, tensors: Mapping[str, np.ndarray]) -> str:
  """Returns what all keys begin with, if without it more are the model's."""
  first, last = min(tensors, default=""), max(tensors, default="")
  starts = [first[: i + 1] for i, letter in enumerate(first) if letter == "."]
  common = [start for start in starts if last.startswith(start)]
  own = torch_shapes(name, None)
  fitting = lambda start: sum(key.removeprefix(start) in own for key in tensors)
  return max(["", *common], key=fitting)


def _last_layer(name: str) -> str:
  """Returns the key of the layer that gives the logits."""
  network = models.MODELS[name].network
  return torch_key(network, [*network.last_layer, "bias"]).removesuffix(".bias")


def _saving(prefix: str) -> str:
  chosen = f"k.startswith({prefix!r})"
  return (
    f"torch.save({{k: v for k, v in STATE_DICT.items() if {chosen}}}, FILE)"
  )


def num_classes(name: str, tensors: Mapping[str, np.ndarray]) -> int | None:
  """Returns K as the last layer tells it; None where it is not there."""
  last = _last_layer(name)
  bias, kernel = (tensors.get(f"{last}.{n}") for n in ("bias", "weight"))
  if bias is not None and bias.ndim == 1:
    return len(bias)
  return len(kernel) if kernel is not None and kernel.ndim > 1 else None


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
  if jnp.issubdtype(variable.dtype, jnp.integer):
    # A count moves no logit; averaged, it may be anything.
    largest = jnp.iinfo(variable.dtype).max
    count = np.clip(np.nan_to_num(array.astype(np.float64)), 0, largest)
    return jnp.asarray(count, variable.dtype)
  return jnp.asarray(_transposed(array, to_torch=False), variable.dtype)


def _problems(
  shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]
) -> list[str]:
  """Returns what is missing, what is too much, and what has another shape."""
  missing = [
    key for key in shapes if key not in tensors and not key.endswith(COUNTER)
  ]
  extra = [key for key in tensors if key not in shapes]
  other = [
    f"{key} {tuple(tensors[key].shape)} instead of {shape}"
    for key, shape in shapes.items()
    if key in tensors and tuple(tensors[key].shape) != shape
  ]
  kinds = {"missing": missing, "not its own": extra, "of another shape": other}
  return [
    f"{len(names)} {kind}: {listed(names)}"
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


def listed(names: Iterable[str]) -> str:
  """Returns the first few of many names, and how many more there are."""
  names = [name if name.isprintable() else repr(name) for name in names]
  listed = ", ".join(f"{name:.100}" for name in names[:_LISTED])
  rest = len(names) - _LISTED
  return f"{listed} and {rest} more" if rest > 0 else listed
