"""Times the data pipeline against bare decoders, and weighs what it keeps.

  taskset -c 0,1 python -m tests.benchmarks.pipeline

JPEGs of 500x375 are decoded, cropped (the same random boxes) and resized to
224: by each decoder alone in as many threads as there are cores, and by
`train_batches`. All are timed in turns, so that a noisy machine is noisy for
all; ratios, the median over rounds, are what to read. Then: the memory of the
process over 20,000 pictures, and how long a step of the quickstart waits for
its batch.
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import numpy as np
import PIL.Image
import simplejpeg

from configs import quickstart
from gc_jax import data, models
from gc_jax.data import pipeline
from gc_jax.data.augment import draw_crop
from gc_jax.data.sets import folder
from gc_jax.runtime import parallel
from gc_jax.training import build
from gc_jax.training.step import make_train_step
from tests.benchmarks import measuring
from tests.data import photos

WIDTH, HEIGHT, SIDE = 500, 375, 224


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--images", type=int, default=512, help="a round")
  parser.add_argument("--memory_images", type=int, default=20_000)
  parser.add_argument("--steps", type=int, default=100)
  arguments = parser.parse_args()
  cores = len(os.sched_getaffinity(0))
  result = {"cores": cores, **vars(arguments)}
  with tempfile.TemporaryDirectory() as root:
    dataset = _folder(pathlib.Path(root))
    result["throughput"] = _throughput(dataset, arguments, cores)
    result["memory"] = _memory(dataset, arguments.memory_images)
  result["quickstart"] = _quickstart(arguments.steps)
  print(json.dumps(result, indent=2))


def _folder(root: pathlib.Path) -> data.Dataset:
  """Writes 96 crops of photographs, a class for each photograph."""
  for name in photos.NAMES:
    folder_of_class = root / "pictures" / "train" / name.split(".")[0]
    folder_of_class.mkdir(parents=True)
    image = photos.load(name, (WIDTH + 16, HEIGHT + 16))
    for i in range(16):
      part = image.crop((i, i, i + WIDTH, i + HEIGHT))
      encoded = photos.encode(part, quality=90)
      (folder_of_class / f"{i}.jpg").write_bytes(encoded)
  return folder.load(
    "train", path=str(root / "pictures"), data_dir=root / "tfds"
  )


def _batches(dataset: data.Dataset):
  return pipeline.train_batches(
    dataset,
    seed=0,
    start_step=0,
    batch_size=32,
    image_size=SIDE,
    crop="random_resized",
    flip=True,
  )


def _pillow(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray:
  left, top, width, height = box
  image = PIL.Image.open(io.BytesIO(encoded))
  share = SIDE / min(width, height)
  image.draft(None, (round(share * WIDTH), round(share * HEIGHT)))
  scale = round(WIDTH / image.width)
  box = left, top, left + width, top + height
  image = image.crop(tuple(edge // scale for edge in box))
  size = SIDE, SIDE
  return np.asarray(image.resize(size, PIL.Image.Resampling.BILINEAR))


def _cut(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
  scale = round(WIDTH / pixels.shape[1])
  left, top, width, height = (side // scale for side in box)
  part = pixels[top : top + height, left : left + width]
  return cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def _opencv(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray:
  half = min(box[2:]) >= 2 * SIDE
  flag = cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR
  return _cut(cv2.imdecode(np.frombuffer(encoded, np.uint8), flag), box)


def _simplejpeg(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray:
  scale = 2 if min(box[2:]) >= 2 * SIDE else 1
  pixels = simplejpeg.decode_jpeg(
    encoded,
    "RGB",
    min_width=-(-WIDTH // scale),
    min_height=-(-HEIGHT // scale),
  )
  return _cut(pixels, box)


DECODERS = {"pillow": _pillow, "opencv": _opencv, "simplejpeg": _simplejpeg}


def _throughput(
  dataset: data.Dataset, arguments: argparse.Namespace, cores: int
) -> dict:
  encoded = [record["image"] for record in dataset.source]
  generator = np.random.default_rng(0)
  work = [
    (encoded[i % len(encoded)], draw_crop(WIDTH, HEIGHT, generator))
    for i in range(arguments.images)
  ]
  batches = _batches(dataset)
  rates = {name: [] for name in (*DECODERS, "train_batches")}
  with ThreadPoolExecutor(cores) as threads:
    for _ in range(arguments.rounds + 1):
      for name, decode in DECODERS.items():
        started = time.perf_counter()
        # One task a thread: tasks of one picture would measure the queue.
        shares = [work[i::cores] for i in range(cores)]
        run = lambda share, decode=decode: [decode(*item) for item in share]
        list(threads.map(run, shares))
        rates[name].append(len(work) / (time.perf_counter() - started))
      # What lies ready was made while the others were timed; and what is half
      # done at the end must be so at the start.
      for _ in range(3 * pipeline.READ_OPTIONS.prefetch_buffer_size):
        next(batches)
      started = time.perf_counter()
      for _ in range(arguments.images // 32):
        next(batches)
      secs = time.perf_counter() - started
      rates["train_batches"].append(arguments.images // 32 * 32 / secs)

  # The first round warms up.
  rates = {name: values[1:] for name, values in rates.items()}
  # One decoder for all rounds: the luckiest of each would be chance.
  fastest = max(DECODERS, key=lambda name: statistics.median(rates[name]))
  ratios = [
    ours / bare
    for ours, bare in zip(rates["train_batches"], rates[fastest], strict=True)
  ]
  return {
    "images_per_sec": {
      k: round(statistics.median(v)) for k, v in rates.items()
    },
    "fastest_decoder": fastest,
    "ratio_to_fastest_decoder": statistics.median(ratios),
    "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
  }


def _memory(dataset: data.Dataset, num_images: int) -> dict:
  batches = itertools.islice(_batches(dataset), num_images // 32)
  resident_mb = []
  for i, _ in enumerate(batches):
    if i % max(1, num_images // 32 // 10) == 0:
      resident_mb.append(round(measuring.resident_bytes() / 1e6, 1))
  # The first tenth fills buffers.
  growth = resident_mb[-1] - resident_mb[1]
  return {"resident_mb": resident_mb, "growth_mb": round(growth, 1)}


def _quickstart(num_steps: int) -> dict:
  """Trains as the quickstart does, but waits for every step to end.

  The time that the loop then waits for a batch is time without work.
  """
  config = quickstart.get_config()
  mesh = parallel.make_mesh()
  train_set = data.load(config.data, config.data.train_split)
  steps_per_epoch = len(train_set.source) // config.batch_size
  num_classes = len(train_set.class_names)
  tx = build.optimizer(config, steps_per_epoch)
  with jax.set_mesh(mesh):
    graphdef, state = build.create_state(
      lambda key: models.create(config.model.name, num_classes, key=key),
      tx,
      parallel.replicated(mesh),
      models.init_key(0),
    )
    train_step = make_train_step(
      config,
      graphdef,
      tx,
      num_classes=num_classes,
      num_devices=mesh.size,
      steps_per_epoch=steps_per_epoch,
    )
    train_step = jax.jit(train_step, donate_argnums=0)
    batches = parallel.to_devices_ahead(
      pipeline.train_batches(
        train_set,
        seed=0,
        start_step=0,
        batch_size=config.batch_size,
        image_size=config.data.image_size,
      ),
      mesh,
    )
    waiting = working = 0.0
    for step in range(num_steps + 5):
      started = time.perf_counter()
      batch = next(batches)
      waited = time.perf_counter()
      state, _ = jax.block_until_ready(train_step(state, batch))
      if step >= 5:  # compilation, and filling the buffers
        waiting += waited - started
        working += time.perf_counter() - waited
    batches.close()
  return {
    "secs_per_step": working / num_steps,
    "waiting_frac": waiting / (waiting + working),
  }


if __name__ == "__main__":
  main()
