"""Times our train step against the same in plain PyTorch, in one run.

  taskset -c 0,1 python -m tests.benchmarks.torch_step --model resnet18

PyTorch's (`torch_twin`) runs eagerly in channels_last, with bfloat16 by
autocast, cuDNN free to choose its algorithms, and TensorFloat-32 where JAX
uses it; it makes the paper's composites, one for each image. It is handed
normalised floats; ours normalises bytes. Before anything is timed, both get
the same weights and the same composites, and must agree in both losses and in
the norm of the gradient; else the program fails. All are timed in turns, with
as many threads as the process may use cores; ratios, the median over rounds,
are what to read.
"""

import argparse
import functools
import json
import os
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from gc_jax.method import compose
from gc_jax.method.types import Batch
from gc_jax.models.pixels import normalize_pixels
from gc_jax.runtime import parallel
from gc_jax.torch_io import names
from gc_jax.training import composites, step
from tests.benchmarks import measuring, torch_twin
from tests.benchmarks import step as ours
from tests.torch_io import torch_models

MODELS = [
  f"{name}{pooling}"
  for name in ("resnet18", "resnet34", "resnet50", "resnet101")
  for pooling in ("", "-gmp")
]
# Relative. Float32 sums in another order; the gradient is one of a gradient.
TOLERANCES = {
  "classification_loss": 1e-4,
  "consistency_loss": 1e-4,
  "grad_norm": 1e-3,
}


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", choices=MODELS, default="resnet18")
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument(
    "--compile",
    action="store_true",
    help="time PyTorch with its trunk compiled as well (torch.compile)",
  )
  parser.add_argument(
    "--at_least",
    type=float,
    default=0.0,
    help="fail where packed makes fewer times PyTorch's images a second",
  )
  arguments = parser.parse_args()
  if arguments.batch_size < 4 or arguments.batch_size % 4:
    parser.error(
      f"--batch_size={arguments.batch_size} must be a multiple of 4: packed "
      "composites take four images each. Use 8 or 64."
    )
  # PyTorch needs memory on the same device.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  torch.backends.cudnn.benchmark = True
  torch.manual_seed(0)
  device = "cpu" if jax.default_backend() == "cpu" else "cuda"
  if device == "cuda" and not torch.cuda.is_available():
    sys.exit(
      "PyTorch must see the GPU that JAX sees; this build of it does not. "
      "Install one with CUDA, or set JAX_PLATFORMS=cpu."
    )

  batch = ours.make_batch(arguments.batch_size, arguments.image_size)
  weights = names.to_torch(_first_model(arguments.model))
  losses = compare(arguments.model, weights, batch, device)
  print(json.dumps({"losses": losses}), file=sys.stderr)
  wrong = disagreements(losses)
  if wrong:
    sys.exit(f"Both must compute the same; they differ in {wrong}: {losses}")

  runs, failure = _runs(arguments, weights, batch, device)
  secs = measuring.in_turns(runs, arguments.rounds)
  ratios = {
    name: measuring.ratio(secs[theirs], secs[own])
    for name, (theirs, own) in {
      "packed_to_torch": ("torch_independent", "packed"),
      "independent_to_torch": ("torch_independent", "independent"),
      "plain_to_torch": ("torch_plain", "plain"),
    }.items()
  }
  for kind in ("plain", "independent"):
    compiled = f"torch_{kind}_compiled"
    if compiled in secs:
      own = "plain" if kind == "plain" else "packed"
      ratios[f"{own}_to_torch_compiled"] = measuring.ratio(
        secs[compiled], secs[own]
      )
  rate = {
    name: arguments.batch_size / statistics.median(values)
    for name, values in secs.items()
  }
  print(
    json.dumps(
      {
        "device": parallel.describe(),
        "torch": torch.__version__,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        **vars(arguments),
        "losses": losses,
        "images_per_sec": rate,
        "images_per_sec_ratio": ratios,
        "secs": secs,
        "torch_compile_failure": failure,
      },
      indent=2,
    )
  )
  if ratios["packed_to_torch"] < arguments.at_least:
    sys.exit(
      f"packed must make {arguments.at_least:g} times PyTorch's images a "
      f"second; it makes {ratios['packed_to_torch']:.2f} times."
    )


def compare(
  model: str, weights: dict[str, np.ndarray], batch: Batch, device: str
) -> dict[str, tuple[float, float]]:
  """Returns each number of one step as (ours, PyTorch's), both in float32.

  `weights` are of our state of step 0, under PyTorch's keys.
  """
  images, label = _torch_batch(batch, device)
  layout = torch_twin.draw_layout(label)
  trainer = _trainer(model, weights, device, "float32", ours.WEIGHT)
  with _full_float32():
    theirs = trainer.step(images, label, layout)
    theirs["grad_norm"] = trainer.grad_norm()

  tiles, cell = (jnp.asarray(x.cpu().numpy(), jnp.int32) for x in layout)
  drawn = compose.Layout(tiles, cell[:, None], jnp.ones((len(tiles), 1)))
  own = functools.partial(
    step.gradients,
    ours.recipe("independent"),
    key=jax.random.key(0),
    num_classes=ours.NUM_CLASSES,
    given={"consistency": composites.given(drawn)},
  )
  with jax.default_matmul_precision("highest"):
    losses, grads = nnx.jit(own)(_first_model(model), batch)
  found = {f"{name}_loss": loss for name, loss in losses.items()}
  found["grad_norm"] = optax.tree.norm(grads)
  return {n: (float(found[n]), float(theirs[n])) for n in TOLERANCES}


def disagreements(losses: dict[str, tuple[float, float]]) -> list[str]:
  """Returns the names of numbers that differ by more than rounding does."""
  return [
    name
    for name, (own, theirs) in losses.items()
    # Not "greater": NaN must not pass.
    if not abs(own - theirs) <= TOLERANCES[name] * abs(theirs)
  ]


def _first_model(name: str) -> nnx.Module:
  """Returns the model of the state that `step.create` makes."""
  graphdef, state = ours.create(name, "float32")
  return nnx.merge(graphdef, state.params, state.batch_stats)


def _torch_batch(
  batch: Batch, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
  pixels = np.array(normalize_pixels(batch["image"])).transpose(0, 3, 1, 2)
  images = torch.from_numpy(pixels).to(device)
  label = torch.from_numpy(np.array(batch["label"], np.int64)).to(device)
  return images.contiguous(memory_format=torch.channels_last), label


def _trainer(
  model: str,
  weights: dict[str, np.ndarray],
  device: str,
  dtype: str,
  weight: float,
  compiles: bool = False,
) -> torch_twin.Trainer:
  twin = torch_models.create(model, ours.NUM_CLASSES)
  twin.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
  return torch_twin.Trainer(twin, device, dtype, weight, compiles)


class _full_float32:
  """Within it, PyTorch multiplies float32 in full precision on a GPU.

  Outside of it, in TensorFloat-32: as JAX does by default.
  """

  def __enter__(self):
    self._set("highest", False)

  def __exit__(self, *_):
    self._set("high", True)

  def _set(self, precision: str, allow_tf32: bool) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = allow_tf32


def _runs(
  arguments: argparse.Namespace,
  weights: dict[str, np.ndarray],
  batch: Batch,
  device: str,
):
  """Returns what is timed by name, and why torch.compile failed (or None)."""
  runs, failure = {}, None
  torch_batch = _torch_batch(batch, device)
  for name, weight in (("plain", 0.0), ("independent", ours.WEIGHT)):
    fields = (arguments.model, weights, device, arguments.dtype, weight)
    runs[f"torch_{name}"] = _trainer(*fields).repeat(*torch_batch)
    if arguments.compile and failure is None:
      run = _trainer(*fields, compiles=True).repeat(*torch_batch)
      try:
        run(1)
      except Exception as error:  # of the compiler, of any kind
        failure = f"{type(error).__name__}: {error}"[:500]
      else:
        runs[f"torch_{name}_compiled"] = run
  for mode in ours.MODES:
    lowered, state = ours.lower(arguments.model, arguments.dtype, mode, batch)
    runs[mode] = measuring.Steps(lowered.compile(), state, batch)
  return runs, failure


if __name__ == "__main__":
  main()
