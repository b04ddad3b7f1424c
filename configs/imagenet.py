r"""ImageNet as in the paper: AlexNet, ResNet18 and ResNet50.

  python -m gc_jax.main --config=configs/imagenet.py:resnet18-gc \
    --workdir=runs/imagenet_resnet18_gc --config.data.path=/data/ILSVRC2012

`--config.data.path` is the folder of the official archives; they are copied
into `--config.data.dir` on first use, see gc_jax/data/sets/imagenet.py.
Variants are an architecture (`resnet18`, `resnet50`), a dash, and `ce`, `gc`,
`gmp` or `gmp_gc`, or `alexnet-ce` and `alexnet-gc`, for AlexNet has no global
pooling; `resnet18-gc` is the default. With `,smoke` any of them shrinks to
context digits, 64 pixels and eight steps, without ImageNet.

Values are those of the authors' release. Two differ on purpose. Composites are
`packed`, two plain steps instead of five; the release's are
`--config.compose.mode=independent --config.compose.distractors=dataset`. And
there is no choice of the best epoch, which the release made on the split it
reports; to choose something yourself, hold out a part of training:
`--config.data.train_split='train[:99%]'` and
`--config.data.val_split='train[99%:]'`.

Table 6 is of `resnet50-ce`, `-gmp` and `-gmp_gc`: every `gc_jax.evaluate` asks
FGSM and PGD. Tables 1 and 5: gc_jax/docs/recipes.md has the commands.

Hardware: made for 8 accelerators of 16 GB or more. Below are the paper's scores
(Table 1), ours, which are not yet measured, the compiler's FLOPs of a picture
(libtpu, v5e:4x4, which every row fits), and the hours that 90 epochs would take
16 chips of v5e at 30 % of their 197 TFLOP/s, which is assumed, not measured. If
the hosts read pictures slower than that, it takes longer: a CPU core decodes
about 1,100 a second (gc_jax/docs/benchmarks.md). With the release's composites
a picture takes 51.43 GFLOP in `resnet18-gc`, 121.62 in `resnet50-gc`.

                   top-1     PG    SPG     CH    NQH  ours   GFLOP  hours
  resnet18-ce      69.43  79.80  60.50  54.36  24.35     -    9.98   0.34
  resnet18-gc      67.74  80.00  65.85  57.73   7.62     -   21.86   0.74
  resnet18-gmp     69.08  79.30  66.66  62.89  38.96     -    9.98   0.34
  resnet18-gmp_gc  69.02  79.60  68.74  65.35  31.15     -   21.86   0.74
  resnet50-ce      76.13  80.00  60.95  54.78  21.48     -   24.01   0.81
  resnet50-gc      74.40  80.30  65.26  59.42   7.43     -   50.96    1.7
  resnet50-gmp     74.63  79.80  66.29  54.23  33.91     -   24.02   0.81
  resnet50-gmp_gc  74.14  79.60  69.51  59.70  21.30     -   50.96    1.7
  alexnet-ce       56.51  72.80  53.45  45.78  43.53     -    3.86   0.13
  alexnet-gc       56.16  73.70  61.15  48.10  33.94     -    9.27   0.31
"""

import ml_collections

from configs import base

ROWS = {
  "resnet18": ("ce", "gc", "gmp", "gmp_gc"),
  "resnet50": ("ce", "gc", "gmp", "gmp_gc"),
  "alexnet": ("ce", "gc"),
}
VARIANTS = tuple(f"{name}-{row}" for name, rows in ROWS.items() for row in rows)


def get_config(variant: str = "resnet18-gc") -> ml_collections.ConfigDict:
  name, options = base.parse_variant(variant, VARIANTS, default="resnet18-gc")
  architecture, row = name.split("-")
  c = base.get_config()
  c.num_epochs = 90.0
  c.batch_size = 256
  c.data.name = "imagenet"
  c.data.image_size = 224
  c.data.val_split = c.data.eval_split = "validation"
  c.data.crop = "random_resized"
  c.data.flip = True
  c.data.eval_resize_px = 256
  c.data.num_workers = 8
  c.model.name = architecture + ("-gmp" if row.startswith("gmp") else "")
  c.optim.lr_per_256 = 0.01 if architecture == "alexnet" else 0.1
  c.optim.momentum = 0.9
  c.optim.weight_decay = 1e-4
  c.optim.schedule = "step"
  c.optim.step_epochs = (30, 60)
  c.loss.consistency_weight = 25.0 if row.endswith("gc") else 0.0
  c.loss.reduction = "mean"
  c.log.every_steps = 100
  return shrink(c, "context_digits") if "smoke" in options else c


def shrink(
  c: ml_collections.ConfigDict, data_name: str
) -> ml_collections.ConfigDict:
  """Returns the config on context digits, shrunk to seconds."""
  c = base.shrink(c)
  c.data.name = data_name
  c.data.image_size = 64
  c.data.eval_resize_px = 72 if c.data.eval_resize_px else 0
  c.data.num_workers = 0
  return c
