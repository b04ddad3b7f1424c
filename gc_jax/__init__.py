"""Image classifiers whose explanations can be trusted, trained in JAX.

The public names; nothing else is public. A trained model: `load`, `predict`,
`explain`. Models: `MODELS`, `create`. Explanations: `METHODS`. The method of
the paper, as pure functions on arrays: `cam`, `compose`, `losses`, `metrics`.
"""

from gc_jax import cam, compose, losses, metrics
from gc_jax.attribution import METHODS
from gc_jax.inference import explain, predict
from gc_jax.models import MODELS, create
from gc_jax.trained import load

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
