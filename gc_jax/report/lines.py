"""Curves on a chart: at most six in a panel, each named at its end."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gc_jax.report.plots import PAPER, Chart, Palette, clean, drawn

MAX_LINES = 6  # of a panel: more are not told apart
_SIZE_INCHES = (4.5, 2.5)  # of a panel
_MIN_PLOT_INCHES = 2.0  # beside long names
_LETTER_INCHES = 0.072  # of a name, on average
_NAME_GAP_INCHES = 0.16  # from one name to the next
_DASHES = (
  "-",
  (0.0, (5.0, 1.5)),
  (0.0, (1.2, 1.4)),
  (0.0, (6.0, 1.5, 1.2, 1.5)),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
  """A curve. NaN breaks it; `is_control` makes it recede."""

  word: str
  x: Float[np.ndarray, " N"]
  y: Float[np.ndarray, " N"]
  is_control: bool = False


def line_chart(
  title: str,
  unit: str,
  lines: Sequence[Line],
  x_label: str,
  *,
  scale: str = "linear",
  x_scale: str = "linear",
  ticks: Mapping[float, str] | None = None,
  y_limits: tuple[float, float] | None = None,
  png: bool = False,
) -> Chart:
  """Returns a chart of some curves, each named at its end.

  More than `MAX_LINES` are parted into panels, each with all controls.

  Args:
    title: what it shows.
    unit: of y.
    lines: at least one, each with a finite point; a single one goes unnamed.
    x_label: below the axis.
    scale: of y: linear or log.
    x_scale: of x: linear, or "doubling" for 0, 1, 2, 4, 8 at equal steps.
    ticks: of x, place to word; matplotlib's own where None.
    y_limits: both ends; where the curves end if None.
    png: whether to draw it for a file as well.
  """
  parts = panels(lines)
  if len(parts) > 1 and y_limits is None:
    finite = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    margin = 0.05 * (float(np.ptp(finite)) or 1.0)
    y_limits = (float(finite.min()) - margin, float(finite.max()) + margin)

  def drawing(part: Sequence[Line]) -> Callable[[Palette], Figure]:
    return lambda palette: _line_figure(
      palette, part, unit, x_label, scale, x_scale, ticks, y_limits
    )

  return drawn(
    title,
    unit,
    [(drawing(part), _read_aloud(part, x_label)) for part in parts],
    png=png,
  )


def panels(lines: Sequence[Line]) -> list[list[Line]]:
  """Returns the lines in as few groups of `MAX_LINES` as hold them evenly."""
  if len(lines) <= MAX_LINES:
    return [list(lines)]
  controls = [line for line in lines if line.is_control]
  others = [line for line in lines if not line.is_control]
  count = -(-len(others) // (MAX_LINES - len(controls)))
  size = -(-len(others) // count)
  groups = [others[i : i + size] for i in range(0, len(others), size)]
  return [[*group, *controls] for group in groups]


def _line_figure(
  palette: Palette,
  lines: Sequence[Line],
  unit: str,
  x_label: str,
  scale: str,
  x_scale: str,
  ticks: Mapping[float, str] | None,
  y_limits: tuple[float, float] | None,
) -> Figure:
  """Returns one panel; arguments as of `line_chart`."""
  names = [line.word for line in lines] if len(lines) > 1 else []
  named_inches = max((_name_inches(name) for name in names), default=0.0)
  width, height = _SIZE_INCHES
  width = max(width, _MIN_PLOT_INCHES + named_inches + 0.64)
  left = 0.52 / width
  right = 1.0 - (named_inches + 0.12) / width
  plot_inches = (right - left) * width
  is_turned = ticks is not None and plot_inches < _LETTER_INCHES * sum(
    len(word) + 1 for word in ticks.values()
  )
  below = 0.42
  if is_turned:
    below += 0.9 * _LETTER_INCHES * max(map(len, ticks.values()))
  figure = Figure(figsize=(width, height + below - 0.42), facecolor="none")
  height = height + below - 0.42
  axes = figure.add_axes(
    (left, below / height, right - left, 1.0 - (below + 0.1) / height),
    facecolor="none",
  )
  looks = _looks(lines, palette)
  for line, (color, dash) in zip(lines, looks, strict=True):
    axes.plot(
      line.x,
      line.y,
      color=color,
      linestyle=dash,
      linewidth=1.8,
      marker="o" if len(line.x) < 15 else None,
      markersize=3.5,
    )
  axes.set_yscale(scale)
  if x_scale == "doubling":
    axes.set_xscale("symlog", base=2, linthresh=1.0, linscale=1.0)
  axes.set_xlabel(x_label)
  if palette is PAPER:  # a page says it above the chart
    axes.set_ylabel(unit)
  if y_limits is not None:
    axes.set_ylim(*y_limits)
  if ticks is not None:
    turned = 90.0 if is_turned else 0.0
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=turned)
    axes.minorticks_off()
  clean(axes, palette)
  if names:
    _name(axes, lines, [color for color, _ in looks], palette)
  return figure


def _name(
  axes: Axes,
  lines: Sequence[Line],
  colors: Sequence[str],
  palette: Palette,
) -> None:
  """Writes each line's name beside its end, moved where two would touch."""
  ends = []
  for line in lines:
    last = np.flatnonzero(np.isfinite(line.y))[-1]
    point = axes.transData.transform((line.x[last], line.y[last]))
    ends.append(axes.transAxes.inverted().transform(point))
  wanted = np.array([y for _, y in ends])
  figure = axes.get_figure()
  inches = axes.get_position().height * figure.get_size_inches()[1]
  places = _spread(wanted, gap=_NAME_GAP_INCHES / inches)
  for line, (x, y), place, color in zip(
    lines, ends, places, colors, strict=True
  ):
    axes.annotate(
      # "$" would begin a formula.
      line.word.replace("$", r"\$"),
      (x, y),
      xytext=(1.04, place),
      xycoords="axes fraction",
      textcoords="axes fraction",
      color=color,
      va="center",
      annotation_clip=False,
      arrowprops={
        "arrowstyle": "-",
        "color": palette.grid,
        "linewidth": 0.6,
        "shrinkA": 0.0,
        "shrinkB": 2.0,
      }
      if abs(place - y) > 0.01 or x < 0.9
      else None,
    )


def _spread(wanted: Float[np.ndarray, "N"], gap: float) -> np.ndarray:
  """Returns places near the wanted ones, at least `gap` apart, in order."""
  order = np.argsort(wanted, kind="stable")
  places = np.clip(wanted[order], 0.0, 1.0)
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + gap)
  places -= max(0.0, places[-1] - 1.0 - gap / 2)
  for i in range(len(places) - 2, -1, -1):
    places[i] = min(places[i], places[i + 1] - gap)
  found = np.empty_like(places)
  found[order] = places
  return found


def _name_inches(name: str) -> float:
  return _LETTER_INCHES * len(name) + 0.08


def _looks(
  lines: Sequence[Line], palette: Palette
) -> list[tuple[str, str | tuple[float, tuple[float, ...]]]]:
  """Returns colour and dashes of each line; no two models' are the same."""
  looks, models, controls = [], 0, 0
  for line in lines:
    if line.is_control:
      looks.append((palette.muted, _DASHES[2 + controls % 2]))
      controls += 1
      continue
    color = palette.series[models % len(palette.series)]
    looks.append((color, _DASHES[models % len(_DASHES)]))
    models += 1
  return looks


def _read_aloud(lines: Sequence[Line], x_label: str) -> str:
  parts = []
  for line in lines:
    kept = np.isfinite(line.y)
    x, y = line.x[kept], line.y[kept]
    parts.append(
      f"{line.word} from {y[0]:.4g} to {y[-1]:.4g} at {x_label} {x[-1]:g}"
    )
  return "; ".join(parts)
