"""Models of other libraries, and plain functions.

A library is imported only when a model of it comes: then it is imported
already.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from gc_jax.attribution.calls import (
  Call,
  Recorder,
  Static,
  observed_class,
  with_other_keys,
  without_arrays,
)
from gc_jax.method.types import is_known

FUNCTION = "tap"  # the place of functions


class _Item(NamedTuple):
  """A step into a list or a dict; one to an attribute is its name."""

  key: Hashable


@dataclasses.dataclass(frozen=True)
class _Equinox(Call):
  """Runs a model of one image on each image of a batch."""

  static: Static  # the model without its arrays: leaves, and their tree
  settings: Static
  has_state: bool

  to_evaluate: ClassVar[str] = "Call equinox.nn.inference_mode(model)"

  def model(self, arrays):
    import equinox

    leaves, tree = self.static.value
    return equinox.combine(arrays, jax.tree.unflatten(tree, leaves))

  def __call__(self, variables, images, at, offset):
    import equinox

    arrays, state, settings, key = variables
    model = self.model(arrays)
    modules = equinox_modules(model)

    def one(image, offset, state, key):
      recorder = Recorder(at, offset)
      observed = model
      for name, steps in modules.items():
        if at in (None, name):
          observed = equinox.tree_at(
            functools.partial(_followed, steps=steps),
            observed,
            _observed(_followed(observed, steps), name, recorder),
          )
      output = observed(
        *((image, state) if self.has_state else (image,)),
        **({} if key is None else {"key": key}),
        **settings,
        **dict(self.settings.value),
      )
      logits, state = output if self.has_state else (output, state)
      return logits, recorder.seen, state

    keys = None if key is None else jax.random.split(key, len(images))
    over_images = jax.vmap(
      one,
      in_axes=(0, 0, None, 0),
      out_axes=(0, 0, None),
      **_axis_name(model),
    )
    logits, seen, state = over_images(images, offset, state, keys)
    return logits, seen, (arrays, state, settings, key)

  def state(self, variables):
    return variables[1]

  def drawn_anew(self, variables):
    arrays, state, settings, key = variables
    key = with_other_keys(key, raw=True)
    return arrays, state, with_other_keys(settings), key

  def in_training(self, variables):
    import equinox

    model = self.model(variables[0])
    kinds = equinox.nn.BatchNorm, equinox.nn.Dropout
    is_kind = lambda x: isinstance(x, kinds)

    def acts(module):
      p = getattr(module, "p", 1)  # that of dropout
      return not (module.inference or (isinstance(p, float | int) and p == 0))

    leaves = jax.tree.leaves(model, is_leaf=is_kind)
    return any(map(acts, filter(is_kind, leaves)))


def equinox_parts(model: Any, settings: Mapping[str, Any]):
  """Returns how a module, or a (module, state), is called, and its arrays."""
  import equinox

  has_state = isinstance(model, tuple)
  model, state = model if has_state else (model, None)
  variables, static = equinox.partition(model, equinox.is_array)
  arrays, settings = without_arrays(settings)
  key = arrays.pop("key", None)
  # A tree of these can be compared and hashed even where it holds lists.
  leaves, tree = jax.tree.flatten(static)
  call = _Equinox(Static((tuple(leaves), tree)), Static.of(settings), has_state)
  return call, (variables, state, arrays, key)


def equinox_modules(model: Any) -> dict[str, tuple]:
  """Returns path -> steps of all modules inside a model that are called."""
  import equinox

  found = {}

  def search(node, steps):
    if isinstance(node, equinox.Module):
      if steps and callable(node):
        names = [s if isinstance(s, str) else str(s.key) for s in steps]
        found[".".join(names)] = steps
      names = [field.name for field in dataclasses.fields(node)]
      children = [(name, getattr(node, name, None)) for name in names]
    elif isinstance(node, Mapping):
      children = [(_Item(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
      children = [(_Item(i), value) for i, value in enumerate(node)]
    else:
      return
    for step, child in children:
      search(child, (*steps, step))

  search(model, ())
  return found


def equinox_name(model: Any, where: Callable[[Any], Any]) -> str:
  """Returns the path of the module that `where` gives.

  Raises:
    ValueError: it gives something else.
  """
  module = where(model)
  for name, steps in equinox_modules(model).items():
    if _followed(model, steps) is module:
      return name
  raise ValueError(
    "at must give a module inside the model, as lambda m: m.layer4; it gives "
    f"a {type(module).__name__}."
  )


def _followed(model: Any, steps: tuple) -> Any:
  for step in steps:
    model = getattr(model, step) if isinstance(step, str) else model[step.key]
  return model


def _axis_name(model: Any) -> dict[str, Any]:
  """Returns the name under which a model's normalisations know the batch."""
  import equinox

  is_norm = lambda x: isinstance(x, equinox.nn.BatchNorm)
  leaves = jax.tree.leaves(model, is_leaf=is_norm)
  names = {norm.axis_name for norm in filter(is_norm, leaves)}
  if len(names) > 1:
    raise ValueError(
      "All equinox.nn.BatchNorm of a model must have one axis_name; these have "
      f"{', '.join(sorted(map(repr, names)))}."
    )
  return {"axis_name": names.pop()} if names else {}


def _observed(module: Any, name: str, recorder: Recorder) -> Any:
  """Returns a module whose output is seen; all else of it is the same."""
  observed = object.__new__(_observed_kind(type(module)))
  vars(observed).update(vars(module), _seen_by=(recorder, name))
  return observed


@functools.cache  # JAX remembers every class of Equinox for ever
def _observed_kind(kind: type) -> type:
  """Returns a class derived from a module's, so that its output is seen."""
  import equinox

  def __call__(self, *args, **kwargs):
    output = kind.__call__(self, *args, **kwargs)
    recorder, name = self._seen_by
    if isinstance(output, tuple):  # with a state
      return (recorder(name, output[0]), *output[1:])
    return recorder(name, output)

  field = equinox.field(static=True, kw_only=True)
  added = {"__annotations__": {"_seen_by": tuple}, "_seen_by": field}
  return type(kind)(kind.__name__, (kind,), {**added, "__call__": __call__})


@dataclasses.dataclass(frozen=True)
class _Keras(Call):
  model: Static
  settings: Static

  to_evaluate: ClassVar[str] = "Leave training=True out"

  def __call__(self, variables, images, at, offset):
    import keras

    model, recorder = self.model.value, Recorder(at, offset)
    trainable, others = variables
    held = [
      *zip(model.trainable_variables, trainable, strict=True),
      *zip(model.non_trainable_variables, others, strict=True),
    ]
    layers = {
      name: layer
      for name, layer in keras_layers(model).items()
      if at in (None, name)
    }
    kinds = {name: type(layer) for name, layer in layers.items()}
    try:
      for name, layer in layers.items():
        layer.__class__ = observed_class(layer, name, recorder)
      # Not stateless_call: a model whose call has no `training` would leave its
      # layers their own defaults, which are True of random ones.
      with keras.StatelessScope(held) as scope:
        logits = model(images, **dict(self.settings.value))
    finally:
      for name, layer in layers.items():
        layer.__class__ = kinds[name]
    others = [scope.get_current_value(x) for x in model.non_trainable_variables]
    return logits, recorder.seen, (trainable, others)

  def state(self, variables):
    return variables[1]

  def makes_floats(self):
    inputs = getattr(self.model.value, "inputs", None) or [None]
    return "float" in str(getattr(inputs[0], "dtype", ""))

  def in_training(self, variables):
    return bool(dict(self.settings.value)["training"])


def keras_layers(model: Any, before: str = "") -> dict[str, Any]:
  """Returns name -> layer; one inside another begins with the other's name."""
  found = {}
  for layer in getattr(model, "layers", ()):
    found[f"{before}{layer.name}"] = layer
    found |= keras_layers(layer, f"{before}{layer.name}.")
  return found


def keras_parts(model: Any, settings: Mapping[str, Any]):
  """Returns how a Keras model is called, and its arrays.

  Raises:
    ValueError: Keras does not run on JAX.
  """
  import keras

  if keras.backend.backend() != "jax":
    raise ValueError(
      "Keras must run on JAX; it runs on "
      f"{keras.backend.backend()}. Set KERAS_BACKEND=jax before it is imported."
    )
  values = lambda variables: [variable.value for variable in variables]
  arrays = (
    values(model.trainable_variables),
    values(model.non_trainable_variables),
  )
  settings = {"training": False, **settings}
  about = [*map(_keras_about, (model, *keras_layers(model).values()))]
  return _Keras(Static(model, about), Static.of(settings)), arrays


# What Keras keeps in a model while it trains or predicts.
_KERAS_RUNS = {"compiled", "history", "loss", "optimizer"}
_KERAS_RUNS |= {"stop_training", "stop_evaluating", "stop_predicting"}
_KERAS_RUNS |= {f"{what}_function" for what in ("train", "test", "predict")}


def _keras_about(layer: Any):
  """Returns what a layer does beside its arrays and the layers in it.

  These are its public attributes; the others are Keras's, and change in a call.
  """
  import keras

  def is_kept(name, value):
    if name.startswith("_") or name in _KERAS_RUNS:
      return False
    return not any(
      isinstance(x, keras.Layer | keras.Variable)
      or type(x).__module__.startswith("keras.")
      for x in keras.tree.flatten(value)
    )

  kept = {name: x for name, x in vars(layer).items() if is_kept(name, x)}
  # Statistics that Keras computes anew before every prediction are the same.
  is_array = lambda x: isinstance(x, jax.Array) and is_known(x)
  by_value = lambda x: np.asarray(x) if is_array(x) else x
  return id(layer), type(layer), keras.tree.map_structure(by_value, kept)


@dataclasses.dataclass(frozen=True)
class _Function(Call):
  """Runs f(images, tap), which calls the tap once on its activations."""

  function: Callable[[Array, Callable[[Array], Array]], Array]

  holds_arrays: ClassVar[bool] = True  # those of its closure

  def __call__(self, variables, images, at, offset):
    recorder = Recorder(at, offset)
    logits = self.function(images, functools.partial(recorder, FUNCTION))
    return logits, recorder.seen, variables


def _joined(features: Callable, classify: Callable, images, tap):
  return classify(tap(features(images)))


def function_parts(model: Any, settings: Mapping[str, Any]):
  """Returns how a function, or a pair of them, is called; it has no arrays.

  Raises:
    ValueError: there are settings.
    TypeError: a function takes no images and a tap, or is compiled.
  """
  if settings:
    raise ValueError(
      f"A function takes no settings of a call; {', '.join(settings)} came. "
      "Bind them with functools.partial."
    )
  if isinstance(model, tuple):
    return _Function(functools.partial(_joined, *model)), ()
  if hasattr(model, "lower") and hasattr(model, "trace"):
    raise TypeError(
      "A function f(images, tap) must not be compiled by itself, as the tap is "
      "no array; this one comes from jax.jit. Give the function inside, and "
      "compile what takes the net."
    )
  try:
    takes = inspect.signature(model)
  except (TypeError, ValueError):  # it does not say what it takes
    return _Function(model), ()
  try:
    takes.bind("images", "tap")
  except TypeError:
    raise TypeError(
      "A function must take the images and a tap, as lambda images, tap: "
      f"head(tap(trunk(images))); this one takes {takes}."
    ) from None
  return _Function(model), ()
