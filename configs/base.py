"""Where a recipe begins: every field with its default, and what recipes share.

Nothing runs from here: see configs/quickstart.py for a recipe. The fields, with
their units and defaults, stand in gc_jax/runtime/config.py.
"""

import ml_collections

from gc_jax.method.fields import FIELDS
from gc_jax.runtime.config import get_config as get_config


def parse_variant(
  variant: str,
  known: tuple[str, ...],
  default: str,
  options: tuple[str, ...] = (),
) -> tuple[str, set[str]]:
  """Returns the name in "name,option,...", and the options.

  Every recipe has the option "smoke", which shrinks it to seconds.
  """
  options = (*options, "smoke")
  words = [word for word in variant.split(",") if word]
  chosen = {word for word in words if word in options}
  names = [word for word in words if word not in options] or [default]
  if len(names) > 1 or names[0] not in known:
    also = " or ".join(f"',{option}'" for option in options)
    raise ValueError(
      f"Unknown config variant {variant!r}. Known: {', '.join(known)}, each "
      f"also with {also}; or those alone, for {default}."
    )
  return names[0], chosen


def shrink(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config shrunk to seconds on a CPU: the same code, few steps."""
  c.num_epochs = 2.0
  c.init_from = ""
  c.batch_size = 16
  c.eval.batch_size = 16
  c.data.train_split = "train[:64]"
  c.data.val_split = "validation[:20]"
  c.data.eval_split = "test[:40]"
  c.optim.warmup_epochs = min(c.optim.warmup_epochs, 1.0)
  for fields in FIELDS.values():
    c.loss[fields.ramp.name] = min(c.loss[fields.ramp.name], 1.0)
  c.log.every_steps = 2
  c.report.baseline = ""
  return c
