"""What an evaluation asks of a config."""

from ml_collections import ConfigDict

from gc_jax.attribution import METHODS
from gc_jax.data import check_name
from gc_jax.runtime.config import at_least, one_of

PROTOCOLS = ("paper", "release")


def validate_evaluation(config: ConfigDict) -> None:
  """Checks what an evaluation asks of a config.

  Raises:
    ValueError: names the field, what it must be, what it is, what to do.
  """
  check_name(config.data.name)
  settings = config.eval
  one_of("eval.protocol", settings.protocol, PROTOCOLS)
  for name in settings.methods:
    one_of("eval.methods", name, METHODS)
  if not settings.methods or len(set(settings.methods)) < len(settings.methods):
    raise ValueError(
      "--config.eval.methods must name explanation methods, each once; it is "
      f"{tuple(settings.methods)}. Known: {', '.join(METHODS)}."
    )
  for field in (
    "data.image_size",
    "eval.batch_size",
    "eval.tolerance_px",
    "eval.shorter_side_px",
    "eval.max_shapes",
    "eval.spg_samples",
    "eval.spg_runs",
    "eval.costly_rows",
    "eval.faithfulness_steps",
    "eval.sanity_rows",
  ):
    at_least(config, field, 0, exclusive=True)
  at_least(config, "eval.round_px", 0)
  at_least(config, "eval.num_resamples", 0)
  for epsilon in settings.epsilons:
    if not 0 < epsilon <= 255:
      raise ValueError(
        "--config.eval.epsilons must be above 0 and at most 255, in 1/255 of "
        f"a pixel's range; {epsilon} is not."
      )
