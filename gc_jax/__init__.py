"""Image classifiers whose explanations can be trusted, trained in JAX.

The public names; nothing else is public. A trained model: `load`, `predict`,
`explain`, `overlay`, `class_names`. Models: `MODELS`, `create`. Explanations:
`METHODS`. The method of the paper, as pure functions on arrays: `cam`,
`compose`, `losses`, `metrics`.

Each is imported when it is first asked for: a command whose arguments are wrong
says so before jax is imported.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from gc_jax.attribution import METHODS
  from gc_jax.inference.arrays import class_names, explain, overlay, predict
  from gc_jax.inference.trained import load
  from gc_jax.method import cam, compose, losses, metrics
  from gc_jax.models import MODELS, create

__all__ = [
  "METHODS",
  "MODELS",
  "cam",
  "class_names",
  "compose",
  "create",
  "explain",
  "load",
  "losses",
  "metrics",
  "overlay",
  "predict",
]

# Where each of them is.
_HOMES = {
  "METHODS": "attribution",
  "MODELS": "models",
  "cam": "method.cam",
  "class_names": "inference.arrays",
  "compose": "method.compose",
  "create": "models",
  "explain": "inference.arrays",
  "load": "inference.trained",
  "losses": "method.losses",
  "metrics": "method.metrics",
  "overlay": "inference.arrays",
  "predict": "inference.arrays",
}


def __getattr__(name: str) -> typing.Any:
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
  is_module = home.__name__.endswith(f".{name}")
  found = home if is_module else vars(home)[name]
  globals()[name] = found
  return found


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
