"""What devices tell each other in a train step, as their number grows.

  python -m tests.benchmarks.weak_scaling --model=resnet18

The same images a device on 1, 2, 4, 8 virtual devices of the CPU, each number
in a process of its own. The bytes that each device puts into collectives are
read from the compiled program; they must be the same on any number above one,
to the byte, and be sums alone: no image moves. Seconds are printed too, but
virtual devices share the machine's cores, so they say nothing about scaling.

How many bytes a sum then moves is the network's affair: a ring sends
2 (n - 1) / n times them, less than twice on any number of devices.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import jax

from gc_jax import models
from gc_jax.method import compose
from gc_jax.pods.compiler import by_kind, exchanges
from gc_jax.runtime import parallel
from gc_jax.training.build import num_params
from tests.benchmarks import measuring
from tests.benchmarks import step as ours

DEVICES = (1, 2, 4, 8)


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", choices=models.MODELS, default="resnet8-small")
  parser.add_argument("--image_size", type=int, default=64)
  parser.add_argument("--batch_per_device", type=int, default=4)
  parser.add_argument(
    "--mode", choices=("plain", *compose.MODES), default="packed"
  )
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.batch_per_device % 4 or arguments.batch_per_device < 4:
    parser.error(
      f"--batch_per_device={arguments.batch_per_device} must be a multiple of "
      "4: a composite mixes images of one device. Use 4 or 8."
    )
  if arguments.measure:
    print(json.dumps(_measure(arguments)))
    return

  rows = {count: _in_process(count) for count in DEVICES}
  asked = {k: v for k, v in vars(arguments).items() if k != "measure"}
  print(json.dumps({**asked, "devices": rows}, indent=2))
  wrong = violations(rows)
  if wrong:
    sys.exit("\n".join(wrong))


def violations(rows: dict[int, dict]) -> list[str]:
  """Returns a sentence for every way in which communication grows.

  Args:
    rows: number of devices -> what `program.by_kind` says, as "collectives".
  """
  found = {count: row["collectives"] for count, row in rows.items()}
  wrong = []
  if found.get(1):
    wrong.append(f"One device must tell nobody anything; it has {found[1]}.")
  several = {count: kinds for count, kinds in found.items() if count > 1}
  fewest = several[min(several)]
  for count, kinds in several.items():
    if not kinds:
      wrong.append(
        f"{count} devices must sum gradients; there is no all-reduce."
      )
    if set(kinds) - {"all-reduce"}:
      wrong.append(
        f"Devices must only sum; {count} of them have {sorted(kinds)}."
      )
    if kinds != fewest:
      wrong.append(
        f"Bytes of collectives must not depend on the number of devices; "
        f"{min(several)} have {fewest} and {count} have {kinds}."
      )
  return wrong


def _in_process(count: int) -> dict:
  """Returns what `_measure` does on so many devices."""
  flag = "--xla_force_host_platform_device_count"
  kept = [
    part for part in os.environ.get("XLA_FLAGS", "").split() if flag not in part
  ]
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "tests.benchmarks.weak_scaling",
      *sys.argv[1:],
      "--measure",
    ],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": " ".join([*kept, f"{flag}={count}"]),
    },
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def _measure(arguments: argparse.Namespace) -> dict:
  """Returns what one step communicates on the devices that there are."""
  mesh = parallel.make_mesh()
  batch_size = mesh.size * arguments.batch_per_device
  batch = parallel.to_devices(
    ours.make_batch(batch_size, arguments.image_size), mesh
  )
  with jax.set_mesh(mesh):
    lowered, state = ours.lower(
      arguments.model,
      "float32",
      arguments.mode,
      batch,
      sharding=parallel.replicated(mesh),
      groups=mesh.size,
    )
    size = num_params(state)
    program = lowered.compile()
    found = by_kind(exchanges(program.as_text()))
    run = measuring.Steps(program, state, batch)
    secs = measuring.in_turns({"step": run}, arguments.rounds)
  return {
    "batch_size": batch_size,
    "collectives": found,
    "bytes_per_parameter_byte": (
      sum(kind["bytes"] for kind in found.values()) / (4 * size)
    ),
    "secs": statistics.median(secs["step"]),
  }


if __name__ == "__main__":
  main()
