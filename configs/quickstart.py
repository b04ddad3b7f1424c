"""Context digits, trained in minutes on two CPU cores.

python -m gc_jax.main --config=configs/quickstart.py --workdir=runs/gc
"""

import ml_collections

from configs import base

VARIANTS = ("ce", "gc", "gmp", "gmp_gc", "smoke")


def get_config(variant: str = "gc") -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.name = "resnet10-small"
  c.batch_size = 64
  c.num_epochs = 10.0
  c.optim.lr_per_256 = 0.4
  c.optim.schedule = "cosine"
  return c
