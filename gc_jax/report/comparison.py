"""Several runs beside each other: the paper's table and its Figure 2."""

import os
import pathlib
from collections.abc import Sequence

import markupsafe

from gc_jax.report import (
  describe,
  files,
  overlay,
  page,
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
)
MAX_ROWS = 8  # images in the figure


def compare(
  workdirs: Sequence[str | os.PathLike], out: str | os.PathLike
) -> tuple[list[pathlib.Path], list[str]]:
  """Writes the table of some runs, three ways, and the figure.

  Args:
    workdirs: finished runs on the same data. Those that differ by seed only
      become one row, mean ± sample standard deviation.
    out: a folder: new, empty, or with an earlier comparison.

  Returns:
    The files written, and notes on what could not be shown.

  Raises:
    ValueError: a folder is no finished run, the runs' data differ, or `out`
      holds something else.
  """
  out = pathlib.Path(out)
  _check_out(out)
  paths = list(dict.fromkeys(pathlib.Path(w).resolve() for w in workdirs))
  names = {pathlib.Path(w).resolve(): w for w in reversed(workdirs)}
  runs = [load_finished_run(names[path]) for path in paths]
  describe.check_comparable(runs)
  groups = describe.group_runs(runs)
  table = tables.make_table(
    {label: [run.results for run in group] for label, group in groups.items()}
  )
  notes = table_formats.notes(table)
  figure, remarks = draw_figure({k: group[0] for k, group in groups.items()})

  remarks = _same_seeds(groups) + remarks

  written = {}
  text = table_formats.to_markdown(table)
  text += "".join(f"\n{note}\n" for note in notes)
  written["comparison.md"] = text.encode()
  written["comparison.csv"] = table_formats.to_csv(table).encode()
  written["comparison.html"] = page.render(
    "comparison.html",
    data_name=describe.data_name(runs[0]),
    groups=[
      (
        label,
        describe.sentence(group[0], group),
        [str(r.workdir) for r in group],
      )
      for label, group in groups.items()
    ],
    table=markupsafe.Markup(table_formats.to_html(table)),
    notes=notes,
    figure="" if figure is None else overlay.as_data_uri(figure),
    remarks=remarks,
    color_bar=pictures.color_bar(),
  ).encode()
  if figure is not None:
    written["figure.png"] = figure
  else:
    (out / "figure.png").unlink(missing_ok=True)  # an earlier comparison's
  for name, content in written.items():
    with files.replacing(out / name) as file:
      file.write(content)
  return [out / name for name in written], remarks


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


def _same_seeds(groups: dict[str, list[Run]]) -> list[str]:
  """Returns a remark on runs of one configuration that share a seed."""
  remarks = []
  for label, group in groups.items():
    seeds = [run.setting("seed") for run in group]
    if len(set(seeds)) < len(seeds):
      listed = ", ".join(
        f"{run.workdir} ({seed})"
        for run, seed in zip(group, seeds, strict=True)
      )
      remarks.append(
        f"Runs of {label} share a seed, so their ± says too little: {listed}."
      )
  return remarks


def _check_out(out: pathlib.Path) -> None:
  """Refuses a place that holds anything but an earlier comparison."""
  if out.exists() and not out.is_dir():
    raise ValueError(
      f"--out must be a folder. {str(out)!r} is a file. Choose another name."
    )
  if not out.is_dir() or (out / "comparison.csv").is_file():
    return
  others = sorted(path.name for path in out.iterdir())
  if others:
    raise ValueError(
      "--out must be a new folder, an empty one, or one with an earlier "
      f"comparison. {str(out)!r} holds {', '.join(others[:3])}"
      f"{' and more' if len(others) > 3 else ''}. Choose another folder."
    )
