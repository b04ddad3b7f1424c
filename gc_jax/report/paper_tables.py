"""The numbers of the paper's Tables 1-6, as data.

Pillai and Pirsiavash, "Explainable Models with Consistent Interpretations",
AAAI 2021. Two things about them are not known, and no number should be tuned
to: which variant of Grad-CAM a cell of Tables 1 and 2 is of, where the two
differ (AlexNet, and everything with global max pooling); and the unit of
Table 6's epsilon.
"""

import dataclasses
from collections.abc import Mapping

from gc_jax.method.metrics import EPSILONS
from gc_jax.report.tables import Cell

IMAGENET, COCO = "imagenet", "coco"  # keys of `DATASETS`
MODELS = ("Baseline", "GC", "GMP", "GMP+GC")  # as the paper names them
# Which Grad-CAM a row is of, beside the names of methods:
EITHER = "either"  # global average pooling: the two variants coincide
UNKNOWN = "unknown"  # they differ, and the paper does not say


@dataclasses.dataclass(frozen=True)
class PaperRow:
  """One model of a table.

  Attributes:
    architecture: a key of `gc_jax.MODELS`, without its pooling.
    model: one of `MODELS`.
    method: the explanation's name, `EITHER` or `UNKNOWN`; "" in Table 6.
    cells: metric to number. Table 5's are of `VARIANTS`, by `variant`, Table
      6's of `metrics.EPSILONS`, as text.
  """

  architecture: str
  model: str
  method: str
  cells: Mapping[str, Cell]


@dataclasses.dataclass(frozen=True)
class PaperTable:
  """A table of the paper.

  Attributes:
    number: 1 to 6.
    data_name: the data set measured on.
    caption: what it shows, in our words.
    rows: from top to bottom.
    caveat: what is not known, or doubtful, about its numbers; or "".
  """

  number: int
  data_name: str
  caption: str
  rows: tuple[PaperRow, ...]
  caveat: str = ""


_PG, _SPG = "pointing_game", "stochastic_pointing_game"
_CH, _NQH = "content_heatmap", "negative_quadrants_heatmap"
_TOP1, _F1 = ("top1",), ("f1_per_class", "f1_overall")


def _row(
  architecture: str,
  model: str,
  method: str,
  names: tuple[str, ...],
  *numbers: float | tuple[float, float],
) -> PaperRow:
  """Returns a row; a pair of numbers is a mean and its std over five runs."""
  cells = {}
  for name, number in zip(names, numbers, strict=True):
    mean, std = number if isinstance(number, tuple) else (number, None)
    cells[name] = Cell(mean=float(mean), std=None, sampling_std=std, num_runs=1)
  return PaperRow(architecture, model, method, cells)


def _gradcam(
  accuracies: tuple[str, ...],
  architecture: str,
  model: str,
  *numbers: float | tuple[float, float],
) -> PaperRow:
  pooled = architecture.startswith("resnet") and "GMP" not in model
  names = (*accuracies, _PG, _SPG, _CH, _NQH)
  method = EITHER if pooled else UNKNOWN
  return _row(architecture, model, method, names, *numbers)


def _transfer(
  method: str, model: str, *numbers: float | tuple[float, float]
) -> PaperRow:
  names = (_PG, _SPG, _CH, _NQH)
  return _row("resnet18", model, method, names, *numbers)


_VARIANT = (
  "Which variant of Grad-CAM the paper's numbers are of is not certain where "
  "the two differ (AlexNet, global max pooling): its text says element-wise, "
  "the authors' programs used either."
)
_NEAR_UNIFORM = (
  "The paper's NQH here is near 75, what a uniform map scores: do not tune "
  "to it."
)
_EPSILONS = tuple(map(str, EPSILONS))
# Of Table 5: metrics, each by both variants of Grad-CAM.
VARIANTS = tuple(
  (metric, method)
  for metric in (_PG, _CH)
  for method in ("gradcam", "gradcam_elementwise")
)


def variant(metric: str, method: str) -> str:
  """Returns the name of one of `VARIANTS` among a row's cells."""
  return f"{metric} {method}"


_BOTH = tuple(variant(*both) for both in VARIANTS)

TABLES = {
  1: PaperTable(
    1,
    IMAGENET,
    "Grad-CAM on the ImageNet validation set",
    (
      _gradcam(
        _TOP1, "alexnet", "Baseline", 56.51, 72.80, (53.45, 0.02), 45.78, 43.53
      ),
      _gradcam(
        _TOP1, "alexnet", "GC", 56.16, 73.70, (61.15, 0.01), 48.10, 33.94
      ),
      _gradcam(
        _TOP1, "resnet18", "Baseline", 69.43, 79.80, (60.50, 0.01), 54.36, 24.35
      ),
      _gradcam(
        _TOP1, "resnet18", "GC", 67.74, 80.00, (65.85, 0.01), 57.73, 7.62
      ),
      _gradcam(
        _TOP1, "resnet18", "GMP", 69.08, 79.30, (66.66, 0.01), 62.89, 38.96
      ),
      _gradcam(
        _TOP1, "resnet18", "GMP+GC", 69.02, 79.60, (68.74, 0.01), 65.35, 31.15
      ),
      _gradcam(
        _TOP1, "resnet50", "Baseline", 76.13, 80.0, (60.95, 0.00), 54.78, 21.48
      ),
      _gradcam(
        _TOP1, "resnet50", "GC", 74.40, 80.30, (65.26, 0.00), 59.42, 7.43
      ),
      _gradcam(
        _TOP1, "resnet50", "GMP", 74.63, 79.80, (66.29, 0.00), 54.23, 33.91
      ),
      _gradcam(
        _TOP1, "resnet50", "GMP+GC", 74.14, 79.60, (69.51, 0.00), 59.70, 21.30
      ),
    ),
    _VARIANT + " AlexNet's PG and CH equal Table 5's standard Grad-CAM.",
  ),
  2: PaperTable(
    2,
    COCO,
    "Grad-CAM on the MS-COCO validation set",
    (
      _gradcam(
        _F1,
        "resnet18",
        "Baseline",
        *(59.81, 67.56, 61.50, (43.25, 0.01), 29.15, 29.27),
      ),
      _gradcam(
        _F1,
        "resnet18",
        "GC",
        *(61.50, 68.59, 63.80, (44.26, 0.00), 29.95, 28.35),
      ),
      _gradcam(
        _F1,
        "resnet18",
        "GMP",
        *(61.19, 68.41, 63.10, (45.62, 0.01), 33.97, 41.09),
      ),
      _gradcam(
        _F1,
        "resnet18",
        "GMP+GC",
        *(61.99, 68.93, 66.10, (46.88, 0.01), 35.16, 40.17),
      ),
    ),
    _VARIANT,
  ),
  3: PaperTable(
    3,
    COCO,
    "contrastive excitation backprop (cMWP) on the MS-COCO validation set",
    (
      _transfer("cmwp", "Baseline", 63.30, (45.68, 0.00), 32.23, 74.89),
      _transfer("cmwp", "GC", 65.60, (48.54, 0.01), 34.44, 74.90),
      _transfer("cmwp", "GMP", 63.80, (51.21, 0.01), 37.54, 75.21),
      _transfer("cmwp", "GMP+GC", 65.60, (52.22, 0.01), 38.17, 74.86),
    ),
    _NEAR_UNIFORM,
  ),
  4: PaperTable(
    4,
    COCO,
    "FullGrad on the MS-COCO validation set",
    (
      _transfer("fullgrad", "Baseline", 59.90, (18.99, 0.00), 13.38, 73.83),
      _transfer("fullgrad", "GC", 64.90, (19.46, 0.00), 13.71, 73.46),
      _transfer("fullgrad", "GMP", 66.50, (27.09, 0.01), 19.14, 68.64),
      _transfer("fullgrad", "GMP+GC", 68.70, (27.18, 0.00), 19.14, 68.49),
    ),
    _NEAR_UNIFORM,
  ),
  5: PaperTable(
    5,
    IMAGENET,
    "standard against element-wise Grad-CAM on the ImageNet validation set",
    (
      _row("alexnet", "Baseline", "", _BOTH, 72.8, 74.0, 45.78, 46.79),
      _row("alexnet", "GC", "", _BOTH, 73.7, 76.6, 48.10, 55.20),
    ),
  ),
  6: PaperTable(
    6,
    IMAGENET,
    "accuracy under adversarial attack (FGSM)",
    (
      _row(
        "resnet50",
        "Baseline",
        "",
        _EPSILONS,
        *(3.11, 2.98, 2.95, 2.89, 2.30, 1.06),
      ),
      _row(
        "resnet50", "GMP", "", _EPSILONS, *(6.27, 6.20, 6.23, 5.99, 4.81, 1.95)
      ),
      _row(
        "resnet50",
        "GMP+GC",
        "",
        _EPSILONS,
        *(8.08, 7.93, 7.96, 7.88, 6.63, 2.71),
      ),
    ),
    "The paper gives no unit of epsilon, nor how pixels were clipped: its "
    "numbers stand here to be seen, not to be met.",
  ),
}
