"""What an evaluation's settings must satisfy, told before it is imported."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import attribution
from gc_jax.attribution import METHODS
from gc_jax.data import check_name
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.runtime.config import at_least, one_of
from gc_jax.runtime.messages import unknown_name_message

ALSO = ("attacks", "faithfulness")  # what the end of a run may ask besides
_MAY_BE_ZERO = ("round_px", "num_resamples")  # all other numbers may not


def validate_evaluation(config: ConfigDict) -> None:
  """Checks the fields of a config that an evaluation reads."""
  check_name(config.data.name)
  one_of("eval.protocol", config.eval.protocol, PROTOCOLS)
  one_of("eval.border", config.eval.border, ("", "clipped", "release"))
  check_methods("--config.eval.methods", tuple(config.eval.methods))
  for question in config.eval.also:
    one_of("eval.also", question, ALSO)
  at_least(config, "data.image_size", 0, exclusive=True)
  for name, value in config.eval.items():
    if type(value) in (int, float):
      at_least(config, f"eval.{name}", 0, exclusive=name not in _MAY_BE_ZERO)
  for epsilon in config.eval.epsilons:
    if not 0 < epsilon <= 255:
      raise ValueError(
        "--config.eval.epsilons must be above 0 and at most 255, in 1/255 of "
        f"a pixel's range; {epsilon} is not."
      )


def methods_of(names: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the methods that names ask for: "usual", "all", or themselves."""
  usual = tuple(k for k, method in METHODS.items() if not method.only_named)
  return {("usual",): usual, ("all",): tuple(METHODS)}.get(names, names)


def check_methods(flag: str, methods: tuple[str, ...]) -> None:
  """Checks names of explanation methods, which a flag gave."""
  for method in methods:
    if method not in METHODS:
      raise ValueError(unknown_name_message(flag, method, METHODS))
  if not methods or len(set(methods)) < len(methods):
    raise ValueError(
      f"{flag} must name explanation methods, each once; it is "
      f"{','.join(methods)!r}. Known: {', '.join(METHODS)}."
    )


def fitting(
  methods: tuple[str, ...], model: nnx.Module, config: ConfigDict
) -> tuple[tuple[str, ...], dict[str, str]]:
  """Returns the methods that hold for a network; of the others, why not.

  Nothing is computed: the model may be shapes alone.

  Raises:
    ValueError: none is left.
  """
  size = config.data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
  left_out = attribution.unfit(methods, model, image)
  kept = tuple(name for name in methods if name not in left_out)
  if not kept:
    raise ValueError(
      "One of the methods asked for must hold for this model; none does. "
      + " ".join(left_out.values())
    )
  return kept, left_out


def remarks(left_out: Mapping[str, str]) -> list[str]:
  """Returns a line on each method that `fitting` leaves out."""
  return [f"note: {name} is left out. {why}" for name, why in left_out.items()]
