r"""The paper's experiments in small: four sets, three architectures, four rows.

  python -m gc_jax.main --config=configs/miniature.py:digits-resnet-gc \
    --workdir=runs/miniature

All of them, over several seeds, and the page of their results:
tests/benchmarks/miniature.py. Variants are a set, an architecture and a row,
with dashes between:

  digits     context digits                           (ImageNet in the paper)
  fashion    Fashion-MNIST's products in photographs  (ImageNet)
  objects    photographed things in photographs       (ImageNet)
  multi      two or three digits in a picture         (COCO)

  alexnet    a perceptron with dropout on a 7x7 grid  (AlexNet)
  resnet     basic blocks, an 8x8 grid                (ResNet18)
  bottleneck bottleneck blocks, an 8x8 grid           (ResNet50)

and `ce` (plain), `gc`, `gmp` or `gmp_gc`; AlexNet has no global pooling, so it
has the first two alone. `digits-resnet-gc` is the default. With `,smoke` any of
them shrinks to seconds, on context digits.

Each makes 2,500 updates (`multi` 6,250; bottlenecks twice as many) of 16
pictures of 64 pixels, on half of which the background follows the class, and is
evaluated on 1,000 others by the questions of Tables 1 to 6. `fashion` needs
Debian's dataset-fashion-mnist, `objects` its tuxpaint-stamps-default. Learning
rates, λ and its ramp are the quickstarts', except for AlexNet's learning rate
and for λ where bottlenecks have both loss and maximum.

Hardware: 1 CPU core, two to nine minutes a run, twenty for a bottleneck on
`multi`. Scores: configs/references/miniature.
"""

import ml_collections

from configs import base, quickstart, quickstart_multi

ROWS = {
  "resnet": ("ce", "gc", "gmp", "gmp_gc"),
  "bottleneck": ("ce", "gc", "gmp", "gmp_gc"),
  "alexnet": ("ce", "gc"),
}
SETS = {
  "digits": "context_digits",
  "fashion": "context_fashion",
  "objects": "context_objects",
  "multi": "context_digits_multi",
}
VARIANTS = tuple(
  f"{pictures}-{architecture}-{row}"
  for pictures in SETS
  for architecture, rows in ROWS.items()
  for row in rows
)
_NETWORKS = {
  "resnet": "resnet8-small",
  "bottleneck": "resnet11-small",
  "alexnet": "alexnet-small",
}


def get_config(
  variant: str = "digits-resnet-gc",
) -> ml_collections.ConfigDict:
  name, options = base.parse_variant(variant, VARIANTS, "digits-resnet-gc")
  pictures, architecture, row = name.split("-")
  recipe = quickstart_multi if pictures == "multi" else quickstart
  c = recipe.get_config(row)
  c.data.name = SETS[pictures]
  c.model.name = c.model.name.replace("resnet8-small", _NETWORKS[architecture])
  if pictures != "multi":
    c.num_epochs = 10.0  # of 4,000 pictures
  if pictures == "fashion":
    c.num_epochs = 2.0
    c.data.train_split = "train[:20000]"
    c.data.val_split = "validation[:500]"
    c.data.eval_split = "test[:1000]"
  if architecture == "bottleneck":
    # Half as many do not end its training: on digits, plain, no learning rate
    # of 0.4, 0.8 and 1.6 brings top-1 over 81 then; it is 91 now. On several
    # digits with the maximum, F1 is 64 then, and was 25 half-way. (Trials that
    # were not kept.)
    c.num_epochs *= 2
  # The quickstart's warm-up and ramps, as parts of the training.
  c.optim.warmup_epochs = c.num_epochs / 6 if "gmp" in row else 0.0
  if row.endswith("gc"):
    c.loss.ramp_epochs = c.num_epochs * (0.9 if row == "gmp_gc" else 0.5)
  if architecture == "bottleneck" and row == "gmp_gc":
    # At the quickstart's 1000 it does not learn: on digits, top-1 is 58 then,
    # and 83 at 300, in trials that were not kept.
    c.loss.consistency_weight *= 0.3
  if architecture == "alexnet":
    # Chosen on the validation split, plain; it has no BatchNorm.
    c.optim.lr_per_256 = 0.24
    c.optim.warmup_epochs = c.num_epochs / 10
    c.optim.clip_norm = 4.0
  c.data.flip = pictures == "objects"
  c.eval.methods = ("gradcam_elementwise", "gradcam", "cmwp", "fullgrad")
  c.eval.also = ("attacks",)
  c.eval.costly_rows = 100
  c.eval.every_epochs = c.num_epochs / 2
  c.checkpoint.every_epochs = c.num_epochs / 5
  c.checkpoint.keep = 1
  c.log.every_steps = 100
  c.report.baseline = ""
  if "smoke" in options:
    c.data.name = SETS["multi" if pictures == "multi" else "digits"]
    return base.shrink(c)
  return c
