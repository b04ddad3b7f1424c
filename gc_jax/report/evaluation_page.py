"""report.html of an evaluation, its tables and figures, as files."""

import pathlib

from gc_jax.report.evaluated import Evaluated

FILENAMES: tuple[str, ...] = ()


def write_evaluation(evaluated: Evaluated) -> list[pathlib.Path]:
  """Writes everything that people look at; returns the paths."""
  del evaluated
  return []
