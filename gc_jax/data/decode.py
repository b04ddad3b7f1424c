"""Encoded pictures of any kind, read as upright RGB; or why they cannot be.

Two ways lead to pixels. `whole` is Pillow's, exact, for evaluation. `crop`
decodes a JPEG at the smallest scale that suffices (simplejpeg) and resizes it
with a small filter (OpenCV): twice as fast, and less than a grey level off on
average (500x375 to 224), for training.

What is not RGB of 8 bits: grey is repeated, 16 bits are scaled to 8, CMYK is
read as Adobe writes it, transparent pixels are put on white, an animation is
its first frame. EXIF's orientation is applied; masks and boxes of a record
are in the stored frame, and are turned along (`turned`).
"""

import dataclasses
import io
import math

import cv2
import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageOps
import simplejpeg
from jaxtyping import UInt8

# Pictures are decoded in memory: 4 bytes a pixel, 0.7 GB at this size. JPEGs
# take a fraction of it, as they are decoded at a smaller scale.
MAX_PIXELS = 180_000_000

# Scaled decoding before an exact resize: where the picture stays this much
# larger than it will be, no pixel differs by more than one level (measured;
# at 4 times they differ by up to 4, at 2 times by 15).
EXACT_REDUCTION = 8

# Blurring below this takes a twentieth of the time and mends half a level.
_ALIASING = 1.75

_JPEG_SCALES = (8, 4, 2)  # those that simplejpeg decodes faster than whole

_TURNS = {
  2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
  3: PIL.Image.Transpose.ROTATE_180,
  4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
  5: PIL.Image.Transpose.TRANSPOSE,
  6: PIL.Image.Transpose.ROTATE_270,
  7: PIL.Image.Transpose.TRANSVERSE,
  8: PIL.Image.Transpose.ROTATE_90,
}
_SWAP_AXES = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_KEYWORDS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

# A batch is made by one thread, and several batches at a time.
cv2.setNumThreads(0)
# Pillow's own limit is half of ours, and a warning.
PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class DecodeError(ValueError):
  """A picture cannot be read; says why, and which where that is known."""


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of an encoded picture before its pixels are decoded.

  Attributes:
    encoded: the bytes.
    stored_size: (width, height) as stored.
    turn: how the stored frame is put upright; None where it is.
    is_plain_jpeg: whether it is a JPEG of colours or grey, to be decoded by
      whatever is fastest.
  """

  encoded: bytes
  stored_size: tuple[int, int]
  turn: PIL.Image.Transpose | None
  is_plain_jpeg: bool

  @property
  def size(self) -> tuple[int, int]:
    """(width, height), upright."""
    width, height = self.stored_size
    swaps = self.turn is not None and self.turn in _SWAP_AXES
    return (height, width) if swaps else (width, height)

  def open(self) -> PIL.Image.Image:
    """Returns the picture as Pillow opens it, not decoded."""
    return PIL.Image.open(io.BytesIO(self.encoded))


def read_header(encoded: bytes) -> Header:
  """Returns size, orientation and kind, without decoding.

  Raises:
    DecodeError: if this is no picture, or one of more than `MAX_PIXELS`.
  """
  if not encoded:
    raise DecodeError("it is empty (0 bytes)")
  header = _plain_jpeg_header(encoded) or _pillow_header(encoded)
  width, height = header.stored_size
  if width * height > MAX_PIXELS:
    raise DecodeError(
      f"it has {width}x{height} pixels and must have at most {MAX_PIXELS:,}, "
      "so that it fits into memory; make it smaller"
    )
  return header


def _plain_jpeg_header(encoded: bytes) -> Header | None:
  """Returns what Pillow would in a tenth of its time; None: ask Pillow."""
  if _has_exif(encoded):
    return None  # it may be turned
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(encoded)
  except ValueError:
    return None
  plain = space in ("YCbCr", "Gray", "RGB")
  return Header(encoded, (width, height), None, True) if plain else None


def _has_exif(encoded: bytes) -> bool:
  """Returns whether a segment before the picture proper holds EXIF."""
  at = 2
  # APP0 to APP15, each with its length in two bytes.
  while encoded[at : at + 1] == b"\xff" and 0xE0 <= encoded[at + 1] <= 0xEF:
    if encoded[at + 4 : at + 8] == b"Exif":
      return True
    at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
  return False


def _pillow_header(encoded: bytes) -> Header:
  try:
    image = PIL.Image.open(io.BytesIO(encoded))
    turn = None
    # Of a PNG, Pillow decodes the pixels to see what is behind them.
    if image.format != "PNG" or _png_has_exif(encoded):
      turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION))
  except PIL.UnidentifiedImageError as error:
    raise DecodeError(
      f"it is no picture: its {len(encoded):,} bytes start with "
      f"{bytes(encoded[:12])!r}"
    ) from error
  except PIL.Image.DecompressionBombError as error:
    raise DecodeError(f"{error}; make it smaller") from error
  except Exception as error:  # parsers of broken files raise what they like
    raise DecodeError(f"{type(error).__name__}: {error}") from error
  plain = image.format == "JPEG" and image.mode in ("RGB", "L")
  return Header(encoded, image.size, turn, plain)


def _png_has_exif(encoded: bytes) -> bool:
  """Returns whether a chunk holds EXIF, or texts that Pillow reads like it."""
  at = len(_PNG_SIGNATURE)
  # Each chunk: its length in four bytes, its name in four, itself, a checksum.
  while name := encoded[at + 4 : at + 8]:
    length = int.from_bytes(encoded[at : at + 4], "big")
    if name == b"eXIf" or encoded.startswith(_EXIF_KEYWORDS, at + 8):
      return True
    at += 12 + length
  return False


def whole(
  header: Header, shorter_side_px: int | None = None
) -> PIL.Image.Image:
  """Returns the decoded picture, upright RGB.

  Args:
    header: from `read_header`.
    shorter_side_px: of the picture that will be made of it. A JPEG more than
      `EXACT_REDUCTION` times as large may come at a smaller scale.

  Raises:
    DecodeError: if it is truncated or otherwise broken.
  """
  image = header.open()
  if shorter_side_px is not None:
    share = EXACT_REDUCTION * shorter_side_px / min(image.size)
    if share < 1:
      image.draft(None, tuple(round(share * side) for side in image.size))
  return turned(_rgb(_loaded(image)), header.turn)


def mask(header: Header) -> PIL.Image.Image:
  """Returns the picture as a mask, mode L: what is transparent is outside.

  Raises:
    DecodeError: if it is truncated or otherwise broken.
  """
  image = _loaded(header.open())
  if not image.has_transparency_data:
    return turned(_rgb(image).convert("L"), header.turn)
  image = image.convert("RGBA")
  opacity = image.getchannel("A")
  levels = PIL.ImageChops.multiply(image.convert("RGB").convert("L"), opacity)
  return turned(levels, header.turn)


def crop(
  header: Header,
  box: tuple[int, int, int, int],
  out: UInt8[np.ndarray, "S S 3"],
) -> None:
  """Writes a part of the picture, as a square, into `out`, quickly.

  Args:
    header: from `read_header`.
    box: (left, top, width, height) of the part, in pixels, upright.
    out: contiguous; its side is that of the result.

  Raises:
    DecodeError: if it is truncated or otherwise broken.
  """
  left, top, width, height = box
  enlarged = min(width, height) / len(out)
  scale = next((s for s in _JPEG_SCALES if s <= enlarged), 1)
  pixels = _decode_jpeg(header, scale)
  if pixels is None:
    image = header.open()
    image.draft(None, tuple(-(-side // scale) for side in image.size))
    pixels = np.asarray(turned(_rgb(_loaded(image)), header.turn))
  # Whole pixels of the scaled picture: a corner moves outwards by less than
  # one pixel of the result.
  scale = round(header.size[0] / pixels.shape[1])
  x0, x1 = left // scale, -(-(left + width) // scale)
  y0, y1 = top // scale, -(-(top + height) // scale)
  _resize(pixels[y0:y1, x0:x1], out)


def _resize(pixels: np.ndarray, out: np.ndarray) -> None:
  """Scales to the size of `out`: bilinear, blurred where that would alias.

  An exact filter for shrinking s times is a triangle s pixels to either side;
  interpolation alone is one of 1. Three taps [a, 1 - 2a, a] before it, with
  a = (s^2 - 1) / 12, give the two together the same variance, up to s = 2.
  """
  size = out.shape[1::-1]  # OpenCV names the width first
  shrinks = [side / len(out) for side in pixels.shape[:2]]
  if max(shrinks) > _ALIASING:
    sigma_y, sigma_x = (_sigma(shrink) for shrink in shrinks)
    pixels = cv2.GaussianBlur(
      pixels, (3, 3), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
    )
  cv2.resize(pixels, size, dst=out, interpolation=cv2.INTER_LINEAR)


def _sigma(shrink: float) -> float:
  """Returns the width of a Gaussian with the taps that `_resize` says."""
  outer = max(1e-4, (min(shrink, 2.0) ** 2 - 1) / 12)
  return math.sqrt(0.5 / math.log((1 - 2 * outer) / outer))


def turned(
  image: PIL.Image.Image, turn: PIL.Image.Transpose | None
) -> PIL.Image.Image:
  """Returns an image of the stored frame put upright."""
  return image if turn is None else image.transpose(turn)


def _decode_jpeg(header: Header, scale: int) -> np.ndarray | None:
  """Returns the stored frame at 1/scale; None where Pillow must look."""
  if header.turn is not None or not header.is_plain_jpeg:
    return None
  width, height = header.stored_size
  try:
    return simplejpeg.decode_jpeg(
      header.encoded,
      "RGB",
      fastupsample=True,  # of the two coarser channels
      min_height=-(-height // scale),
      min_width=-(-width // scale),
    )
  except ValueError:
    # It stops at what Pillow passes over (stray bytes between segments), and
    # Pillow tells a truncated file from those.
    return None


def _loaded(image: PIL.Image.Image) -> PIL.Image.Image:
  try:
    image.load()
  except Exception as error:  # broken files raise whatever a parser meets
    reason = str(error) or type(error).__name__
    raise DecodeError(f"it is broken: {reason}") from error
  return image


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  if image.mode == "RGB":
    return image
  if image.mode.startswith("I;16"):
    levels = np.asarray(image).astype(np.float32) / 257  # 65535 / 255
    image = PIL.Image.fromarray(np.round(levels).astype(np.uint8))
  if image.mode in ("I", "F"):
    raise DecodeError(
      f"its pixels have 32 bits (mode {image.mode!r}), of which none is known "
      "to be white; save it with 8 or 16"
    )
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(white, image)
  return image.convert("RGB")
