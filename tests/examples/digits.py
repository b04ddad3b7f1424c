"""Context digits as arrays, and what the three example loops print."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

import gc_jax
from configs import quickstart
from gc_jax import data
from gc_jax.attribution.wrapping import Tapped
from gc_jax.data import geometry

SIZE = 64
BATCH = 32


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns pictures in [-1, 1], `[N H W 3]`, and their digits `[N]`."""
  config = quickstart.get_config().data
  records = data.load(config, split).source
  records = [records[i] for i in range(len(records))]
  pixels = [geometry.decode_image(r["image"], SIZE) for r in records]
  labels = [int(r["labels"][0]) for r in records]
  return np.stack(pixels).astype(np.float32) / 127.5 - 1, np.array(labels)


def batches(steps: int, channels_first: bool = False):
  """Yields (images, labels, key) of random batches."""
  images, labels = load("train")
  rng = np.random.default_rng(0)
  for step in range(steps):
    rows = rng.choice(len(images), BATCH, replace=False)
    batch = (
      images[rows].transpose(0, 3, 1, 2) if channels_first else images[rows]
    )
    yield jnp.asarray(batch), jnp.asarray(labels[rows]), jax.random.key(step)


def arguments() -> argparse.Namespace:
  """Returns the number of steps and the weight of the consistency loss."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--weight", type=float, default=100.0)
  return parser.parse_args()


def show(net: Tapped, channels_first: bool = False) -> None:
  """Prints top-1 and NQH of a trained model on 1,000 test pictures."""
  images, labels = load("test")
  images = images.transpose(0, 3, 1, 2) if channels_first else images
  right, outside = [], []
  for i in range(0, len(images), 100):
    x, y = images[i : i + 100], labels[i : i + 100]
    right.append(gc_jax.predict(net, x).argmax(-1) == y)
    outside.append(gc_jax.negative_quadrants(net, x, y, jax.random.key(i)))
  found = {
    "top1": 100 * float(np.mean(right)),
    "negative_quadrants_heatmap": 100 * float(np.mean(outside)),
  }
  print(json.dumps({k: round(v, 1) for k, v in found.items()}))
