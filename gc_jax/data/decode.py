"""Reads encoded pictures of any kind as upright RGB, or says why it cannot.

Training, evaluation, `explain` and masks all read pictures here, so that a file
is the same pixels to each. `whole` is exact, and `scaled` is for evaluation and
`explain`. `crop` is for training: where it has to resize, it decodes a JPEG at
the smallest scale that suffices (simplejpeg) and resizes it with a small filter
(OpenCV): twice as fast, and less than a grey level off on average (500x375 to
224).

A file's content tells its format, one of `FORMATS`, whatever its name. Pictures
become RGB of 8 bits:

- grey is repeated, palettes are looked up, CMYK is read as Adobe writes it;
- transparent pixels (alpha, a palette's, one colour's) are put on white;
- 16 bits of grey are divided by 257 and rounded; 16 bits of a colour lose the
  lower 8;
- 32 bits of grey: integers must be in 0..65535 and are read as 16 bits, floats
  must be in 0..1;
- of several frames, the first is taken.

The orientation in EXIF or XMP is applied; a meaningless one counts as upright.
Boxes of a record are in the stored frame, before that, and are turned along
(`turned`); for masks see `geometry.stored_mask`.
"""

import io
import math
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

from gc_jax.data import orientation, pixels
from gc_jax.data.dataset import DecodeError

# The formats that are read, and how their files end. A closed list: some of
# Pillow's other readers start programs.
_ENDINGS = {
  "BMP": (".bmp",),
  "GIF": (".gif",),
  "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
  "PNG": (".png",),
  "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
  "TIFF": (".tif", ".tiff"),
  "WEBP": (".webp",),
}
FORMATS = tuple(_ENDINGS)
SUFFIXES = tuple(suffix for endings in _ENDINGS.values() for suffix in endings)

# Formats that are not read: how their files start, some behind four bytes.
_OTHERS = {
  b"%!PS": "PostScript",
  b"\xc5\xd0\xd3\xc6": "PostScript",
  b"%PDF": "PDF",
  b"8BPS": "Photoshop's PSD",
  b"\0\0\1\0": "an icon (ICO)",
  b"\0\0\0\x0cjP  ": "JPEG 2000",
  b"\xff\x4f\xff\x51": "JPEG 2000",
  b"\0\0\0\x0cJXL ": "JPEG XL",
  b"\xff\x0a": "JPEG XL",
  b"ftypavi": "AVIF",
  b"ftyphei": "HEIC",
  b"ftypmif1": "HEIF",
  b"ftypmsf1": "HEIF",
  b"version https://git-lfs": "a pointer of Git LFS to a file not fetched",
}

# Pictures are decoded in memory: 4 bytes a pixel, 0.7 GB at this size. JPEGs
# take a fraction of that, as they are decoded at a smaller scale.
MAX_PIXELS = 180_000_000

# Scaled decoding before an exact resize: if the decoded picture stays this many
# times as large as the result, no pixel differs by more than one level
# (measured; at 4 times they differ by up to 4, at 2 times by 15).
EXACT_REDUCTION = 8

# Below this, blurring is not worth its time: it mends half a level.
_ALIASING = 1.75

_JPEG_SCALES = (8, 4, 2)  # simplejpeg decodes these faster than the whole

_Turn = PIL.Image.Transpose
_SWAP_AXES = (
  _Turn.TRANSPOSE,
  _Turn.ROTATE_270,
  _Turn.TRANSVERSE,
  _Turn.ROTATE_90,
)
_BACK = {_Turn.ROTATE_90: _Turn.ROTATE_270, _Turn.ROTATE_270: _Turn.ROTATE_90}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_DEPTH_AT = 24

# Several batches are made at a time, each by one thread.
cv2.setNumThreads(0)
# Pillow's own limit is half of ours, and a warning first; ours is an error.
PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)


class Header(NamedTuple):
  """What is known of an encoded picture before its pixels are decoded."""

  encoded: bytes
  stored_size: tuple[int, int]  # (width, height)
  turn: PIL.Image.Transpose | None  # puts it upright; None: it is
  is_plain_jpeg: bool  # of colours or grey: the fastest decoder can read it

  @property
  def size(self) -> tuple[int, int]:
    """(width, height), upright."""
    width, height = self.stored_size
    return (height, width) if self.turn in _SWAP_AXES else (width, height)


def read_header(encoded: bytes) -> Header:
  """Returns size, orientation and kind, without decoding.

  Raises:
    DecodeError: if this is no picture, or one of more than `MAX_PIXELS`. So do
      all that decode it, if it is truncated or otherwise broken.
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
  """Reads a header ten times as fast as Pillow; None where Pillow must."""
  if not encoded.startswith(orientation.JPEG_START):
    return None
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(encoded)
  except ValueError:
    return None
  if space not in ("YCbCr", "Gray", "RGB"):
    return None
  return Header(encoded, (width, height), orientation.of_jpeg(encoded), True)


def _pillow_header(encoded: bytes) -> Header:
  with pixels.broken_told():
    image = _opened(encoded)
    size = image.size
    if encoded.startswith(orientation.JPEG_START):
      turn = orientation.of_jpeg(encoded)
    elif encoded.startswith(orientation.PNG_START):
      turn = orientation.of_png(encoded)
    elif image.format == "TIFF":
      # Pillow turns a TIFF itself, by what it reads there.
      turn = orientation.TURNS.get(image.getexif().get(orientation.TAG))
      size = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    else:
      blocks = (image.info.get(name, b"") for name in ("exif", "xmp"))
      turn = orientation.turn(*blocks)
  plain = image.format == "JPEG" and image.mode in ("RGB", "L")
  return Header(encoded, size, turn, plain)


def _opened(encoded: bytes) -> PIL.Image.Image:
  if encoded.startswith(orientation.JPEG_START):
    encoded = orientation.bare_jpeg(encoded)
  try:
    return PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)
  except PIL.UnidentifiedImageError as error:
    raise DecodeError(_no_picture(encoded)) from error
  except (
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,
  ) as error:
    raise DecodeError(f"{error}; make it smaller") from error


def _no_picture(encoded: bytes) -> str:
  for start, kind in _OTHERS.items():
    if encoded.startswith(start) or encoded.startswith(start, 4):
      return (
        f"it is no picture of {', '.join(FORMATS)}: it is {kind}. Save it as "
        "PNG or JPEG"
      )
  return (
    f"it is no picture: its {len(encoded):,} bytes start with "
    f"{bytes(encoded[:12])!r}"
  )


def whole(header: Header) -> PIL.Image.Image:
  """Returns the decoded picture, upright RGB."""
  return _upright(header, None)


def scaled(header: Header, size: tuple[int, int]) -> PIL.Image.Image:
  """Returns the whole picture at (width, height), upright.

  Bilinear with antialias, as evaluation and `explain` see it. A JPEG more than
  `EXACT_REDUCTION` times as large is decoded at a smaller scale first, which
  does not show.
  """
  share = _exact_share(header, size)
  return resized(_upright(header, share if share < 1 else None), size)


def whole_and_scaled(
  header: Header, size: tuple[int, int]
) -> tuple[PIL.Image.Image, PIL.Image.Image]:
  """Returns what `whole` and `scaled` do, and decodes all pixels only once."""
  image = whole(header)
  is_jpeg = header.encoded.startswith(orientation.JPEG_START)
  if is_jpeg and _exact_share(header, size) <= 1 / 2:
    # The decoder halves it, or more, in a fraction of the time.
    return image, scaled(header, size)
  return image, resized(image, size)


def check(header: Header) -> None:
  """Reads a picture to its end; a JPEG's pixels only as far as that takes."""
  _upright(header, 1 / max(_JPEG_SCALES))


def _exact_share(header: Header, size: tuple[int, int]) -> float:
  """Returns how small a picture may be decoded before an exact resize."""
  return max(
    EXACT_REDUCTION * side / own
    for side, own in zip(size, header.size, strict=True)
  )


def resized(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
  """Returns an image at (width, height): bilinear with antialias."""
  if image.size == size:
    return image
  return image.resize(size, PIL.Image.Resampling.BILINEAR)


def _upright(header: Header, share: float | None) -> PIL.Image.Image:
  """Returns upright RGB; a JPEG may come smaller, at no less than `share`."""
  with pixels.broken_told():
    return turned(pixels.rgb(_stored(header, share)), header.turn)


def stored(header: Header) -> PIL.Image.Image:
  """Returns the decoded picture in its stored mode and frame."""
  with pixels.broken_told():
    return _stored(header)


def _stored(header: Header, share: float | None = None) -> PIL.Image.Image:
  image = _opened(header.encoded)
  if share is not None:
    image.draft(None, tuple(math.ceil(share * side) for side in image.size))
  image.load()
  if image.format == "PNG":
    pixels.scale_clear_level(image, header.encoded[_PNG_DEPTH_AT])
  if image.format == "TIFF":
    tags = image.tag_v2
    image = turned_back(image, header.turn)  # Pillow has turned it
    image = pixels.with_white_at_the_top(image, tags)
  return image


def crop(
  header: Header,
  box: tuple[int, int, int, int],
  out: UInt8[np.ndarray, "S S 3"],
) -> None:
  """Writes a part of the picture into a square, contiguous array, quickly.

  The part is (left, top, width, height), in pixels, upright. Its pixels are
  exact if it is as large as the square.
  """
  left, top, width, height = box
  is_exact = width == height == len(out)
  enlarged = min(width, height) / len(out)
  scale = next((s for s in _JPEG_SCALES if s <= enlarged), 1)
  image = None if is_exact else _decode_jpeg(header, scale)
  if image is None:
    image = np.asarray(_upright(header, None if scale == 1 else 1 / scale))
  # Whole pixels of the scaled picture: a corner moves outwards by less than
  # one pixel of the result.
  scale = round(header.size[0] / image.shape[1])
  x0, x1 = left // scale, -(-(left + width) // scale)
  y0, y1 = top // scale, -(-(top + height) // scale)
  _resize(image[y0:y1, x0:x1], out)


def _resize(image: np.ndarray, out: np.ndarray) -> None:
  """Scales to the size of `out`: bilinear, blurred where that would alias.

  An exact filter for shrinking s times is a triangle s pixels to either side;
  interpolation alone is one of 1. Three taps [a, 1 - 2a, a] before it, with
  a = (s^2 - 1) / 12, give the two together the same variance, up to s = 2.
  """
  size = out.shape[1::-1]  # OpenCV names the width first
  shrinks = [side / len(out) for side in image.shape[:2]]
  if max(shrinks) > _ALIASING:
    sigma_y, sigma_x = (_sigma(shrink) for shrink in shrinks)
    image = cv2.GaussianBlur(
      image, (3, 3), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
    )
  cv2.resize(image, size, dst=out, interpolation=cv2.INTER_LINEAR)


def _sigma(shrink: float) -> float:
  """Returns the width of a Gaussian with the taps of `_resize`."""
  outer = max(1e-4, (min(shrink, 2.0) ** 2 - 1) / 12)
  return math.sqrt(0.5 / math.log((1 - 2 * outer) / outer))


def turned(
  image: PIL.Image.Image, turn: PIL.Image.Transpose | None
) -> PIL.Image.Image:
  """Returns an image of the stored frame put upright."""
  return image if turn is None else image.transpose(turn)


def turned_back(
  image: PIL.Image.Image, turn: PIL.Image.Transpose | None
) -> PIL.Image.Image:
  """Returns an upright image in the frame that `turn` puts upright."""
  return turned(image, _BACK.get(turn, turn))


def _decode_jpeg(header: Header, scale: int) -> np.ndarray | None:
  """Returns the picture at 1/scale, quickly; None where Pillow must look."""
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
    # It stops at stray bytes between segments, which Pillow passes over; Pillow
    # finds out whether the file is truncated.
    return None
