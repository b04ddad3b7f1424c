"""Image classifiers whose explanations can be trusted, trained in JAX.

The public names; nothing else is public. A trained model: `load`, `predict`,
`explain`, `overlay`, `class_names`. Models: `MODELS`, `create`. Explanations:
`METHODS`. The method of the paper, as pure functions on arrays: `cam`,
`compose`, `losses`, `metrics`.
"""

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
