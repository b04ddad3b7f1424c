"""What a train step minimises."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised, and in which parts; the fields are configs/base.py's.

  Attributes:
    num_classes: K.
    consistency: whether composites are made at all.
    classification_weight: factor of the cross-entropy.
    reduction: of the consistency loss over cells, "mean" or "sum".
    stop_gradient: whether the original's map is a fixed target.
    target_draw: of several present classes, how the explained one is drawn.
    compose_mode: a key of `compose.MODES`; a batch that brings distractors
      along has one composite for each image whatever it says.
    compose_groups: composites mix images within one of these equal, contiguous
      shares of the batch. With a multiple of the number of devices no image
      crosses from one to another.
    accumulate_steps: equal parts of the batch that are computed one after the
      other (see `make_train_step`).
    bn_group: images that a BatchNorm normalises together, or 0 for all of a
      part. Composites are divided into as many groups as the images are.
    remat: whether the backward pass computes activations anew.
  """

  num_classes: int
  consistency: bool
  classification_weight: float = 1.0
  reduction: str = "mean"
  stop_gradient: bool = False
  target_draw: str = "category"
  compose_mode: str = "packed"
  compose_groups: int = 1
  accumulate_steps: int = 1
  bn_group: int = 0
  remat: bool = False
