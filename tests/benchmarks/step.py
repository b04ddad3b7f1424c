"""Times and weighs the train step: plain and in every mode of composites.

  python -m tests.benchmarks.step --model=resnet18 --image_size=224
  python -m tests.benchmarks.step --model resnet18 resnet50 \
    --dtype float32 bfloat16 --batch_size 64 256
  python -m tests.benchmarks.step --model resnet50 --dtype bfloat16 --find_batch

Every combination of architecture, precision and batch size is measured. The
steps of one are timed in turns, so that a noisy machine is noisy for all
of them; ratios are what to read. FLOPs and bytes are the compiler's own count.
`--find_batch` doubles the batch instead, until the device's memory is
exhausted.
"""

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from gc_jax import models
from gc_jax.method import compose
from gc_jax.method.types import Batch
from gc_jax.runtime import parallel
from gc_jax.runtime.config import get_config
from gc_jax.training import build
from gc_jax.training.step import TrainState, make_train_step
from tests.benchmarks import measuring

MODES = ("plain", *compose.MODES)
NUM_CLASSES = 1_000
WEIGHT = 25.0  # λ

# device_kind -> dense TFLOP/s in bfloat16, of one device as JAX counts them.
# NVIDIA's data sheets of H100 SXM and H200 SXM (half of what they give "with
# sparsity"); docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
PEAK_TFLOPS = {
  "NVIDIA H100 80GB HBM3": 989.0,
  "NVIDIA H200": 989.0,
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5": 459.0,
  "TPU v5p": 459.0,
  "TPU v6 lite": 918.0,
  "TPU v6e": 918.0,
}


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--model", nargs="+", choices=models.MODELS, default=["resnet18"]
  )
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument("--batch_size", nargs="+", type=int, default=[8])
  parser.add_argument(
    "--dtype",
    nargs="+",
    choices=("float32", "bfloat16"),
    default=["float32"],
    help="of activations; float32 multiplies as the device does by default",
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
    "--find_batch",
    action="store_true",
    help="double from --batch_size on, on a GPU or TPU",
  )
  arguments = parser.parse_args()
  if any(size < 4 or size % 4 for size in arguments.batch_size):
    parser.error(
      f"--batch_size={arguments.batch_size} must be multiples of 4: packed "
      "composites take four images each. Use 8 or 64."
    )
  # Without this the largest batch is that of three quarters of the memory.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
  if arguments.find_batch and jax.default_backend() == "cpu":
    parser.error(
      "--find_batch must run on a GPU or TPU, and this is a CPU: it would fill "
      "the machine's memory. Leave it out; temporaries_mb says what a step "
      "takes."
    )

  measure = _largest if arguments.find_batch else _timed
  rows = [
    {"model": model, "dtype": dtype}
    | measure(model, dtype, batch_size, arguments)
    for model, dtype, batch_size in itertools.product(
      arguments.model, arguments.dtype, arguments.batch_size
    )
  ]
  print(
    json.dumps(
      {"device": parallel.describe(), **vars(arguments), "steps": rows},
      indent=2,
    )
  )


def make_batch(batch_size: int, image_size: int) -> Batch:
  """Returns random pixels, each picture of a class of its own."""
  random = np.random.default_rng(0)
  shape = (batch_size, image_size, image_size, 3)
  return {
    "image": jnp.asarray(random.integers(0, 256, shape, np.uint8)),
    "label": jnp.arange(batch_size, dtype=jnp.int32) % NUM_CLASSES,
    "mask": jnp.ones(batch_size),
  }


def create(
  model: str,
  dtype: str,
  sharding: jax.sharding.Sharding | None = None,
  num_classes: int = NUM_CLASSES,
) -> tuple[nnx.GraphDef, TrainState]:
  """Returns the structure and the state of step 0, the same at every call."""
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return build.create_state(
    lambda key: models.create(
      model, num_classes, dtype=jnp.dtype(dtype), key=key
    ),
    _optimizer(),
    sharding,
    models.init_key(0),
  )


def _optimizer() -> optax.GradientTransformation:
  # So slow that no number leaves its range while it is timed.
  return optax.sgd(1e-4, momentum=0.9)


def recipe(mode: str) -> ConfigDict:
  """Returns the config of "plain" steps, or of a key of `compose.MODES`."""
  config = get_config()
  config.loss.consistency_weight = 0.0
  if mode != "plain":
    config.loss.consistency_weight = WEIGHT
    config.compose.mode = mode
  return config


def lower(
  model: str,
  dtype: str,
  mode: str,
  batch: Batch,
  *,
  sharding: jax.sharding.Sharding | None = None,
  groups: int = 1,
  num_classes: int = NUM_CLASSES,
) -> tuple[jax.stages.Lowered, TrainState]:
  """Returns the step as traced, and the state of step 0.

  `mode` is that of a `recipe`; composites mix images within one of `groups`
  equal shares of the batch.
  """
  graphdef, state = create(model, dtype, sharding, num_classes)
  step = make_train_step(
    recipe(mode),
    graphdef,
    _optimizer(),
    num_classes=num_classes,
    num_devices=groups,
    steps_per_epoch=1,
  )
  # As in training: the state's memory is used again for the next.
  return jax.jit(step, donate_argnums=0).lower(state, batch), state


def utilization(flops: float, secs: float, dtype: str) -> float | None:
  """Returns the share of the device's bfloat16 peak; None if it is unknown."""
  peak = PEAK_TFLOPS.get(jax.devices()[0].device_kind)
  if peak is None or dtype != "bfloat16":
    return None
  return flops / secs / (peak * 1e12)


def _timed(
  model: str, dtype: str, batch_size: int, arguments: argparse.Namespace
) -> dict:
  batch = make_batch(batch_size, arguments.image_size)
  flops, runs = {}, {}
  for mode in MODES:
    lowered, state = lower(model, dtype, mode, batch)
    compiled = lowered.compile()
    flops[mode] = compiled.cost_analysis()["flops"]
    runs[mode] = measuring.Steps(compiled, state, batch)
  secs = measuring.in_turns(runs, arguments.rounds)
  rows = {}
  for mode, run in runs.items():
    median = statistics.median(secs[mode])
    memory = run.compiled.memory_analysis()
    rows[mode] = {
      "secs": median,
      "secs_ratio": measuring.ratio(secs[mode], secs["plain"]),
      "images_per_sec": batch_size / median,
      "gflops": flops[mode] / 1e9,
      "flops_ratio": flops[mode] / flops["plain"],
      "flops_utilization": utilization(flops[mode], median, dtype),
      "temporaries_mb": memory.temp_size_in_bytes / 1e6,
    }
  return {"batch_size": batch_size, **rows}


def _largest(
  model: str, dtype: str, batch_size: int, arguments: argparse.Namespace
) -> dict:
  def secs_of(mode: str, size: int) -> float:
    batch = make_batch(size, arguments.image_size)
    lowered, state = lower(model, dtype, mode, batch)
    run = measuring.Steps(lowered.compile(), state, batch)
    secs = measuring.in_turns({mode: run}, arguments.rounds)
    return statistics.median(secs[mode])

  memory = jax.devices()[0].memory_stats() or {}
  return {
    "memory_mb": memory.get("bytes_limit", 0) / 1e6,
    **{
      mode: largest_batch(
        lambda size, mode=mode: secs_of(mode, size), batch_size
      )
      for mode in MODES
    },
  }


def largest_batch(secs_of: Callable[[int], float], start: int) -> dict:
  """Doubles the batch, from `start` on, until a step of it fails.

  Returns the largest that ran (0: none did), its images a second, and the first
  line of the error that ended the search: "RESOURCE_EXHAUSTED" is a full
  memory, anything else is not.
  """
  largest, rate, size = 0, 0.0, start
  while True:
    try:
      secs = secs_of(size)
    except jax.errors.JaxRuntimeError as error:
      return {
        "largest_batch_size": largest,
        "images_per_sec": rate,
        "failed_batch_size": size,
        "failure": str(error).split("\n")[0][:200],
      }
    largest, rate = size, size / secs
    size *= 2


if __name__ == "__main__":
  main()
