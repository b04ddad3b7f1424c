"""Several models beside each other: the paper's tables and its Figure 2.

With a chart of accuracy against content heatmap, a point for each model.
"""

import json
import os
from collections.abc import Mapping, Sequence

from gc_jax.attribution import title_of
from gc_jax.report import (
  cards,
  cautions,
  charts,
  describe,
  differences,
  formats,
  page,
  paper,
  pareto,
  pictures,
)
from gc_jax.report.artefact import Evaluated, load_finished
from gc_jax.report.tables import (
  Models,
  first,
  in_order,
  measured,
  overview,
)
from gc_jax.runtime import files

FILENAMES = (
  *("comparison.md", "comparison.csv", "comparison.html", "figure.png"),
  *("tables.md", "tables.csv", "tables.tex"),
  *("pareto.csv", "pareto.png", "robustness.png", "differences.json"),
)
_MAX_ROWS = 8  # images in the figure


def compare(
  folders: Sequence[str | os.PathLike], out: str | os.PathLike
) -> tuple[list[files.AnyPath], list[str]]:
  """Writes the tables of some models, and their figures.

  Args:
    folders: finished runs and evaluations, on the same data.
    out: a folder: new, empty, or with an earlier comparison.

  Returns:
    The files written, and remarks on what could not be shown.

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
  describe.check_comparable(evaluations)
  contents, remarks = _contents(describe.group(evaluations))
  written = page.write_files(out, contents, FILENAMES)
  return written, remarks


def _contents(models: Models) -> tuple[dict[str, bytes], list[str]]:
  """Returns name to content of the files, and what could not be shown."""
  firsts = {label: members[0] for label, members in models.items()}
  about = first(models).about
  protocol = describe.protocols([one.about for one in firsts.values()])
  method = page.headline_method(first(models))
  wanted = differences.from_first(models, method)
  groups = [
    [overview(models), overview(models, interval=True)],
    paper.make_layouts(models),
    measured(models),
  ]
  tested = differences.settle(models, groups, wanted)
  (glance, with_intervals), layouts, full = tested.groups
  differing = differences.table(models, [method], tested.found)
  differing = [] if differing is None else [differing]
  points = pareto.points(models)
  chart = pareto.chart(points)
  robustness = charts.robustness_chart(firsts)
  figure, shown, map_method, missing = _figure(firsts)
  remarks = [
    *describe.shared_seeds(models),
    *cautions.differing_methods(models).values(),
    *differences.remarks(models, tested.whys),
    *missing,
  ]
  glance_words, full_words = formats.for_page(
    [[with_intervals, *differing], [*layouts, *full]]
  )

  html = formats.render(
    "comparison.html",
    data_name=describe.data_title(about),
    preface=protocol,
    groups=[
      (
        label,
        describe.sentence(
          members[0].about, [member.about for member in members]
        ),
        [str(member.folder) for member in members],
        _cautions(members),
      )
      for label, members in models.items()
    ],
    glance=glance_words,
    tables=full_words,
    chart=chart,
    robustness=robustness,
    cards=shown,
    class_names=next(
      (one.class_names for one in firsts.values() if one.class_names), []
    ),
    map_title=title_of(map_method),
    remarks=remarks,
    color_bar=pictures.color_bar(),
    scaling=pictures.SCALING,
  )
  contents = {
    "comparison.md": formats.to_markdown(glance, *differing).encode(),
    "comparison.csv": formats.to_csv(glance).encode(),
    **formats.to_files([*layouts, glance, *full, *differing], protocol),
    "comparison.html": html.encode(),
  }
  if figure is not None:
    contents["figure.png"] = figure
  if differing:
    told: dict[str, dict] = {}
    for sides in wanted:
      if one := tested.found.get(sides):
        key = sides[0].key
        told.setdefault(sides[0].label, {})[key.name] = one._asdict() | {
          "verdict": one.verdict(key.metric)
        }
    contents["differences.json"] = json.dumps(told, indent=2).encode()
  if chart is not None:
    contents["pareto.csv"] = pareto.to_csv(points).encode()
    contents["pareto.png"] = chart.png
  if robustness is not None:
    contents["robustness.png"] = robustness.png
  return contents, remarks


def _cautions(members: Sequence[Evaluated]) -> list[str]:
  """Returns what makes a model's numbers mean less, each once."""
  said = [sentence for one in members for sentence in cautions.cautions(one)]
  return list(dict.fromkeys(said))


def _figure(
  models: Mapping[str, Evaluated],
) -> tuple[bytes | None, list[cards.Card], str, list[str]]:
  """Returns the paper's Figure 2 over models, as a picture and as cards.

  And the method shown, and remarks.

  A row for each image that all galleries hold as "fixed"; columns: the image
  with its object outlined, then each model's map by the first method all have.
  """
  remarks = [
    f"{label} is not in the figure: {evaluated.folder} has no gallery."
    for label, evaluated in models.items()
    if not evaluated.examples
  ]
  shown = {
    label: {
      (e.index, e.target): e for e in evaluated.examples if e.kind == "fixed"
    }
    for label, evaluated in models.items()
    if evaluated.examples
  }
  own = next(iter(shown.values()), {})
  common = [k for k in own if all(k in by_key for by_key in shown.values())]
  methods = [
    method
    for method in in_order(m for k in common for m in own[k].maps)
    if all(
      method in by_key[k].maps for by_key in shown.values() for k in common
    )
  ]
  if not methods:
    remarks.append("No figure: the galleries share no images and maps.")
    return None, [], "", remarks
  named = next(one for one in models.values() if one.examples)
  rows, found = [], []
  for key in common[:_MAX_ROWS]:
    examples = {label: by_key[key] for label, by_key in shown.items()}
    cells = [pictures.outlined(own[key])]
    cells += [
      pictures.explained(one, one.maps[methods[0]]) for one in examples.values()
    ]
    rows.append((named.class_name(own[key].target), cells))
    found.append(cards.beside(named, examples, methods[0]))
  figure = pictures.draw_grid(["Image", *shown], rows)
  return figure, found, methods[0], remarks


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
