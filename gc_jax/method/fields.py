"""What a recipe sets of the losses that guide explanations: `FIELDS`.

Apart from the losses themselves: a configuration is read, and its errors told,
before jax is imported, which takes a second.
"""

from collections.abc import Sequence
from typing import NamedTuple

REDUCTIONS = ("mean", "sum")
_WEIGHT = "lambda, factor of the loss"


class Field(NamedTuple):
  """A field of `config.loss`.

  Attributes:
    name: below `config.loss`.
    default: its value where a recipe does not say.
    choices: its legal words; empty: it is True or False, or a finite number
      from 0 on.
    meaning: what it is, in words by which people look for it.
  """

  name: str
  default: bool | float | str
  choices: Sequence[str] = ()
  meaning: str = ""


class Fields(NamedTuple):
  """What a guidance loss is called, and what a recipe sets of it.

  Attributes:
    title: as people write it, after "a loss on the".
    weight: the factor of the mean loss; 0 = off.
    ramp: the epochs over which the weight rises from 0; 0 = at once.
    others: whatever else it has.
    section: a section of the config that only this loss reads, "compose".
  """

  title: str
  weight: Field
  ramp: Field
  others: tuple[Field, ...] = ()
  section: str = ""

  def every(self) -> tuple[Field, ...]:
    """Returns the fields of `config.loss`."""
    return (self.weight, self.ramp, *self.others)


# By the name of the guidance term, see training.guidance.TERMS.
FIELDS = {
  "consistency": Fields(
    title="Grad-CAM consistency",
    # With reduction "mean" on 14x14 cells, 25 (the release on ImageNet) equals
    # 25 / 196 = 0.1276 with "sum".
    weight=Field("consistency_weight", 25.0, meaning=f"{_WEIGHT}, gc"),
    ramp=Field("ramp_epochs", 0.0),  # 0 = off (release)
    others=(
      # Over map cells: mean (release) | sum (eq. 5).
      Field("reduction", "mean", REDUCTIONS),
      Field("stop_gradient", False),  # True: composites chase a fixed target
    ),
    section="compose",
  ),
  "energy": Fields(
    title="energy in the object",
    weight=Field("energy_weight", 0.0, meaning=_WEIGHT),
    ramp=Field("energy_ramp_epochs", 0.0),
  ),
}
