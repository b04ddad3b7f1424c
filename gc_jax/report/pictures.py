"""An evaluation's examples as pictures: for a page, and side by side."""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS
from gc_jax.report import overlay, plots, tables
from gc_jax.report.artefact import Evaluated, Example

_PLACES = ("top left", "top right", "bottom left", "bottom right")
_NQH = "negative_quadrants_heatmap"

_CELL_INCHES = (1.7, 1.62)  # width; height, of a square picture
_LETTER_INCHES = 0.065  # of a label, on average
_DPI = 160


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image for the page: data URI, what stands below it, and for whom."""

  uri: str
  caption: str
  alt: str


@dataclasses.dataclass(frozen=True)
class Card:
  """One example: its words and its pictures.

  `is_correct` is None for multi-label data, where another class may well be
  the first and the target be found.
  """

  target: str
  predicted: str
  is_correct: bool | None
  facts: tuple[tuple[str, str], ...]
  pictures: tuple[Picture, ...]


def card(evaluated: Evaluated, example: Example) -> Card:
  """Returns an example's image, its maps, its composite and that one's maps."""
  target = evaluated.class_name(example.target)
  shown = [_image(evaluated, example)]
  shown += [
    _map(evaluated, example, method, title_of(method))
    for method in tables.in_order(example.maps)
  ]
  if example.composite is not None:
    shown += _composite(example, target)
  return _card(evaluated, example, _scores(example), shown)


def pairs(
  evaluated: Evaluated, other: Evaluated, limit: int = 12
) -> list[Card]:
  """Returns the fixed images that both show, with the maps of both."""
  theirs = {_key(e): e for e in other.examples if e.kind == "fixed"}
  cards = []
  for example in evaluated.examples:
    before = theirs.get(_key(example))
    if example.kind != "fixed" or before is None:
      continue
    methods = [m for m in tables.in_order(example.maps) if m in before.maps]
    if not methods:
      continue
    method = methods[0]
    was, now = (_share(one, method) for one in (before, example))
    change = (0.0 if now is None else now) - (0.0 if was is None else was)
    words = f"{change:+.1f} points".replace("-", "−")
    cards.append(
      _card(
        evaluated,
        example,
        [("CH", words)],
        [
          _image(evaluated, example),
          _map(other, before, method, "Before"),
          _map(evaluated, example, method, "This run"),
        ],
      )
    )
  return cards[:limit]


def _card(evaluated, example, facts, shown) -> Card:
  is_right = example.predicted == example.target
  wrong = None if evaluated.about.multi_label else False
  return Card(
    target=evaluated.class_name(example.target),
    predicted=evaluated.class_name(example.predicted),
    is_correct=True if is_right else wrong,
    facts=(*facts, ("image", str(example.index))),
    pictures=tuple(shown),
  )


def _scores(example: Example) -> list[tuple[str, str]]:
  """Returns what was measured of the picture alone, by its first method."""
  return [
    (METRICS[metric].title, f"{next(iter(by_method.values())):.1f}%")
    for metric, by_method in example.scores.items()
    if by_method
  ]


def _share(example: Example, method: str) -> float | None:
  """Returns the percent of a map on the object; None where it is empty."""
  measured = example.scores.get("content_heatmap", {}).get(method)
  if measured is not None:
    return measured
  heat = overlay.enlarge_map(example.maps[method], *example.object_mask.shape)
  total = float(heat.sum())
  if total <= 0:
    return None
  return 100.0 * float(heat[example.object_mask].sum()) / total


def _image(evaluated: Evaluated, example: Example) -> Picture:
  target = evaluated.class_name(example.target)
  return Picture(
    overlay.compact_uri(outlined(example.image, example.object_mask)),
    "Image, object outlined",
    f"Image {example.index} of the evaluation split with its object ({target}) "
    "outlined.",
  )


def _map(
  evaluated: Evaluated, example: Example, method: str, title: str
) -> Picture:
  share = _share(example, method)
  words = "empty" if share is None else f"{share:.1f}%"
  target, by = evaluated.class_name(example.target), title_of(method)
  picture = explained(example.image, example.object_mask, example.maps[method])
  return Picture(
    overlay.compact_uri(picture),
    f"{title}: {words}",
    f"The same image with its map of {target} by {by}: {words} on the object.",
  )


def _composite(example: Example, target: str) -> list[Picture]:
  scale = overlay.display_scale(*example.composite.shape[:2])
  place = _PLACES[example.cell]
  framed = overlay.draw_frame(
    overlay.enlarge_image(example.composite, scale), example.cell
  )
  shown = [
    Picture(
      overlay.compact_uri(framed),
      "Composite, this image framed",
      f"Four images in a square, image {example.index} {place}.",
    )
  ]
  for method, cam in example.composite_maps.items():
    heat = overlay.heat_overlay(example.composite, cam, scale)
    outside = example.scores.get(_NQH, {}).get(method)
    words = "" if outside is None else f": {outside:.1f}% on the other three"
    shown.append(
      Picture(
        overlay.compact_uri(overlay.draw_frame(heat, example.cell)),
        f"Its map{words}",
        f"The same square with the map of {target} by {title_of(method)}"
        f"{words}. The framed image is {place}.",
      )
    )
  return shown


def _key(example: Example) -> tuple[int, int]:
  return example.index, example.target


def color_bar() -> str:
  """Returns the overlay's colours as a CSS gradient, low to high."""
  colormap = matplotlib.colormaps[overlay.COLORMAP]
  stops = [to_hex(colormap(position / 8)) for position in range(9)]
  return f"linear-gradient(90deg, {', '.join(stops)})"


def outlined(
  image: UInt8[np.ndarray, "H W 3"], object_mask: Bool[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the enlarged image with its object outlined."""
  scale = overlay.display_scale(*image.shape[:2])
  enlarged = overlay.enlarge_image(image, scale)
  return overlay.draw_outline(enlarged, object_mask)


def explained(
  image: UInt8[np.ndarray, "H W 3"],
  object_mask: Bool[np.ndarray, "H W"],
  cam: Float32[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the enlarged image under its map, with its object outlined."""
  scale = overlay.display_scale(*image.shape[:2])
  heat = overlay.heat_overlay(image, cam, scale)
  return overlay.draw_outline(heat, object_mask)


def explained_by(
  example: Example, method: str
) -> UInt8[np.ndarray, "sH sW 3"] | None:
  """Returns the image under its map by a method; None where it has none."""
  if method not in example.maps:
    return None
  return explained(example.image, example.object_mask, example.maps[method])


# Side by side, as in the paper's Figure 2.


@dataclasses.dataclass(frozen=True, eq=False)
class GridRow:
  """A row: what stands at its left, and its pictures; None leaves a gap."""

  label: str
  pictures: Sequence[UInt8[np.ndarray, "H W 3"] | None]


def draw_grid(
  headings: Sequence[str], rows: Sequence[GridRow], *, dpi: int = _DPI
) -> bytes:
  """Returns the pictures as one PNG, on white.

  Args:
    headings: of the columns.
    rows: at least one, a picture for each heading.
    dpi: 160 gives 270 pixels a picture.
  """
  width, height = _CELL_INCHES
  aspects = [_aspect(row) for row in rows]
  labels_inches = _LETTER_INCHES * max(len(row.label) for row in rows)
  figure = Figure(
    figsize=(
      width * len(headings) + labels_inches,
      height * sum(aspects) + 0.35,
    ),
    layout="constrained",
    facecolor="white",
    dpi=dpi,
  )
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
  axes = figure.subplots(
    len(rows), len(headings), squeeze=False, height_ratios=aspects
  )
  grid = np.asarray(axes)
  for row, cells in zip(rows, grid, strict=True):
    for axes, picture in zip(cells, row.pictures, strict=True):
      axes.set_xticks([])
      axes.set_yticks([])
      axes.spines[:].set_visible(False)
      if picture is not None:
        axes.imshow(picture, interpolation="antialiased")
    cells[0].set_ylabel(
      row.label, fontsize=9, rotation=0, ha="right", va="center"
    )
  for axes, heading in zip(grid[0], headings, strict=True):
    axes.set_title(heading.replace(", ", "\n"), fontsize=9)
  return plots.figure_png(figure, dpi)


def _aspect(row: GridRow) -> float:
  """Returns height by width of a row's pictures, within reason."""
  picture = next((p for p in row.pictures if p is not None), None)
  if picture is None:
    return 1.0
  return min(max(picture.shape[0] / picture.shape[1], 0.4), 2.5)
