"""The first hour of a new user: every command, how long it takes, how silent.

  python -m tests.benchmarks.first_hour --out=runs/first_hour

Makes a folder of 193 photographs in four classes, in the formats and sizes that
people have, from pictures inside Python packages. Then trains on them from
scratch and from ImageNet's weights, explains, evaluates, compares and exports,
each command as a user gives it. Prints, of each, the seconds to its first line,
its longest silence, its whole time and the time of all cores, as a table and as
JSON. Needs tests/requirements.txt. On a machine that does other work, the time
of all cores tells best what an idle one would take.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image

ROOT = pathlib.Path(__file__).parents[2]

# class -> its photographs, "package:file".
SOURCES = {
  "animals": (
    "foolbox:data/imagenet_00_243.jpg",
    "foolbox:data/imagenet_15_99.jpg",
    "foolbox:data/imagenet_16_251.jpg",
    "foolbox:data/imagenet_17_22.jpg",
    "foolbox:data/imagenet_18_317.jpg",
    "foolbox:data/imagenet_19_305.jpg",
    "skimage:data/chelsea.png",
  ),
  "buildings": (
    "foolbox:data/imagenet_05_853.jpg",
    "foolbox:data/imagenet_08_915.jpg",
    "foolbox:data/imagenet_12_741.jpg",
    "skimage:data/brick.png",
  ),
  "plants and food": (
    "foolbox:data/imagenet_03_990.jpg",
    "foolbox:data/imagenet_04_949.jpg",
    "skimage:data/coffee.png",
    "skimage:data/grass.png",
  ),
  "vehicles": (
    "foolbox:data/imagenet_06_609.jpg",
    "foolbox:data/imagenet_07_609.jpg",
    "foolbox:data/imagenet_13_471.jpg",
    "skimage:data/motorcycle_left.png",
    "skimage:data/rocket.jpg",
  ),
}
COUNTS = {"train": 153, "val": 40}
# Part of a photograph's width that a split sees; none in two.
PARTS = {"train": (0.0, 0.62), "val": (0.62, 1.0)}
# Longer sides in pixels; a picture of 1,600 is a phone's, more or less.
SIDES = (120, 200, 320, 480, 800, 1600)
ORIENTATION = 0x0112  # EXIF's tag
TURNED = 6  # stored lying on its side


def make_pictures(folder: pathlib.Path) -> None:
  """Writes folder/SPLIT/CLASS/*: crops of photographs, none in two splits."""
  generator = np.random.default_rng(0)
  for split, count in COUNTS.items():
    for i in range(count):
      name = list(SOURCES)[i % len(SOURCES)]
      sources = SOURCES[name]
      source = sources[i // len(SOURCES) % len(sources)]
      crop = _crop(source, PARTS[split], generator)
      path = folder / split / name / f"{pathlib.Path(source).stem}_{i:03}"
      path.parent.mkdir(parents=True, exist_ok=True)
      _save(crop, path, i)


def _crop(
  source: str, part: tuple[float, float], generator: np.random.Generator
) -> PIL.Image.Image:
  """Returns a random part of what a split sees of a photograph."""
  package, _, file = source.partition(":")
  spec = importlib.util.find_spec(package)  # foolbox must not be imported
  with PIL.Image.open(pathlib.Path(spec.origin).parent / file) as image:
    image = image.convert("RGB")
  left, right = (round(edge * image.width) for edge in part)
  width = round((right - left) * generator.uniform(0.7, 1))
  height = round(image.height * generator.uniform(0.6, 1))
  x = int(generator.integers(left, right - width + 1))
  y = int(generator.integers(image.height - height + 1))
  crop = image.crop((x, y, x + width, y + height))
  scale = SIDES[int(generator.integers(len(SIDES)))] / max(crop.size)
  return crop.resize([max(1, round(side * scale)) for side in crop.size])


def _save(image: PIL.Image.Image, path: pathlib.Path, i: int) -> None:
  """Writes a picture: of ten, four JPEGs, one of them turned by EXIF alone."""
  kind = i // len(SOURCES) % 10
  if kind == 3:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = TURNED
    turned = image.transpose(PIL.Image.Transpose.ROTATE_90)
    turned.save(path.with_suffix(".jpg"), exif=exif)
  elif kind in (4, 5):
    image.save(path.with_suffix(".png"))
  elif kind in (6, 7):
    image.save(path.with_suffix(".webp"))
  elif kind == 8:
    image.convert("L").save(path.with_suffix(".jpeg"))
  elif kind == 9:
    image.quantize(64).save(path.with_suffix(".PNG"))
  else:
    image.save(path.with_suffix(".JPG"))


def commands(out: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
  """Yields a name and a command for each step of the hour."""
  pictures = out / "pictures"
  data = f"--config.data.path={pictures}"
  photo = next((pictures / "val" / "animals").iterdir())
  scratch, finetuned = out / "scratch", out / "finetuned"
  recipe = "--config=configs/folder.py:small"
  yield (
    "main, from scratch",
    [*("gc_jax.main", recipe, f"--workdir={scratch}", data)],
  )
  yield (
    "main, fine-tuned",
    [*("gc_jax.main", f"{recipe},finetune", f"--workdir={finetuned}", data)],
  )
  yield (
    "explain, own model",
    [
      *("gc_jax.explain", f"{pictures / 'val' / 'vehicles'}"),
      *(f"--workdir={finetuned}", f"--out={out / 'seen'}"),
    ],
  )
  yield (
    "explain, ImageNet",
    [
      *("gc_jax.explain", f"{photo}", "--checkpoint=imagenet:squeezenet1_1"),
      *("--target=golden retriever", f"--out={out / 'seen_imagenet'}"),
    ],
  )
  yield (
    "evaluate",
    [
      *("gc_jax.evaluate", f"--workdir={finetuned}"),
      f"--out={out / 'evaluated'}",
    ],
  )
  yield (
    "compare",
    [
      *("gc_jax.compare", f"{scratch}", f"{finetuned}"),
      f"--out={out / 'comparison'}",
    ],
  )
  yield (
    "export --verify",
    [
      *("gc_jax.export", f"--workdir={finetuned}", "--verify"),
      f"--out={out / 'exported.safetensors'}",
    ],
  )


@dataclasses.dataclass
class Timed:
  """What a user sees of a command, in seconds."""

  command: str
  exit_status: int
  first_line_secs: float
  longest_silence_secs: float
  silent_after: str  # the line before that silence; "" if the command's start
  secs: float
  cpu_secs: float  # of all cores


def timed(arguments: list[str], log: pathlib.Path) -> Timed:
  """Runs a command, and notes when it writes anything, not by a terminal."""
  cpu_secs, started = _cpu_secs(), time.perf_counter()
  last = started
  process = subprocess.Popen(
    [sys.executable, "-m", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    cwd=ROOT,
  )
  first, longest, written, after = 0.0, 0.0, b"", b""
  with log.open("wb", buffering=0) as file:
    while True:
      piece = os.read(process.stdout.fileno(), 1 << 16)
      now = time.perf_counter()
      if now - last > longest:
        longest, after = now - last, written
      first = first or now - started
      last = now
      if not piece:
        break
      written += piece
      file.write(piece)
  lines = after.decode(errors="replace").splitlines()
  return Timed(
    command=shlex.join(["python", "-m", *arguments]),
    exit_status=process.wait(),
    first_line_secs=round(first, 1),
    longest_silence_secs=round(longest, 1),
    silent_after=lines[-1] if lines else "",
    secs=round(time.perf_counter() - started, 1),
    cpu_secs=round(_cpu_secs() - cpu_secs, 1),
  )


def _cpu_secs() -> float:
  """Returns what processes that this one waited for have used."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument(
    "--only", nargs="+", default=[], help="beginnings of names of steps"
  )
  arguments = parser.parse_args()
  out = arguments.out.absolute()
  if not (out / "pictures").exists():
    make_pictures(out / "pictures")
  steps = {}
  for name, command in commands(out):
    if arguments.only and not name.startswith(tuple(arguments.only)):
      continue
    done = steps[name] = timed(command, out / f"{name}.log")
    print(f"{name}: {done.secs} s, exit {done.exit_status}", file=sys.stderr)
  total = round(sum(done.secs for done in steps.values()), 1)
  print("| command | first line | longest silence | in all | of all cores |")
  print("|---|--:|--:|--:|--:|")
  for name, done in steps.items():
    cells = done.first_line_secs, done.longest_silence_secs, done.secs
    cells = [f"{secs:.1f} s" for secs in (*cells, done.cpu_secs)]
    print(f"| {name} | {' | '.join(cells)} |")
  cpu_secs = sum(done.cpu_secs for done in steps.values())
  print(f"| all | | | {total / 60:.1f} min | {cpu_secs / 60:.1f} min |")
  found = {
    "cores": os.cpu_count(),
    "load": os.getloadavg(),
    "secs": total,
    "steps": {name: dataclasses.asdict(done) for name, done in steps.items()},
  }
  text = json.dumps(found, indent=2)
  (out / "first_hour.json").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  main()
