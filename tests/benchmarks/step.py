"""Times and weighs the train step: plain, packed, independent, in one run.

  python -m tests.benchmarks.step --model=resnet18 --image_size=224

The three are timed in turns, so that a noisy machine is noisy for all of them;
ratios are what to read. FLOPs and bytes are the compiler's own count.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gc_jax import models, parallel
from gc_jax import state as states
from gc_jax import step as steps

MODES = ("plain", "packed", "independent")


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", choices=models.MODELS, default="resnet18")
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()

  random = np.random.default_rng(0)
  shape = (arguments.batch_size, arguments.image_size, arguments.image_size, 3)
  batch = {
    "image": jnp.asarray(random.integers(0, 256, shape, np.uint8)),
    "label": jnp.arange(arguments.batch_size, dtype=jnp.int32),
    "mask": jnp.ones(arguments.batch_size),
  }
  compiled = {mode: _compile(arguments, mode, batch) for mode in MODES}
  secs = {mode: [] for mode in MODES}
  for _ in range(arguments.rounds + 1):
    for mode, (step, state) in compiled.items():
      started = time.perf_counter()
      jax.block_until_ready(step(state, batch))
      secs[mode].append(time.perf_counter() - started)

  # The first round warms up.
  median = {mode: statistics.median(t[1:]) for mode, t in secs.items()}
  rows = {}
  for mode, (step, _) in compiled.items():
    flops = step.cost_analysis()["flops"]
    plain = compiled["plain"][0].cost_analysis()["flops"]
    rows[mode] = {
      "secs": median[mode],
      "secs_ratio": median[mode] / median["plain"],
      "images_per_sec": arguments.batch_size / median[mode],
      "gflops": flops / 1e9,
      "flops_ratio": flops / plain,
      "temporaries_mb": step.memory_analysis().temp_size_in_bytes / 1e6,
    }
  print(
    json.dumps(
      {"device": parallel.describe(), **vars(arguments), "step": rows}, indent=2
    )
  )


def _compile(arguments: argparse.Namespace, mode: str, batch: dict):
  tx = optax.sgd(0.1, momentum=0.9)
  graphdef, state = states.create(
    lambda key: models.create(
      arguments.model, 1_000, dtype=jnp.dtype(arguments.dtype), key=key
    ),
    tx,
    jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    models.init_key(0),
  )
  objective = steps.Objective(
    num_classes=1_000,
    consistency=mode != "plain",
    compose_mode=mode if mode != "plain" else "packed",
  )
  step = steps.make_train_step(
    graphdef, tx, objective, lambda step: jnp.float32(25), jax.random.key(0)
  )
  return jax.jit(step).lower(state, batch).compile(), state


if __name__ == "__main__":
  main()
