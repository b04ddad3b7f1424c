"""Compares the numbers of two evaluations or runs, to the last digit.

  python -m tests.benchmarks.same_numbers BEFORE AFTER [--but=time/ ...]

BEFORE and AFTER are folders, or results.json themselves. Printed as JSON: how
many keys both have, which are in one alone, and where values differ. Exit
status 1 if any value differs; a key in one alone is no difference.
"""

import argparse
import json
import pathlib
import sys


def main() -> int:
  """Runs what the arguments say; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("before", type=pathlib.Path)
  parser.add_argument("after", type=pathlib.Path)
  parser.add_argument(
    "--but", nargs="*", default=["time/"], help="keys that begin so may differ"
  )
  arguments = parser.parse_args()
  before, after = map(_read, (arguments.before, arguments.after))
  both = [
    key
    for key in sorted(before.keys() & after.keys())
    if not key.startswith(tuple(arguments.but))
  ]
  differing = {
    key: [before[key], after[key]] for key in both if before[key] != after[key]
  }
  found = {
    "compared": len(both),
    "only_before": sorted(before.keys() - after.keys()),
    "only_after": sorted(after.keys() - before.keys()),
    "differing": differing,
  }
  print(json.dumps(found, indent=2))
  return 1 if differing or not both else 0


def _read(path: pathlib.Path) -> dict:
  """Returns results.json, with the numbers by class where there are any."""
  if path.is_file():
    return json.loads(path.read_text())
  found = json.loads((path / "results.json").read_text())
  for name in ("per_class", "curves"):
    file = path / f"{name}.json"
    if file.is_file():
      found |= _flat(json.loads(file.read_text()), name)
  return found


def _flat(value, name: str) -> dict:
  if not isinstance(value, dict):
    return {name: value}
  flat = {}
  for key, inner in value.items():
    flat |= _flat(inner, f"{name}/{key}")
  return flat


if __name__ == "__main__":
  sys.exit(main())
