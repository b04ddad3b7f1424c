"""The paper's Tables 1-6: its numbers, and ours laid out like them.

Pillai and Pirsiavash, "Explainable Models with Consistent Interpretations",
AAAI 2021. Two facts about its numbers are unknown, so tune nothing to them:
which variant of Grad-CAM a row of Tables 1 and 2 is of where the two differ
(AlexNet, global max pooling), and the unit of epsilon in Table 6.

A layout stands where the data set is its own, for any model: what was not
measured stays empty and is named in a note. The paper's rows stand beside ours
where architecture and pooling are the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from gc_jax import data
from gc_jax.attribution import CONTROLS, title_of
from gc_jax.method.metrics import EPSILONS, METRICS
from gc_jax.models import without_gmp
from gc_jax.report import cautions, describe, tables
from gc_jax.report.tables import Cell, Column, Models, Row, Table

# Which Grad-CAM a row is of, beside the names of methods:
EITHER = "either"  # global average pooling: the two variants coincide
UNKNOWN = "unknown"  # they differ, and the paper does not say

_MAPS = (
  "pointing_game",
  "stochastic_pointing_game",
  "content_heatmap",
  "negative_quadrants_heatmap",
)
_GRADCAMS = ("gradcam_elementwise", "gradcam")
# The columns of Table 5: two metrics, each by both variants of Grad-CAM.
VARIANTS = {
  f"{metric} {method}": (metric, method)
  for metric in ("pointing_game", "content_heatmap")
  for method in ("gradcam", "gradcam_elementwise")
}
_VARIANT = (
  "Which variant of Grad-CAM the paper's numbers are of is not certain where "
  "the two differ (AlexNet, global max pooling): its text says element-wise, "
  "the authors' programs used either."
)
_NEAR_UNIFORM = (
  "The paper's NQH here is near 75, what a uniform map scores: do not tune "
  "to it."
)
_OF_ATTACKS = (
  "ε is in 1/255. Ours: untargeted, away from the ground truth, within ε of "
  "every pixel in [0, 1] and clipped there. FGSM's step of the whole ε may "
  "lead too far: “any step up to ε” counts a decision as right if it is so "
  "without an attack and at every measured ε up to this one. PGD stands "
  "beside them because a maximum may only hide gradients from a single step."
)


@dataclasses.dataclass(frozen=True)
class PaperTable:
  """A table of the paper."""

  data_name: str  # measured on
  caption: str  # in our words
  columns: tuple[str, ...]  # metrics; in Table 5 `VARIANTS`, in 6 epsilons
  # A line for each model: architecture, the paper's name, a number for each
  # column; ± is the standard deviation over five runs.
  numbers: str
  methods: tuple[str, ...] = ()  # whose maps we measure for it
  caveat: str = ""  # what is unknown or doubtful about its numbers

  def rows(self) -> dict[tuple[str, str], dict[str, Cell]]:
    """Returns (architecture, model) -> column -> number."""
    rows = {}
    for line in self.numbers.strip().splitlines():
      architecture, model, *numbers = line.split()
      cells = {}
      for column, number in zip(self.columns, numbers, strict=True):
        mean, _, std = number.partition("±")
        cells[column] = Cell(
          float(mean), sampling_std=float(std) if std else None
        )
      rows[architecture, model] = cells
    return rows

  def method(self, architecture: str, model: str) -> str:
    """Returns the method of a row, `EITHER` or `UNKNOWN`; "" for none."""
    if len(self.methods) < 2:
      return "".join(self.methods)
    averages = architecture.startswith("resnet") and "GMP" not in model
    return EITHER if averages else UNKNOWN


TABLES = {
  1: PaperTable(
    "imagenet",
    "Grad-CAM on the ImageNet validation set",
    ("top1", *_MAPS),
    """
    alexnet   Baseline  56.51  72.80  53.45±0.02  45.78  43.53
    alexnet   GC        56.16  73.70  61.15±0.01  48.10  33.94
    resnet18  Baseline  69.43  79.80  60.50±0.01  54.36  24.35
    resnet18  GC        67.74  80.00  65.85±0.01  57.73   7.62
    resnet18  GMP       69.08  79.30  66.66±0.01  62.89  38.96
    resnet18  GMP+GC    69.02  79.60  68.74±0.01  65.35  31.15
    resnet50  Baseline  76.13  80.0   60.95±0.00  54.78  21.48
    resnet50  GC        74.40  80.30  65.26±0.00  59.42   7.43
    resnet50  GMP       74.63  79.80  66.29±0.00  54.23  33.91
    resnet50  GMP+GC    74.14  79.60  69.51±0.00  59.70  21.30
    """,
    _GRADCAMS,
    _VARIANT + " AlexNet's PG and CH equal Table 5's standard Grad-CAM.",
  ),
  2: PaperTable(
    "coco",
    "Grad-CAM on the MS-COCO validation set",
    ("f1_per_class", "f1_overall", *_MAPS),
    """
    resnet18  Baseline  59.81  67.56  61.50  43.25±0.01  29.15  29.27
    resnet18  GC        61.50  68.59  63.80  44.26±0.00  29.95  28.35
    resnet18  GMP       61.19  68.41  63.10  45.62±0.01  33.97  41.09
    resnet18  GMP+GC    61.99  68.93  66.10  46.88±0.01  35.16  40.17
    """,
    _GRADCAMS,
    _VARIANT,
  ),
  3: PaperTable(
    "coco",
    "contrastive excitation backprop (cMWP) on the MS-COCO validation set",
    _MAPS,
    """
    resnet18  Baseline  63.30  45.68±0.00  32.23  74.89
    resnet18  GC        65.60  48.54±0.01  34.44  74.90
    resnet18  GMP       63.80  51.21±0.01  37.54  75.21
    resnet18  GMP+GC    65.60  52.22±0.01  38.17  74.86
    """,
    ("cmwp",),
    _NEAR_UNIFORM,
  ),
  4: PaperTable(
    "coco",
    "FullGrad on the MS-COCO validation set",
    _MAPS,
    """
    resnet18  Baseline  59.90  18.99±0.00  13.38  73.83
    resnet18  GC        64.90  19.46±0.00  13.71  73.46
    resnet18  GMP       66.50  27.09±0.01  19.14  68.64
    resnet18  GMP+GC    68.70  27.18±0.00  19.14  68.49
    """,
    ("fullgrad",),
    _NEAR_UNIFORM,
  ),
  5: PaperTable(
    "imagenet",
    "standard against element-wise Grad-CAM on the ImageNet validation set",
    tuple(VARIANTS),
    """
    alexnet  Baseline  72.8  74.0  45.78  46.79
    alexnet  GC        73.7  76.6  48.10  55.20
    """,
  ),
  6: PaperTable(
    "imagenet",
    "accuracy under adversarial attack (FGSM)",
    tuple(map(str, EPSILONS)),
    """
    resnet50  Baseline  3.11  2.98  2.95  2.89  2.30  1.06
    resnet50  GMP       6.27  6.20  6.23  5.99  4.81  1.95
    resnet50  GMP+GC    8.08  7.93  7.96  7.88  6.63  2.71
    """,
    caveat="The paper gives no unit of epsilon, nor how pixels were clipped: "
    "its numbers stand here to be seen, not to be met.",
  ),
}


def make_layouts(
  models: Models, stands_for: Mapping[str, str] | None = None
) -> list[Table]:
  """Returns the paper's tables of this data set, none of any other.

  Tables without a number of ours are left out, unless every question was asked.

  Args:
    models: as for `tables.overview`.
    stands_for: architecture to that of the paper whose rows go beside it; the
      data set then stands for ImageNet, or for COCO where a picture shows
      several classes, and for both but in Tables 1 and 2.
  """
  about = tables.first(models).about
  data_name = about.data_name
  if stands_for is not None:
    data_name = "coco" if about.multi_label else "imagenet"
  made = [
    _laid_out(models, number, stands_for)
    for number, paper in TABLES.items()
    if paper.data_name == data_name
    or (stands_for is not None and paper.methods != _GRADCAMS)
  ]
  asked = {q for group in models.values() for q in group[0].about.questions}
  return [table for table in made if "attacks" in asked or _has_numbers(table)]


def _has_numbers(table: Table) -> bool:
  """Returns whether anything but clean accuracy was measured of a model."""
  clean = {
    column.key
    for column in table.columns
    if not column.is_of_maps and column.epsilon is None
  }
  return any(
    row.cells.keys() - clean for row in table.rows if row.kind == "model"
  )


def _variants(models: Models) -> tuple[list[Column], list[Row]]:
  """Returns Table 5: both variants of Grad-CAM beside each other."""
  columns = []
  for key, (metric, method) in VARIANTS.items():
    is_plain = method == "gradcam"
    words = "GCAM" if is_plain else "element-wise"
    columns.append(
      tables.column(
        metric,
        2,
        key=key,
        title=f"{METRICS[metric].title}, {words}",
        meaning=METRICS[metric].meaning if is_plain else "",  # told once
        method=method,
      )
    )
  rows = [
    tables.make_row(label, "", members, columns)
    for label, members in models.items()
  ]
  for control in CONTROLS:  # which know no variant: one number under both
    rows += tables.method_rows(models, control, columns)
  return columns, rows


def _laid_out(
  models: Models, number: int, stands_for: Mapping[str, str] | None
) -> Table:
  """Returns a table, the paper's rows before the controls, with notes."""
  paper = TABLES[number]
  if number == 5:
    columns, rows = _variants(models)
  elif number == 6:
    columns = tables.attack_columns(models, 2, EPSILONS)
    rows = tables.attack_rows(models, columns)
  else:
    columns = [tables.column(name, decimals=2) for name in paper.columns]
    rows = [
      row
      for method in (*paper.methods, *CONTROLS)
      for row in tables.method_rows(models, method, columns)
    ]
  own = [row for row in rows if not row.is_control]
  controls = [row for row in rows if row.is_control]
  quoted = _paper_rows(models, number, stands_for)
  laid_out = f"Laid out as the paper's Table {number}, {paper.caption}"
  if not quoted:
    laid_out += "; it has no row of such a model, so none stands here"
  notes = [f"{laid_out}."]
  if lacking := cautions.without_objects(tables.first(models)):
    columns = [c for c in columns if not METRICS[c.metric].needs_objects]
    notes.append(lacking)
  notes += _unmeasured(rows, columns)
  notes += tables.costly_notes(models, rows, columns)
  if number == 6:
    notes.append(_OF_ATTACKS)
  if quoted and paper.caveat:
    notes.append(paper.caveat)
  what = paper.caption.partition(" on the ")[0]
  on = data.title(paper.data_name)
  if stands_for is not None:
    notes.append(
      f"The paper's rows are of {on}, and of the architecture that ours stands "
      "for: see whether rows differ alike, not how high they are."
    )
    on = describe.data_title(tables.first(models).about)
  title = f"{what}, {on}"
  ordered = [*own, *quoted, *controls]
  return Table(columns, ordered, title, notes, number=number)


def _paper_rows(
  models: Models, number: int, stands_for: Mapping[str, str] | None
) -> list[Row]:
  """Returns the paper's rows that ours compare with, in its order."""
  paper = TABLES[number]
  abouts = [members[0].about for members in models.values()]
  wanted = {
    ((stands_for or {}).get(architecture, architecture), name)
    for about in abouts
    if about.data_name == paper.data_name or stands_for is not None
    for architecture in [without_gmp(about.architecture)]
    for name in describe.paper_names(about)
  }
  titles = {
    EITHER: "Grad-CAM, both variants",
    UNKNOWN: "Grad-CAM, variant uncertain",
    "": "FGSM, ε without unit" if number == 6 else "as headed",
  }
  rows = []
  for (architecture, model), cells in paper.rows().items():
    if (architecture, model) in wanted:
      title = describe.architecture_title(architecture)
      method = paper.method(architecture, model)
      rows.append(
        Row(
          f"paper: {title} {model}",
          method,
          cells,
          title=titles.get(method, title_of(method)),
          is_reference=True,
        )
      )
  return rows


def _unmeasured(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
  """Returns a sentence that names the empty cells, if there are any."""
  labels: dict[str, list[str]] = {}  # method -> models
  missing: dict[str, dict[str, list[str]]] = {}  # method -> heading -> models
  for row in rows:
    method = row.title or title_of(row.method)
    labels.setdefault(method, []).append(row.label)
    for column in columns:
      # A control classifies nothing.
      expected = column.is_of_maps or not row.is_control
      if expected and column.key not in row.cells:
        headings = missing.setdefault(method, {})
        headings.setdefault(column.title, []).append(row.label)
  parts = []
  for method, headings in missing.items():
    words = [
      heading + ("" if of == labels[method] else f" of {' and '.join(of)}")
      for heading, of in headings.items()
    ]
    all_of_it = words == [column.title for column in columns]
    listed = "everything" if all_of_it else ", ".join(words)
    parts.append(f"{method}: {listed}" if method else listed)
  return [f"Not measured, and so empty: {'; '.join(parts)}."] if parts else []
