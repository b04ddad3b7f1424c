"""What a train step minimises."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised, and in which parts; the fields are runtime/config.py's.

  Attributes:
    num_classes: K.
    terms: guidance terms, keys of `guidance.TERMS`, and each one's settings.
    classification_weight: factor of the cross-entropy.
    target_draw: of several present classes, how the explained one is drawn.
    accumulate_steps: equal parts of the batch that are computed one after the
      other (see `make_train_step`).
    bn_group: images that a BatchNorm normalises together, or 0 for all of a
      part. What a term sends through the model is divided into as many groups
      as the images are.
    remat: whether the backward pass computes activations anew.
  """

  num_classes: int
  terms: Mapping[str, Any]
  classification_weight: float = 1.0
  target_draw: str = "category"
  accumulate_steps: int = 1
  bn_group: int = 0
  remat: bool = False
