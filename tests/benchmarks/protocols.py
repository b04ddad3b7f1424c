"""What each protocol says of the same maps: paper, release, corrected.

  python -m tests.benchmarks.protocols

On small archives in the exact formats of ImageNet and COCO, drawn anew, with
boxes at the border as often as ImageNet's validation pictures have them (a
fifth). The model is not trained: it is the rows that look at nothing, a uniform
map and a centred Gaussian, that tell what a protocol does. Prints JSON, and a
table in Markdown.
"""

import argparse
import json
import pathlib
import tempfile

from absl import logging

from configs import base
from gc_jax import data, models
from gc_jax.attribution import title_of
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation import summary
from gc_jax.evaluation.ledger import Ledger
from gc_jax.method.metrics import METRICS
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.runtime import parallel
from tests.data import archives

MAPS = ("gradcam_elementwise", "uniform", "center")


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--images", type=int, default=100, help="of each set")
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  found = {}
  with tempfile.TemporaryDirectory() as root:
    for name, build in BUILDERS.items():
      folder = pathlib.Path(root) / name
      folder.mkdir()
      build(folder, arguments.images)
      found[name] = measure(name, folder)
  print(json.dumps(found, indent=2))
  print(_markdown(found))


BUILDERS = {
  "imagenet": lambda folder, count: archives.build_imagenet(
    folder, count, border_frac=0.2
  ),
  "coco": lambda folder, count: archives.build_coco(
    folder, dict.fromkeys(archives.NUM_COCO, count)
  ),
}


def measure(name: str, folder: pathlib.Path) -> dict:
  """Returns map -> metric -> protocol -> percent."""
  config = base.get_config()
  config.data.name, config.data.path = name, str(folder)
  config.data.dir = str(folder / "prepared")
  config.data.eval_split = "validation"
  config.data.image_size = 64
  config.eval.shorter_side_px = 64
  config.eval.round_px = 32
  config.eval.batch_size = 16
  config.eval.num_resamples = 0
  dataset = data.load(config.data, "validation")
  mesh = parallel.make_mesh()
  model = models.create("resnet8-small", len(dataset.class_names))
  model.eval()
  model = parallel.on_all_devices(model, mesh)
  numbers: dict = {}
  for protocol in PROTOCOLS:
    config.eval.protocol = protocol
    planner = plans.Planner(model, dataset, config, mesh)
    ledger = Ledger(len(planner.pairs.index))
    plan = planner.passes(("localisation",), MAPS[:1])
    for _ in plans.run(plan, planner, ledger):
      pass
    results, _ = summary.results(
      ledger, planner.pairs, config.eval, dataset.class_names
    )
    for key, estimate in results.items():
      if key.method in MAPS and METRICS[key.metric].unit == "percent":
        of_map = numbers.setdefault(key.method, {})
        of_map.setdefault(key.metric, {})[protocol] = estimate.value
  return numbers


def _markdown(found: dict) -> str:
  """Returns a row for each map, in each cell what the protocols say."""
  metrics = [name for name in METRICS if name in found["coco"]["uniform"]]
  titles = [METRICS[name].title for name in metrics]
  lines = [
    f"| {' / '.join(PROTOCOLS)} | {' | '.join(titles)} |",
    f"|---|{'--:|' * len(metrics)}",
  ]
  for name, maps in found.items():
    for method, numbers in maps.items():
      cells = [
        " / ".join(f"{numbers[metric][p]:.1f}" for p in PROTOCOLS)
        for metric in metrics
      ]
      row = f"{data.DATASETS[name].title}, {title_of(method)}"
      lines.append(f"| {row} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
