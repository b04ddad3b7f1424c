r"""A network that you have, made consistent: a few epochs from its weights.

  python -m gc_jax.main --config=configs/finetune.py:resnet50-gc \
    --workdir=runs/finetuned --config.init_from=resnet50.pth \
    --config.data.path=/data/ILSVRC2012

`--config.init_from` is a PyTorch checkpoint of the architecture, with
torchvision's names or timm's (.pth or .safetensors), or the folder of a run.
Variants are those of configs/imagenet.py; `resnet50-gc` is the default. `ce` is
the control: as many steps without the loss. `gmp` replaces the pooling of a
network that was trained with the mean, and learns to live with it. With
`,smoke` any of them shrinks to seconds, from random weights.

On pictures of your own: `--config.data.name=folder --config.data.path=DIR`; if
they have other classes, the last layer starts anew.

Values: five epochs of cosine steps, a tenth as large as in training from
scratch, and the release's λ, which rises over the first; no paper has them, and
they have not been tried at this size. In small, such fine-tuning of SqueezeNet
is measured: configs/context.py.

Hardware: made for 8 accelerators of 16 GB. Time, as configs/imagenet.py
reckons it, is an eighteenth of its rows'. Score: not yet measured.
"""

import ml_collections

from configs import base, imagenet

VARIANTS = imagenet.VARIANTS


def get_config(variant: str = "resnet50-gc") -> ml_collections.ConfigDict:
  name, options = base.parse_variant(variant, VARIANTS, default="resnet50-gc")
  c = imagenet.get_config(name)
  architecture, _ = name.split("-")
  c.init_from = f"{architecture}.pth"  # torchvision's weights, if not yours
  c.num_epochs = 5.0
  c.optim.lr_per_256 = c.optim.lr_per_256 / 10
  c.optim.schedule = "cosine"
  c.optim.warmup_epochs = 0.5
  c.loss.ramp_epochs = 1.0
  if "smoke" in options:
    return imagenet.shrink(c, "context_digits")
  return c
