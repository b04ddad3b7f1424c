"""Composites of few classes: every mode on 2, 4 and 10 context digits.

  python -m tests.benchmarks.few_classes --out=runs/few_classes
  python -m tests.benchmarks.few_classes --out=runs/few_classes \
    --rows ce packed_by_class --classes 2 --seeds 0

Trains what is not trained yet, one run at a time, by the quickstart's recipe;
stop it whenever you like, and run it again to continue. Prints JSON and, at the
end, a Markdown table of the rows that were asked for. Data sets of fewer digits
are registered here, as a user would; the others' digits are left out, and half
of the pictures show the photograph of their digit, as ever.
"""

import argparse
import functools
import json
import statistics
from pathlib import Path

from gc_jax import data
from gc_jax.method import compose
from gc_jax.report.logs import FILENAME, read_metrics
from tests.benchmarks import experiments, quickstart_table, step

# Number of classes -> epochs, each of 400 digits a class: 1,500 to 3,000 steps.
EPOCHS = {2: 30, 4: 20, 10: 12}
PLAIN = "ce"
ROWS = {
  PLAIN: ["--config=configs/quickstart.py:ce"],
  **{
    mode: ["--config=configs/quickstart.py:gc", f"--config.compose.mode={mode}"]
    for mode in compose.MODES
  },
}
METRICS = {
  "top1": "val/top1",
  "content_heatmap": f"{quickstart_table.METHOD}/content_heatmap",
  "negative_quadrants_heatmap": (
    f"{quickstart_table.METHOD}/negative_quadrants_heatmap"
  ),
  "train_secs": "time/train_secs",
}
NQH = "negative_quadrants_heatmap"
# gc_jax.main in a process that knows the data sets.
_MAIN = """\
import runpy
from tests.benchmarks import few_classes
few_classes.register()
runpy.run_module("gc_jax.main", run_name="__main__", alter_sys=True)
"""


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
  parser.add_argument(
    "--classes", type=int, nargs="+", choices=EPOCHS, default=list(EPOCHS)
  )
  parser.add_argument(
    "others",
    nargs="*",
    metavar="--config.FIELD=VALUE",
    help="after --, for every run; give another --out",
  )
  arguments = parser.parse_args()
  found = {
    (num_classes, row, seed): _measured(
      arguments.out / f"{num_classes}_{row}_{seed}",
      _arguments(num_classes, row, seed) + arguments.others,
    )
    for seed in arguments.seeds
    for num_classes in arguments.classes
    for row in arguments.rows
  }
  flops = _flops(arguments.out / "flops.json", arguments.rows)
  rows = [
    _row(found, num_classes, row, arguments.seeds)
    | {"flops_ratio": flops[row] / flops[PLAIN]}
    for num_classes in arguments.classes
    for row in arguments.rows
  ]
  print(json.dumps(rows, indent=2))
  print(_table(rows))


def register() -> None:
  """Makes data sets of the first digits known: context_digits_2 and so on."""
  known = data.DATASETS["context_digits"]
  for num_classes in EPOCHS:
    data.DATASETS[_name(num_classes)] = known._replace(
      title=f"context digits, the first {num_classes}",
      classes=data.Classes(num_classes, multi_label=False),
      load=_reader(num_classes),
    )


def _name(num_classes: int) -> str:
  return f"context_digits_{num_classes}"


def _reader(num_classes: int):
  @functools.cache  # TFDS knows each builder by its name, once
  def builder():
    from gc_jax.data.sets import context, context_sets

    class Digits(context_sets.ContextDigits):
      """The first handwritten digits on photographs."""

      name = _name(num_classes)
      VERSION = context_sets.ContextDigits.VERSION
      CLASS_NAMES = context_sets.ContextDigits.CLASS_NAMES[:num_classes]

      def source(self) -> context.Source:
        """Returns the digits of these classes alone."""
        every = super().source()
        return every._replace(usable=every.usable[:num_classes])

    return Digits

  def load(config_data, split):
    from gc_jax.data.sets import context

    return context.load(
      builder(),
      split,
      data_dir=config_data.dir,
      image_size=config_data.image_size,
      background_frac=config_data.background_frac,
      num_examples=(400 * num_classes, 500, 1_000),
    )

  return load


def _arguments(num_classes: int, row: str, seed: int) -> list[str]:
  epochs = EPOCHS[num_classes]
  fields = {
    "seed": seed,
    "data.name": _name(num_classes),
    "num_epochs": epochs,
    "loss.ramp_epochs": epochs / 2,  # as in the quickstart, half of them
    "report.baseline": "",
    "eval.every_epochs": 5,
    "checkpoint.every_epochs": 5,
  }
  return ROWS[row] + [f"--config.{k}={v}" for k, v in fields.items()]


def _measured(workdir: Path, arguments: list[str]) -> dict[str, float]:
  results = experiments.trained(workdir, arguments, ("-c", _MAIN))
  lines = read_metrics(workdir / FILENAME)
  masked = [
    line["train/masked_pairs_frac"]
    for line in lines
    if "train/masked_pairs_frac" in line
  ]
  return {name: results[key] for name, key in METRICS.items()} | {
    "masked_frac": statistics.mean(masked) if masked else 0.0
  }


def _row(found, num_classes: int, row: str, seeds: list[int]) -> dict:
  own = [found[num_classes, row, seed] for seed in seeds]
  result = {"classes": num_classes, "row": row} | {
    name: experiments.spread([each[name] for each in own]) for name in own[0]
  }
  if (num_classes, PLAIN, seeds[0]) in found:
    result["nqh_ratio"] = experiments.spread(
      [
        found[num_classes, row, seed][NQH]
        / found[num_classes, PLAIN, seed][NQH]
        for seed in seeds
      ]
    )
  return result


def _flops(path: Path, rows: list[str]) -> dict[str, float]:
  """Returns the compiler's count of a step of each row, kept in a file."""
  flops = json.loads(path.read_text()) if path.exists() else {}
  batch = step.make_batch(16, 64)
  for row in {PLAIN, *rows} - flops.keys():
    mode = "plain" if row == PLAIN else row
    lowered, _ = step.lower(
      "resnet8-small", "float32", mode, batch, num_classes=10
    )
    flops[row] = lowered.compile().cost_analysis()["flops"]
    path.write_text(json.dumps(flops))
  return flops


def _table(rows: list[dict]) -> str:
  percent = lambda x: f"{x['mean']:.1f} ± {x['std']:.1f}"
  titles = [
    "classes",
    "composites",
    "top-1",
    "CH",
    "NQH",
    "NQH / plain",
    "masked",
    "FLOPs / plain",
  ]
  lines = [titles, ["--:" if i != 1 else "---" for i in range(len(titles))]]
  for row in rows:
    ratio = row.get("nqh_ratio")
    lines.append(
      [
        str(row["classes"]),
        row["row"],
        percent(row["top1"]),
        percent(row["content_heatmap"]),
        percent(row[NQH]),
        f"{ratio['mean']:.2f} ± {ratio['std']:.2f}" if ratio else "",
        f"{100 * row['masked_frac']['mean']:.0f}",
        f"{row['flops_ratio']:.2f}",
      ]
    )
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
  main()
