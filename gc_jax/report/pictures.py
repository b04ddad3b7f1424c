"""The gallery's examples as pictures ready for a page."""

import dataclasses

import matplotlib
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from matplotlib.colors import to_hex

from gc_jax.report import overlay
from gc_jax.report.gallery import GalleryExample
from gc_jax.report.run import Run


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


def card(run: Run, example: GalleryExample) -> Card:
  """Returns an example's image, map, composite and the composite's map."""
  target = run.class_name(example.target)
  ch = f"{example.content_heatmap:.1f}%"
  nqh = f"{example.negative_quadrants_heatmap:.1f}%"
  scale = overlay.display_scale(*example.composite.shape[:2])
  framed = overlay.draw_frame(
    overlay.enlarge_image(example.composite, scale), example.cell
  )
  composite_heat = overlay.heat_overlay(
    example.composite, example.composite_cam, scale
  )
  composite_heat = overlay.draw_frame(composite_heat, example.cell)
  place = ("top left", "top right", "bottom left", "bottom right")[example.cell]
  return Card(
    target=target,
    predicted=run.class_name(example.predicted),
    is_correct=_is_correct(run, example),
    facts=(("CH", ch), ("NQH", nqh), ("image", str(example.index))),
    pictures=(
      _image(run, example, "Image, object outlined"),
      _heat(run, example, f"Map of “{target}”: {ch} on the object"),
      Picture(
        overlay.data_uri(framed),
        "Composite, this image framed",
        f"Four images in a square, image {example.index} {place}.",
      ),
      Picture(
        overlay.data_uri(composite_heat),
        f"Its map: {nqh} on the other three",
        f"The same square with the Grad-CAM map of {target}: {nqh} of it "
        f"lies outside the framed image, {place}.",
      ),
    ),
  )


def pairs(run: Run, other: Run, limit: int = 12) -> list[Card]:
  """Returns the fixed images both runs show, with both runs' maps."""
  theirs = {_key(e): e for e in other.examples if e.kind == "fixed"}
  cards = []
  for example in run.examples:
    before = theirs.get(_key(example))
    if example.kind != "fixed" or before is None:
      continue
    change = example.content_heatmap - before.content_heatmap
    cards.append(
      Card(
        target=run.class_name(example.target),
        predicted=run.class_name(example.predicted),
        is_correct=_is_correct(run, example),
        facts=(
          ("CH", f"{change:+.1f} points".replace("-", "−")),
          ("image", str(example.index)),
        ),
        pictures=(
          _image(run, example, "Image, object outlined"),
          _heat(other, before, f"Before: CH {before.content_heatmap:.1f}"),
          _heat(run, example, f"This run: CH {example.content_heatmap:.1f}"),
        ),
      )
    )
  return cards[:limit]


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


def _is_correct(run: Run, example: GalleryExample) -> bool | None:
  if example.predicted == example.target:
    return True
  return None if "val/f1_overall" in run.results else False


def _image(run: Run, example: GalleryExample, caption: str) -> Picture:
  alt = (
    f"Image {example.index} of the evaluation split with its object "
    f"({run.class_name(example.target)}) outlined."
  )
  return Picture(
    overlay.data_uri(outlined(example.image, example.object_mask)), caption, alt
  )


def _heat(run: Run, example: GalleryExample, caption: str) -> Picture:
  alt = (
    f"The same image with the Grad-CAM map of "
    f"{run.class_name(example.target)}: {example.content_heatmap:.1f}% of "
    "the map lies on the object."
  )
  picture = explained(example.image, example.object_mask, example.cam)
  return Picture(overlay.data_uri(picture), caption, alt)


def _key(example: GalleryExample) -> tuple[int, int]:
  return example.index, example.target
