"""What one field of a config must be."""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from gc_jax.runtime.messages import unknown_name_message


def one_of(field: str, value: str, known: Iterable[str]) -> None:
  """Checks that a field is one of some names.

  Raises:
    ValueError: it is none; gives the nearest.
  """
  if value not in known:
    raise ValueError(unknown_name_message(f"--config.{field}", value, known))


def at_least(
  config: ConfigDict, field: str, bound: int, exclusive: bool = False
) -> None:
  """Checks that a field is a finite number that is large enough.

  Args:
    config: resolved.
    field: "optim.momentum".
    bound: the least it may be.
    exclusive: whether the bound itself is too small.

  Raises:
    ValueError: it is not.
  """
  value = config
  for name in field.split("."):
    value = value[name]
  ok = value > bound if exclusive else value >= bound
  if not ok or not math.isfinite(value):
    relation = "above" if exclusive else "at least"
    raise ValueError(
      f"--config.{field}={value} must be a finite number {relation} {bound}."
    )
