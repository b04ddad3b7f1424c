"""Models in flax: ours, and those that users write in NNX and in Linen."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from gc_jax.attribution import taps
from gc_jax.attribution.calls import (
  Call,
  Recorder,
  Static,
  observed_class,
  with_other_keys,
  without_arrays,
)


@dataclasses.dataclass(frozen=True)
class _Module(Call):
  """An NNX module in two parts, of which this is the one without arrays."""

  graphdef: Static

  def as_module(self, variables):
    return nnx.merge(self.graphdef.value, variables, copy=True)

  def in_training(self, variables):
    model = self.as_module(variables)
    return any(
      getattr(module, "use_running_average", None) is False
      or getattr(module, "deterministic", None) is False
      for _, module in nnx.iter_modules(model)
    )


@dataclasses.dataclass(frozen=True)
class _Own(_Module):
  """Runs a model of ours on normalised images."""

  def __call__(self, variables, images, at, offset):
    model = nnx.merge(self.graphdef.value, variables, copy=True)
    recorder = Recorder(at, offset)
    names = taps.layers(model) if at is None else (at,)
    features = taps.tapped_features(
      model, {name: functools.partial(recorder, name) for name in names}
    )
    return model.classify(features(images)), recorder.seen, nnx.state(model)


def _split(node: Any) -> tuple[nnx.GraphDef, nnx.State]:
  """Returns the two parts of a node of NNX, as they are now.

  The variables are copies, which hold the same arrays: the node's own would
  follow what is written into it afterwards.
  """
  graphdef, variables = nnx.split(node)
  return graphdef, jax.tree.map(lambda x: x, variables)


def own_parts(model: nnx.Module, settings: Mapping[str, Any]):
  """Returns how a model of ours is called, and its arrays."""
  if settings:
    raise ValueError(
      "A model of gc_jax takes no settings of a call; "
      f"{', '.join(settings)} came. Leave them out."
    )
  graphdef, variables = _split(model)
  return _Own(Static(graphdef)), variables


@dataclasses.dataclass(frozen=True)
class _Nnx(_Module):
  """Runs a user's module; variables are its own, and those of settings."""

  settings: Static
  given: Static  # of settings with variables, the part without these

  def __call__(self, variables, images, at, offset):
    model, given = self._merged(variables)
    recorder = Recorder(at, offset)
    for name, module in nnx_modules(model).items():
      if at in (None, name):
        module.__class__ = observed_class(module, name, recorder)
    logits = model(images, **dict(self.settings.value), **given)
    return logits, recorder.seen, (nnx.state(model), nnx.state(given))

  def _merged(self, variables):
    both = zip((self.graphdef, self.given), variables, strict=True)
    return [nnx.merge(part.value, x, copy=True) for part, x in both]

  def as_module(self, variables):
    return self._merged(variables)[0]

  def all_settings(self, variables):
    return {**dict(self.settings.value), **self._merged(variables)[1]}

  def state(self, variables):
    return variables[0]

  def drawn_anew(self, variables):
    return variables[0], with_other_keys(variables[1])


def nnx_modules(model: nnx.Module) -> dict[str, nnx.Module]:
  """Returns path -> module of all modules inside a model that are called.

  A module that several share has a path from each.
  """
  found = {}

  def search(node, path, above):
    for name, child in nnx.iter_children(node):
      is_circle = any(child is each for each in above)
      if is_circle or isinstance(child, nnx.Variable):
        continue
      here = (*path, str(name))
      if isinstance(child, nnx.Module) and callable(child):
        found[".".join(here)] = child
      search(child, here, (*above, child))

  search(model, (), (model,))
  return found


def nnx_parts(model: nnx.Module, settings: Mapping[str, Any]):
  """Returns how a user's module is called, and its arrays."""
  graphdef, variables = _split(model)
  arrays, settings = without_arrays(settings)
  given, of_given = _split(arrays)
  call = _Nnx(Static(graphdef), Static.of(settings), Static(given))
  return call, (variables, of_given)


@dataclasses.dataclass(frozen=True)
class _Linen(Call):
  module: Static
  settings: Static

  def __call__(self, variables, images, at, offset):
    import flax.linen as nn

    variables, arrays = variables
    recorder = Recorder(at, offset)
    settings = dict(self.settings.value)
    every = tuple(name for name in variables if name != "params")
    # For False, Linen would return the logits alone.
    mutable = settings.pop("mutable", every) or ()

    def observed(call, args, kwargs, context):
      output = call(*args, **kwargs)
      path = ".".join(context.module.path)
      if context.method_name != "__call__" or not path:
        return output
      return recorder(path, output)

    with nn.intercept_methods(observed):
      logits, updated = self.module.value.apply(
        variables,
        images,
        **settings,
        **arrays,
        mutable=mutable,
      )
    return logits, recorder.seen, ({**variables, **updated}, arrays)

  def state(self, variables):
    return variables[0]

  def drawn_anew(self, variables):
    variables, arrays = variables
    others = {
      name: with_other_keys(x, raw=name == "rngs") for name, x in arrays.items()
    }
    return variables, others


def linen_parts(model: tuple, settings: Mapping[str, Any]):
  """Returns how a (module, variables) is called, and its arrays."""
  module, variables = model
  arrays, settings = without_arrays(settings)
  return _Linen(Static(module), Static.of(settings)), (dict(variables), arrays)
