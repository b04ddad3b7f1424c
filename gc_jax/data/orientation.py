"""How a camera was held: the orientation in JPEG, PNG and WebP files.

Read from the bytes here: Pillow takes ten times as long, warns of defects
elsewhere in the metadata, and decodes a PNG to see the metadata behind its
pixels. Meaningless values count as upright.
"""

import re
import zlib
from collections.abc import Iterator

import PIL.Image

TURNS = {
  2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
  3: PIL.Image.Transpose.ROTATE_180,
  4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
  5: PIL.Image.Transpose.TRANSPOSE,
  6: PIL.Image.Transpose.ROTATE_270,
  7: PIL.Image.Transpose.TRANSVERSE,
  8: PIL.Image.Transpose.ROTATE_90,
}
TAG = 0x0112

_INTEGERS = {3: 2, 4: 4, 8: 2, 9: 4}  # types of TIFF, and their bytes
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9])\s*[\"'<]")

JPEG_START = b"\xff\xd8\xff"
_JPEG_EXIF = b"Exif\0\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_SOS, _APP1 = 0xDA, 0xE1
_METADATA = {*range(0xE1, 0xF0)} - {0xEE}  # 0xE0 and 0xEE describe colours
# Markers without a length behind them.
_BARE = {0, 1, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xFF}

PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_XMP = b"XML:com.adobe.xmp"
_PNG_PROFILE = b"Raw profile type "
_MAX_TEXT_BYTES = 2**20  # unpacked: a small chunk can hold gigabytes


def turn(exif: bytes, xmp: bytes) -> PIL.Image.Transpose | None:
  """Returns how to put a picture upright; None if it is. EXIF goes first."""
  value = _of_exif(exif)
  if value is None:
    match = _XMP.search(xmp)
    value = int(match[1]) if match else 1
  return TURNS.get(value)


def _of_exif(block: bytes) -> int | None:
  """Returns the value in the first directory of a TIFF; None without one."""
  while block.startswith(_JPEG_EXIF):
    block = block[len(_JPEG_EXIF) :]
  order = {b"II": "little", b"MM": "big"}.get(block[:2])
  if order is None:
    return None
  number = lambda at, size: int.from_bytes(block[at : at + size], order)
  first = number(4, 4)
  for i in range(number(first, 2)):
    entry = first + 2 + 12 * i
    if entry + 12 > len(block):
      return None
    if number(entry, 2) == TAG:
      size = _INTEGERS.get(number(entry + 2, 2))
      single = number(entry + 4, 4) == 1
      return number(entry + 8, size) if size and single else 1
  return None


def of_jpeg(encoded: bytes) -> PIL.Image.Transpose | None:
  """Returns how to put a JPEG upright; None if it is."""
  exif, xmp = [], []
  for marker, start, end in _segments(encoded):
    if marker == _APP1 and encoded.startswith(_JPEG_EXIF, start + 4):
      exif.append(encoded[start + 4 + len(_JPEG_EXIF) : end])  # may be in parts
    elif marker == _APP1 and encoded.startswith(_JPEG_XMP, start + 4):
      xmp.append(encoded[start + 4 + len(_JPEG_XMP) : end])
  return turn(b"".join(exif), b"".join(xmp)) if exif or xmp else None


def bare_jpeg(encoded: bytes) -> bytes:
  """Returns a JPEG without EXIF, XMP, further pictures and so on.

  Pillow would read all of it, and warn of defects in it.
  """
  segments = list(_segments(encoded))
  kept = [encoded[a:b] for marker, a, b in segments if marker not in _METADATA]
  if len(kept) == len(segments):
    return encoded
  pixels = segments[-1][-1]
  return b"".join([encoded[:2], *kept, encoded[pixels:]])


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
  """Yields (marker, start, end) of each segment before the pixels.

  Between segments there may be any bytes, and a marker may have several FF.
  """
  at = 2
  while (at := encoded.find(b"\xff", at)) >= 0 and at + 4 <= len(encoded):
    marker = encoded[at + 1]
    if marker == _SOS:
      return
    if marker in _BARE:
      at += 1 if marker == 0xFF else 2
      continue
    length = int.from_bytes(encoded[at + 2 : at + 4], "big")
    end = at + 2 + length
    if length < 2 or end > len(encoded):
      return
    yield marker, at, end
    at = end


def of_png(encoded: bytes) -> PIL.Image.Transpose | None:
  """Returns how to put a PNG upright; None if it is.

  Its EXIF or XMP may be before or behind the pixels, and in hexadecimal digits,
  as ImageMagick writes them.
  """
  exif = xmp = b""
  at = len(PNG_START)
  # Each chunk: its length in four bytes, its name in four, itself, a checksum.
  while name := encoded[at + 4 : at + 8]:
    start, length = at + 8, int.from_bytes(encoded[at : at + 4], "big")
    at = start + length + 4
    if name == b"eXIf":
      exif = encoded[start : start + length]
    elif name in (b"tEXt", b"zTXt", b"iTXt") and encoded.startswith(
      (_PNG_XMP, _PNG_PROFILE), start
    ):
      text = _text(name, encoded[start : start + length])
      if text.startswith((_JPEG_EXIF, b"II", b"MM")):
        exif = exif or text
      else:
        xmp = text.removeprefix(_JPEG_XMP)
  return turn(exif, xmp) if exif or xmp else None


def _text(name: bytes, chunk: bytes) -> bytes:
  """Returns the content of a chunk of text; b"" if it cannot be unpacked."""
  keyword, _, rest = chunk.partition(b"\0")
  packed = name == b"zTXt"
  if name == b"zTXt":
    rest = rest[1:]  # a byte for the method, which is always the same
  elif name == b"iTXt":
    packed = rest[:1] == b"\1"
    rest = rest[2:].split(b"\0", 2)[-1]  # behind two names of languages
  try:
    if packed:
      rest = zlib.decompressobj().decompress(rest, _MAX_TEXT_BYTES)
    if keyword.startswith(_PNG_PROFILE):
      # A name and a number of bytes, a line each; digits.
      rest = bytes.fromhex("".join(rest.decode("ascii").split("\n")[3:]))
  except (zlib.error, ValueError):
    return b""
  return rest
