"""Image classifiers whose explanations can be trusted, trained in JAX.

The public names; nothing else is public. A trained model: `train`, `load`,
`predict`, `explain`, `overlay`, `class_names`. Models: `MODELS`, `create`.
Explanations: `METHODS`. A model of yours, in any library: `wrap`, `places`, and
for it `predict`, `explain`, `check`, `localize`, `negative_quadrants`,
`insertion`, `deletion`, and the guidance losses `consistency` and `energy`. The
method of the paper, as pure functions on arrays: `cam`, `compose`, `losses`,
`metrics`.

Each is imported when it is first asked for: a command whose arguments are wrong
says so before jax is imported.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from gc_jax.attribution import METHODS
  from gc_jax.attribution.guided import consistency, energy
  from gc_jax.attribution.wrapping import places, wrap
  from gc_jax.inference.arrays import class_names, explain, overlay, predict
  from gc_jax.inference.checking import check
  from gc_jax.inference.trained import load
  from gc_jax.inference.wrapped import deletion, insertion, negative_quadrants
  from gc_jax.method import cam, compose, losses, metrics
  from gc_jax.method.located import localize
  from gc_jax.models import MODELS, create
  from gc_jax.training.session import train

__version__ = "0.1.0"

__all__ = [
  "METHODS",
  "MODELS",
  "cam",
  "check",
  "class_names",
  "compose",
  "consistency",
  "create",
  "deletion",
  "energy",
  "explain",
  "insertion",
  "load",
  "localize",
  "losses",
  "metrics",
  "negative_quadrants",
  "overlay",
  "places",
  "predict",
  "train",
  "wrap",
]

# Where each of them is.
_HOMES = {
  "METHODS": "attribution",
  "MODELS": "models",
  "cam": "method.cam",
  "check": "inference.checking",
  "class_names": "inference.arrays",
  "compose": "method.compose",
  "consistency": "attribution.guided",
  "create": "models",
  "deletion": "inference.wrapped",
  "energy": "attribution.guided",
  "explain": "inference.arrays",
  "insertion": "inference.wrapped",
  "load": "inference.trained",
  "localize": "method.located",
  "losses": "method.losses",
  "metrics": "method.metrics",
  "negative_quadrants": "inference.wrapped",
  "overlay": "inference.arrays",
  "places": "attribution.wrapping",
  "predict": "inference.arrays",
  "train": "training.session",
  "wrap": "attribution.wrapping",
}


def __getattr__(name: str) -> typing.Any:
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  try:
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
  except ModuleNotFoundError as error:
    raise ImportError(
      f"gc_jax.{name} needs the package {error.name!r}, which is not "
      "installed. Run pip install 'gc_jax[all]'."
    ) from error
  is_module = home.__name__.endswith(f".{name}")
  found = home if is_module else vars(home)[name]
  globals()[name] = found
  return found


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
