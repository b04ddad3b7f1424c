"""Several models beside each other: the paper's tables and its Figure 2."""

import os
from collections.abc import Sequence

from gc_jax.report import (
  describe,
  evaluated,
  evaluation_comparison,
  files,
  overlay,
  page,
  pareto,
  picture_grid,
  pictures,
  table_formats,
  tables,
)
from gc_jax.report.run import Run, load_finished_run

FILENAMES = (
  "comparison.md",
  "comparison.csv",
  "comparison.html",
  "figure.png",
  "pareto.csv",
  "pareto.png",
)
MAX_ROWS = 8  # images in the figure
_ALL_FILENAMES = {*FILENAMES, *evaluation_comparison.FILENAMES}


def compare(
  folders: Sequence[str | os.PathLike], out: str | os.PathLike
) -> tuple[list[files.AnyPath], list[str]]:
  """Writes the tables of some models, and their figures.

  Args:
    folders: finished runs, or evaluations, on the same data. Those that
      differ by seed only become one row, mean ± sample standard deviation.
    out: a folder: new, empty, or with an earlier comparison.

  Returns:
    The files written, and notes on what could not be shown.

  Raises:
    ValueError: a folder is neither, some are runs and some evaluations, their
      data differ, or `out` holds something else.
  """
  out = files.as_path(out)
  _check_out(out)
  folders = [files.as_path(folder) for folder in folders]
  names = {folder.resolve(): folder for folder in reversed(folders)}
  paths = list(dict.fromkeys(folder.resolve() for folder in folders))
  if _are_evaluations([names[path] for path in paths]):
    evaluations = [evaluated.load(names[path]) for path in paths]
    written, remarks = evaluation_comparison.make(evaluations)
  else:
    runs = [load_finished_run(names[path]) for path in paths]
    written, remarks = _compare_runs(runs)
  for name, content in written.items():
    with files.replacing(out / name) as file:
      file.write(content)
  for name in _ALL_FILENAMES - set(written):
    (out / name).unlink(missing_ok=True)  # an earlier comparison's
  return [out / name for name in written], remarks


def _are_evaluations(folders: Sequence[files.AnyPath]) -> bool:
  """Returns whether all are evaluations; a folder may be a run as well.

  Raises:
    ValueError: some are evaluations, others are not.
  """
  with_evaluation = [f for f in folders if evaluated.is_evaluation(f)]
  if len(with_evaluation) == len(folders):
    return True
  if all((f / "config.json").is_file() for f in with_evaluation):
    return False  # evaluated into their own folders, and compared as runs
  others = [str(f) for f in folders if f not in with_evaluation]
  raise ValueError(
    "Folders to compare must be all evaluations (--out of gc_jax.evaluate) or "
    "all runs (--workdir of gc_jax.main). "
    f"{', '.join(map(str, with_evaluation))}: evaluated; "
    f"{', '.join(others)}: not. Evaluate the others too, or name the runs' "
    "own folders."
  )


def _compare_runs(runs: Sequence[Run]) -> tuple[dict[str, bytes], list[str]]:
  """Returns name to content of the files, and what could not be shown."""
  describe.check_comparable(runs)
  groups = describe.group_runs(runs)
  results = {k: [run.results for run in group] for k, group in groups.items()}
  table = tables.make_table(results)
  figure, remarks = draw_figure({k: group[0] for k, group in groups.items()})
  seeds = {
    label: {str(run.workdir): run.setting("seed") for run in group}
    for label, group in groups.items()
  }
  remarks = describe.shared_seeds(seeds) + remarks
  points = pareto.points(results)
  chart = pareto.draw(points)

  written = {}
  text = table_formats.to_markdown(table)
  text += "".join(f"\n{note}\n" for note in table_formats.notes(table))
  written["comparison.md"] = text.encode()
  written["comparison.csv"] = table_formats.to_csv(table).encode()
  written["comparison.html"] = page.render(
    "comparison.html",
    data_name=describe.data_name(runs[0]),
    who="Runs",
    preface="",
    groups=[
      (
        label,
        describe.sentence(group[0], group),
        [str(r.workdir) for r in group],
      )
      for label, group in groups.items()
    ],
    tables=page.table_blocks([table]),
    charts=[] if chart is None else [chart],
    figure="" if figure is None else overlay.as_data_uri(figure),
    map_title="Element-wise Grad-CAM",
    remarks=remarks,
    color_bar=pictures.color_bar(),
  ).encode()
  if figure is not None:
    written["figure.png"] = figure
  if chart is not None:
    written["pareto.csv"] = pareto.to_csv(points).encode()
    written["pareto.png"] = chart.png
  return written, remarks


def draw_figure(
  models: dict[str, Run],
) -> tuple[bytes | None, list[str]]:
  """Returns the paper's Figure 2 as a PNG, and what is left out of it.

  A row for each image that all galleries hold as "fixed"; columns: the image
  with its object outlined, then each model's element-wise Grad-CAM.
  """
  remarks = [
    f"{label} is not in the figure: {run.workdir} has no gallery.npz."
    for label, run in models.items()
    if not run.examples
  ]
  shown = {label: run for label, run in models.items() if run.examples}
  fixed = {
    label: {(e.index, e.target): e for e in run.examples if e.kind == "fixed"}
    for label, run in shown.items()
  }
  common = [
    key
    for key in next(iter(fixed.values()), {})
    if all(key in examples for examples in fixed.values())
  ][:MAX_ROWS]
  if not common:
    remarks.append("No figure: the runs' galleries share no images.")
    return None, remarks

  first_label, first_run = next(iter(shown.items()))
  rows = []
  for key in common:
    first = fixed[first_label][key]
    cells = [pictures.outlined(first.image, first.object_mask)]
    for label in shown:
      own = fixed[label][key]
      cells.append(pictures.explained(own.image, own.object_mask, own.cam))
    rows.append(picture_grid.GridRow(first_run.class_name(first.target), cells))
  return picture_grid.draw(["Image", *shown], rows), remarks


def _check_out(out: files.AnyPath) -> None:
  """Refuses a place that holds anything but an earlier comparison."""
  if out.exists() and not out.is_dir():
    raise ValueError(
      f"--out must be a folder. {str(out)!r} is a file. Choose another name."
    )
  if not out.is_dir() or (out / "comparison.html").is_file():
    return
  others = sorted(path.name for path in out.iterdir())
  if others:
    raise ValueError(
      "--out must be a new folder, an empty one, or one with an earlier "
      f"comparison. {str(out)!r} holds {', '.join(others[:3])}"
      f"{' and more' if len(others) > 3 else ''}. Choose another folder."
    )
