"""Pictures of maps: heat over an image, outlines, frames, data URIs.

Small images are enlarged by whole factors, so that their pixels stay crisp.
"""

import base64
import io

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

DISPLAY_PX = 256  # enlarge until the shorter side is about this long
COLORMAP = "plasma"
LINE_COLOR = (0, 245, 255)  # cyan: in no part of the colormap
LINE_PX = 2  # on the screen, whatever the size of the image
PNG_LEVEL = 4  # of zlib: much sooner than its default, files little larger
_MAX_PNG_BYTES = 60_000
_MAX_ALPHA = 0.8
_BAND_PX = 256  # rows blended at a time


def display_scale(height: int, width: int) -> int:
  """Returns the whole factor by which to enlarge an image for the screen."""
  return max(1, DISPLAY_PX // min(height, width))


def enlarge_image(
  image: UInt8[np.ndarray, "H W 3"], scale: int
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Repeats every pixel `scale` times both ways."""
  return image.repeat(scale, axis=0).repeat(scale, axis=1)


def enlarge_map(
  cam: Float[np.ndarray, "h w"], height: int, width: int
) -> Float32[np.ndarray, "H W"]:
  """Enlarges a map bilinearly; cell centres at half cells, edges clamped."""
  # Pillow works in mode F (float32), without rounding.
  picture = Image.fromarray(np.asarray(cam, np.float32))
  picture = picture.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(picture)


def heat_overlay(
  image: UInt8[np.ndarray, "H W 3"],
  cam: Float[np.ndarray, "h w"],
  scale: int = 1,
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the image with the map over it, hot where the map is high.

  heat = enlarged map / its maximum, as in the paper's figures; colour and
  opacity both follow the heat, so the image shows where the map is empty.

  Args:
    image: RGB.
    cam: a map >= 0 in any unit. All zero: the image comes back bare.
    scale: whole factor of enlargement.
  """
  image = enlarge_image(image, scale)
  heat = enlarge_map(cam, *image.shape[:2])
  peak = float(heat.max())
  if peak <= 0.0:
    return image
  heat = np.clip(heat / peak, 0.0, 1.0)
  picture = np.empty_like(image)
  # In bands: a photograph's colours in floats would take a gigabyte.
  for top in range(0, len(image), _BAND_PX):
    band = slice(top, top + _BAND_PX)
    colors = matplotlib.colormaps[COLORMAP](heat[band])[..., :3] * 255.0
    alpha = _MAX_ALPHA * heat[band][..., None]
    blended = (1 - alpha) * image[band] + alpha * colors
    picture[band] = np.rint(blended).astype(np.uint8)
  return picture


def border(
  object_mask: Bool[np.ndarray, "H W"], width_px: int = 1
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels outside the mask, at most `width_px` away from it.

  Outside, so that thin objects stay visible within their outline. Away both
  ways at once: corners count.
  """
  padded = np.pad(object_mask, width_px)
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (2 * width_px + 1, 2 * width_px + 1)
  )
  return windows.any(axis=(2, 3)) & ~object_mask


def draw_outline(
  picture: UInt8[np.ndarray, "sH sW 3"],
  object_mask: Bool[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the picture with the mask's border drawn, finer than its pixels.

  Args:
    picture: the image the mask belongs to, enlarged by a whole factor.
    object_mask: at the image's own size.
  """
  scale = picture.shape[0] // object_mask.shape[0]
  enlarged = object_mask.repeat(scale, axis=0).repeat(scale, axis=1)
  picture = picture.copy()
  picture[border(enlarged, LINE_PX)] = LINE_COLOR
  return picture


def draw_frame(
  composite: UInt8[np.ndarray, "sH2 sW2 3"],
  cell: int,
  width_px: int = 2 * LINE_PX,
) -> UInt8[np.ndarray, "sH2 sW2 3"]:
  """Returns the composite with a frame inside one cell (0..3, row-major)."""
  height, width = composite.shape[0] // 2, composite.shape[1] // 2
  top, left = cell // 2 * height, cell % 2 * width
  composite = composite.copy()
  inside = composite[top : top + height, left : left + width]
  frame = np.ones((height, width), bool)
  frame[width_px:-width_px, width_px:-width_px] = False
  inside[frame] = LINE_COLOR
  return composite


def png_bytes(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
  """Returns the picture as a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, format="PNG", compress_level=PNG_LEVEL)
  return buffer.getvalue()


def read_png(png: bytes) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the picture in a PNG file, as RGB."""
  with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
    return np.asarray(picture.convert("RGB"))


def compact_uri(picture: UInt8[np.ndarray, "H W 3"]) -> str:
  """Returns the picture in a data URI: as a PNG, a photograph as a JPEG.

  For pages with a map by every method of every image: of a photograph, a JPEG
  takes a fifth. Where pixels were enlarged, PNG keeps them crisp and is small.
  """
  png = png_bytes(picture)
  if len(png) <= _MAX_PNG_BYTES:
    return as_data_uri(png)
  buffer = io.BytesIO()
  Image.fromarray(picture).save(
    buffer, format="JPEG", quality=88, subsampling=0
  )
  text = base64.b64encode(buffer.getvalue()).decode("ascii")
  return "data:image/jpeg;base64," + text


def as_data_uri(png: bytes) -> str:
  """Returns a PNG file as a data URI."""
  return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
