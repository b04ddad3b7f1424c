"""Small picture files in every format, mode and depth, some by hand.

Each shows four quarters: red, green / blue, white; or black, dark / light
grey, white where it has no colours. Turned any way, they tell which.
"""

import struct
import zlib

import numpy as np
import PIL.Image

from tests.data.photos import encode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
COLORS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
# Exact in 2 bits, 4, 8, 12, 16, and in floats.
GREY = np.array([[0, 85], [170, 255]], np.uint8)

TAG = 0x0112

# What turns an upright picture into the one that is stored: EXIF's meaning of
# 1..8, by arrays alone.
TO_STORED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a.swapaxes(0, 1)[::-1],
  7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
  8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def quarters(levels, height=32, width=32):
  """A picture of four quarters."""
  return np.kron(
    levels,
    np.ones((height // 2, width // 2) + (1,) * (levels.ndim - 2), levels.dtype),
  )


def seen(pixels):
  """The 2x2 colours in the middle of the quarters."""
  height, width = pixels.shape[:2]
  return pixels[height // 4 :: height // 2, width // 4 :: width // 2]


def exif(orientation, order="<", kind=3, count=1):
  """A block of EXIF: two tags, the second the orientation."""
  value = struct.pack(
    order + {3: "HH", 4: "L"}[kind], *[orientation, 0][: 5 - kind]
  )
  return (
    {"<": b"II*\0", ">": b"MM\0*"}[order]
    + struct.pack(order + "LH", 8, 2)
    + struct.pack(order + "HHL4s", 0x010F, 2, 4, b"gc\0\0")
    + struct.pack(order + "HHL", TAG, kind, count)
    + value
    + bytes(4)
  )


def xmp(orientation):
  return (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation='
    f'"{orientation}"/></x:xmpmeta>'
  ).encode()


def segment(marker, content):
  """A segment of a JPEG."""
  return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def exif_segment(*args, **kwargs):
  return segment(0xE1, b"Exif\0\0" + exif(*args, **kwargs))


def xmp_segment(orientation):
  name = b"http://ns.adobe.com/xap/1.0/\0"
  return segment(0xE1, name + xmp(orientation))


def chunk(name, content):
  """A chunk of a PNG."""
  checksum = zlib.crc32(name + content)
  return (
    struct.pack(">L", len(content))
    + name
    + content
    + struct.pack(">L", checksum)
  )


def png(depth, kind, rows, width, before=b"", behind=b""):
  """A PNG of rows of bytes; `before` and `behind` the pixels are chunks."""
  head = struct.pack(">LLBBBBB", width, len(rows), depth, kind, 0, 0, 0)
  pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + before
    + chunk(b"IDAT", pixels)
    + behind
    + chunk(b"IEND", b"")
  )


def packed(levels, depth):
  """Rows of grey of fewer than 8 bits, the first pixel uppermost."""
  levels = levels // (255 // (2**depth - 1))
  bits = np.unpackbits(levels[..., None], axis=-1)[..., 8 - depth :]
  return np.packbits(bits.reshape(len(levels), -1), axis=-1)


def tiff(pixels, bits, width, height, photometric=1, orientation=1):
  """A TIFF of one channel of grey, its pixels given as bytes."""
  tags = [
    (256, 4, width),
    (257, 4, height),
    (258, 3, bits),
    (259, 3, 1),
    (262, 3, photometric),
    (273, 4, 8),
    (TAG, 3, orientation),
    (277, 3, 1),
    (278, 4, height),
    (279, 4, len(pixels)),
  ]
  if bits == 32:
    tags.append((339, 3, 3))  # floats
  entries = b"".join(struct.pack("<HHLL", t, k, 1, v) for t, k, v in tags)
  start = 8 + len(pixels)
  return (
    b"II*\0"
    + struct.pack("<L", start)
    + pixels
    + struct.pack("<H", len(tags))
    + entries
    + bytes(4)
  )


# Each writes the pixels that are stored, of colours or of grey, and says the
# orientation in the way of its format.


def _exif_of(orientation):
  block = PIL.Image.Exif()
  block[TAG] = orientation
  return block


def _pillow(encoding, mode=None, **options):
  def write(pixels, orientation):
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    image = image if mode is None else image.convert(mode)
    said = {"exif": _exif_of(orientation)}
    if encoding == "tiff":
      said = {"tiffinfo": {TAG: orientation}}
    return encode(image, encoding, **said, **options)

  return write


def _alpha(encoding, **options):
  """White is transparent, and black underneath."""

  def write(pixels, orientation):
    clear = (pixels == 255).all(-1, keepdims=True)
    pixels = np.dstack([np.where(clear, 0, pixels), ~clear * np.uint8(255)])
    return _pillow(encoding, **options)(pixels, orientation)

  return write


def _clear_color(pixels, orientation):
  """White is another colour, which is said to be transparent."""
  clear = (pixels == 255).all(-1, keepdims=True)
  pixels = np.where(clear, np.uint8([1, 2, 3]), pixels)
  return encode(
    pixels, "png", exif=_exif_of(orientation), transparency=(1, 2, 3)
  )


def _clear_number(encoding):
  """The same of a palette."""

  def write(pixels, orientation):
    clear = (pixels == 255).all(-1, keepdims=True)
    image = PIL.Image.fromarray(np.where(clear, np.uint8([1, 2, 3]), pixels))
    image = image.quantize(4)
    number = image.getpixel(tuple(np.argwhere(clear[..., 0])[0][::-1].tolist()))
    return encode(
      image, encoding, exif=_exif_of(orientation), transparency=number
    )

  return write


def _few_bits(depth, clear=None):
  def write(pixels, orientation):
    before = chunk(b"eXIf", exif(orientation))
    if clear is not None:
      before += chunk(b"tRNS", struct.pack(">H", clear))
    rows = packed(pixels, depth)
    return png(depth, 0, rows, pixels.shape[1], before)

  return write


def _deep_colors(pixels, orientation):
  deep = (pixels.astype(np.uint16) * 257).astype(">u2")
  rows = [row.tobytes() for row in deep]
  before = chunk(b"eXIf", exif(orientation, ">"))
  return png(16, 2, rows, pixels.shape[1], before)


def _inverted_tiff(dtype, scale):
  def write(pixels, orientation):
    deep = (scale - pixels / 255 * scale).astype(dtype)
    height, width = pixels.shape
    bits = 8 * deep.itemsize
    return tiff(deep.tobytes(), bits, width, height, 0, orientation)

  return write


def _deep(encoding, dtype, scale):
  def write(pixels, orientation):
    deep = (pixels / 255 * scale).astype(dtype)
    return _pillow(encoding)(deep, orientation)

  return write


def _twelve_bits(pixels, orientation):
  levels = pixels.astype(np.uint32) * 4095 // 255
  pairs = levels.reshape(-1, 2)
  joined = pairs[:, 0] << 12 | pairs[:, 1]
  content = b"".join(int(pair).to_bytes(3, "big") for pair in joined)
  height, width = pixels.shape
  return tiff(content, 12, width, height, 1, orientation)


COLOR_FILES = {
  "jpeg": _pillow("jpeg", "RGB", quality=95, subsampling=0),
  "jpeg progressive": _pillow("jpeg", "RGB", quality=90, progressive=True),
  "jpeg CMYK": _pillow("jpeg", "CMYK", quality=95, subsampling=0),
  "png": _pillow("png", "RGB"),
  "png P": _pillow("png", "P"),
  "png RGBA": _alpha("png"),
  "png clear colour": _clear_color,
  "png clear number": _clear_number("png"),
  "png 16 bits": _deep_colors,
  "tiff": _pillow("tiff", "RGB"),
  "tiff lzw": _pillow("tiff", "RGB", compression="tiff_lzw"),
  "tiff jpeg": _pillow("tiff", "RGB", compression="jpeg"),
  "tiff P": _pillow("tiff", "P"),
  "tiff CMYK": _pillow("tiff", "CMYK"),
  "tiff YCbCr": _pillow("tiff", "YCbCr"),
  "tiff LAB": _pillow("tiff", "LAB"),
  "webp": _pillow("webp", "RGB", lossless=True),
  "webp lossy": _pillow("webp", "RGB", quality=95),
  "webp RGBA": _alpha("webp", lossless=True, exact=True),
}
GREY_FILES = {
  "jpeg L": _pillow("jpeg", "L", quality=95),
  "png L": _pillow("png", "L"),
  "png LA": _pillow("png", "LA"),
  "png 2 bits": _few_bits(2),
  "png 4 bits": _few_bits(4),
  "png 2 bits, clear": _few_bits(2, 3),
  "png 16 bits of grey": _deep("png", np.uint16, 65535),
  "tiff L": _pillow("tiff", "L"),
  "tiff LA": _pillow("tiff", "LA"),
  "tiff 12 bits": _twelve_bits,
  "tiff 16 bits": _deep("tiff", np.uint16, 65535),
  "tiff 16 bits, 0 white": _inverted_tiff(np.uint16, 65535),
  "tiff I": _deep("tiff", np.int32, 65535),
  "tiff F": _deep("tiff", np.float32, 1),
  "tiff F, 0 white": _inverted_tiff(np.float32, 1),
}
# Formats that say no orientation.
FLAT_FILES = {
  "bmp": lambda pixels: encode(pixels, "bmp"),
  "gif": lambda pixels: encode(pixels, "gif"),
  "ppm": lambda pixels: encode(pixels, "ppm"),
  "gif clear": lambda pixels: _clear_number("gif")(pixels, 1),
}
