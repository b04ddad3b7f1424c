"""Several evaluations beside each other: the paper's tables over models."""

from collections.abc import Mapping, Sequence

from gc_jax.report import (
  describe,
  describe_evaluated,
  evaluation_charts,
  evaluation_page,
  evaluation_rows,
  evaluation_tables,
  overlay,
  page,
  pareto,
  picture_grid,
  pictures,
)
from gc_jax.report.evaluated import Evaluated

FILENAMES = (
  "tables.md",
  "tables.csv",
  "tables.tex",
  "comparison.html",
  "pareto.csv",
  "pareto.png",
  "robustness.png",
  "figure.png",
)
MAX_ROWS = 8  # images in the figure


def make(
  evaluations: Sequence[Evaluated],
) -> tuple[dict[str, bytes], list[str]]:
  """Returns name to content of the files, and what could not be shown.

  Raises:
    ValueError: the evaluations did not measure the same thing alike.
  """
  describe_evaluated.check_comparable(evaluations)
  models = describe_evaluated.group(evaluations)
  firsts = {label: members[0] for label, members in models.items()}
  about = evaluations[0].about
  protocol = describe_evaluated.protocol(about)
  made = evaluation_tables.make_tables(models)
  points = pareto.points(
    {label: [e.results for e in members] for label, members in models.items()}
  )
  chart = pareto.draw(points)
  robustness = evaluation_charts.robustness_chart(firsts)
  figure, method, remarks = _figure(firsts)
  seeds = {
    label: {str(e.folder): e.about.config.get("seed") for e in members}
    for label, members in models.items()
  }
  remarks = describe.shared_seeds(seeds) + remarks

  written = evaluation_page.tables_files(made, protocol)
  written["comparison.html"] = page.render(
    "comparison.html",
    data_name=describe.data_title(about.data_name),
    who="Evaluations",
    preface=protocol,
    groups=[
      (
        label,
        describe_evaluated.sentence(members[0].about),
        [str(evaluated.folder) for evaluated in members],
      )
      for label, members in models.items()
    ],
    tables=page.table_blocks(made),
    charts=[] if chart is None else [chart],
    robustness=robustness,
    figure="" if figure is None else overlay.as_data_uri(figure),
    map_title=evaluation_rows.title_of(method),
    remarks=remarks,
    color_bar=pictures.color_bar(),
  ).encode()
  if chart is not None:
    written["pareto.csv"] = pareto.to_csv(points).encode()
    written["pareto.png"] = chart.png
  if robustness is not None:
    written["robustness.png"] = robustness.png
  if figure is not None:
    written["figure.png"] = figure
  return written, remarks


def _figure(
  models: Mapping[str, Evaluated],
) -> tuple[bytes | None, str, list[str]]:
  """Returns the paper's Figure 2 over models, whose maps, and remarks.

  A row for each image that all evaluations show; columns: the image with its
  object outlined, then each model's map by the first method all have.
  """
  examples = {
    label: {(e.index, e.target): e for e in evaluated.examples}
    for label, evaluated in models.items()
  }
  first = next(iter(models.values()))
  own = next(iter(examples.values()))
  common = [k for k in own if all(k in shown for shown in examples.values())]
  methods = [
    method
    for method in evaluation_charts.shown_methods(list(own.values()))
    if common
    and all(
      method in shown[k].maps for shown in examples.values() for k in common
    )
  ]
  if not methods:
    return None, "", ["No figure: the evaluations share no images and maps."]
  rows = []
  for key in common[:MAX_ROWS]:
    cells = [pictures.outlined(own[key].image, own[key].object_mask)]
    cells += [
      evaluation_charts.explained(shown[key], methods[0])
      for shown in examples.values()
    ]
    name = describe_evaluated.class_name(first, own[key].target)
    rows.append(picture_grid.GridRow(name, cells))
  return picture_grid.draw(["Image", *models], rows), methods[0], []
