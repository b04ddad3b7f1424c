"""How long weights take to go to PyTorch and back, and in how much memory.

  python -m tests.benchmarks.weights --model=resnet50

Each operation runs in a process of its own. Prints JSON: for `.safetensors`
and `.pth`, megabytes of the file, seconds, and by how much the process grew at
most, over the size of the file: when a model is exported, over what it took
before; when a file is imported, the model included. Must be below 4.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from tests.benchmarks import measuring

_LIMIT = 4.0


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="resnet50")
  parser.add_argument("--measure", choices=("export", "import"))
  parser.add_argument("--file", type=pathlib.Path)
  arguments = parser.parse_args()
  if arguments.measure:
    print(json.dumps(_measure(**vars(arguments))))
    return

  results = {"model": arguments.model}
  with tempfile.TemporaryDirectory() as folder:
    for suffix in ("safetensors", "pth"):
      file = pathlib.Path(folder) / f"model.{suffix}"
      for measure in ("export", "import"):
        done = subprocess.run(
          [
            sys.executable,
            "-m",
            "tests.benchmarks.weights",
            f"--model={arguments.model}",
            f"--measure={measure}",
            f"--file={file}",
          ],
          check=True,
          capture_output=True,
          text=True,
        )
        results[f"{suffix}/{measure}"] = json.loads(done.stdout)
      results[f"{suffix}/mb"] = file.stat().st_size / 1e6
  print(json.dumps(results, indent=2))
  peaks = [r["peak_over_file"] for r in results.values() if isinstance(r, dict)]
  if max(peaks) >= _LIMIT:
    sys.exit(f"The peak must stay below {_LIMIT:g} times the file's size.")


def _measure(model: str, measure: str, file: pathlib.Path) -> dict[str, float]:
  """Returns seconds and peak growth of one operation, in this process."""
  import torch  # noqa: F401 (its own 200 MB are not the file's)

  from gc_jax import models, torch_io

  if measure == "export":
    made = models.create(model, 1_000)
  else:
    models.create("resnet8-small", 10)  # starts the device
  before = measuring.resident_bytes()
  started = time.perf_counter()
  if measure == "export":
    torch_io.save_model(file, made, torch_io.Metadata(model))
  else:
    torch_io.load_model(file)
  secs = time.perf_counter() - started
  peak = measuring.peak_bytes()
  growth = max(0, peak - before)
  return {"secs": secs, "peak_over_file": growth / file.stat().st_size}


if __name__ == "__main__":
  main()
