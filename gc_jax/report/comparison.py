"""Several models beside each other: the paper's tables and its Figure 2."""

import os
from collections.abc import Mapping, Sequence

from gc_jax import data
from gc_jax.attribution import title_of
from gc_jax.report import (
  charts,
  describe,
  formats,
  overlay,
  page,
  pareto,
  pictures,
  tables,
)
from gc_jax.report.artefact import Evaluated, load_finished
from gc_jax.runtime import files

FILENAMES = (
  "comparison.md",
  "comparison.csv",
  "tables.md",
  "tables.csv",
  "tables.tex",
  "comparison.html",
  "figure.png",
  "pareto.csv",
  "pareto.png",
  "robustness.png",
)
MAX_ROWS = 8  # images in the figure


def compare(
  folders: Sequence[str | os.PathLike], out: str | os.PathLike
) -> tuple[list[files.AnyPath], list[str]]:
  """Writes the tables of some models, and their figures.

  Args:
    folders: finished runs and evaluations, on the same data. Those that differ
      by seed only become one row, mean ± sample standard deviation.
    out: a folder: new, empty, or with an earlier comparison.

  Returns:
    The files written, and notes on what could not be shown.

  Raises:
    ValueError: a folder is neither, their data or settings differ, or `out`
      holds something else.
  """
  out = files.as_path(out)
  _check_out(out)
  names: dict[files.AnyPath, files.AnyPath] = {}
  for folder in map(files.as_path, folders):
    names.setdefault(folder.resolve(), folder)  # as named, each once
  evaluations = [load_finished(folder) for folder in names.values()]
  written, remarks = _contents(evaluations)
  for name, content in written.items():
    with files.replacing(out / name) as file:
      file.write(content)
  for name in set(FILENAMES) - set(written):
    (out / name).unlink(missing_ok=True)  # an earlier comparison's
  return [out / name for name in written], remarks


def _contents(
  evaluations: Sequence[Evaluated],
) -> tuple[dict[str, bytes], list[str]]:
  """Returns name to content of the files, and what could not be shown.

  Raises:
    ValueError: the evaluations did not measure the same thing alike.
  """
  describe.check_comparable(evaluations)
  models = describe.group(evaluations)
  firsts = {label: members[0] for label, members in models.items()}
  about = evaluations[0].about
  protocol = describe.protocol(about)
  glance, made = tables.overview(models), page.make_tables(models)
  points = pareto.points(models)
  chart = pareto.draw(points)
  robustness = charts.robustness_chart(firsts)
  figure, method, remarks = draw_figure(firsts)
  remarks = describe.shared_seeds(models) + remarks

  text = formats.to_markdown(glance)
  text += "".join(f"\n{note}\n" for note in formats.notes(glance))
  written = {
    "comparison.md": text.encode(),
    "comparison.csv": formats.to_csv(glance).encode(),
    **page.tables_files(made, protocol),
  }
  written["comparison.html"] = page.render(
    "comparison.html",
    data_name=data.title(about.data_name),
    preface=protocol,
    groups=[
      (
        label,
        describe.sentence(
          members[0].about, [member.about for member in members]
        ),
        [str(member.folder) for member in members],
      )
      for label, members in models.items()
    ],
    tables=page.table_blocks([glance, *made]),
    charts=[] if chart is None else [chart],
    robustness=robustness,
    figure="" if figure is None else overlay.as_data_uri(figure),
    map_title=title_of(method),
    remarks=remarks,
    color_bar=pictures.color_bar(),
  ).encode()
  if figure is not None:
    written["figure.png"] = figure
  if chart is not None:
    written["pareto.csv"] = pareto.to_csv(points).encode()
    written["pareto.png"] = chart.png
  if robustness is not None:
    written["robustness.png"] = robustness.png
  return written, remarks


def draw_figure(
  models: Mapping[str, Evaluated],
) -> tuple[bytes | None, str, list[str]]:
  """Returns the paper's Figure 2 over models, whose maps, and remarks.

  A row for each image that all galleries hold as "fixed"; columns: the image
  with its object outlined, then each model's map by the first method all have.
  """
  remarks = [
    f"{label} is not in the figure: {evaluated.folder} has no gallery."
    for label, evaluated in models.items()
    if not evaluated.examples
  ]
  fixed = {
    label: {
      (e.index, e.target): e for e in evaluated.examples if e.kind == "fixed"
    }
    for label, evaluated in models.items()
    if evaluated.examples
  }
  own = next(iter(fixed.values()), {})
  common = [k for k in own if all(k in shown for shown in fixed.values())]
  methods = [
    method
    for method in tables.in_order(m for k in common for m in own[k].maps)
    if all(method in shown[k].maps for shown in fixed.values() for k in common)
  ]
  if not methods:
    remarks.append("No figure: the galleries share no images and maps.")
    return None, "", remarks
  first = next(one for one in models.values() if one.examples)
  rows = []
  for key in common[:MAX_ROWS]:
    cells = [pictures.outlined(own[key].image, own[key].object_mask)]
    cells += [
      pictures.explained_by(shown[key], methods[0]) for shown in fixed.values()
    ]
    name = first.class_name(own[key].target)
    rows.append(pictures.GridRow(name, cells))
  return pictures.draw_grid(["Image", *fixed], rows), methods[0], remarks


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
