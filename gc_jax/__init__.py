"""Image classifiers whose explanations can be trusted, trained in JAX.

The public names; nothing else is public. A trained model: `load`, `predict`,
`explain`. Models: `MODELS`, `create`. Explanations: `METHODS`. The method of
the paper, as pure functions on arrays: `cam`, `compose`, `losses`, `metrics`.
"""

from gc_jax.attribution import METHODS
from gc_jax.inference.arrays import explain, predict
from gc_jax.inference.trained import load
from gc_jax.method import cam, compose, losses, metrics
from gc_jax.models import MODELS, create

__all__ = [
  "METHODS",
  "MODELS",
  "cam",
  "compose",
  "create",
  "explain",
  "load",
  "losses",
  "metrics",
  "predict",
]
