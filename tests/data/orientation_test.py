"""The orientation of a picture is found wherever its format may say it."""

import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from gc_jax.data import decode, orientation
from tests.data import photos
from tests.data import picture_files as files

UPRIGHT = files.quarters(files.COLORS, 32, 48)
STORED = files.TO_STORED[6](UPRIGHT)


def jpeg(*segments, behind="SOI"):
  """A JPEG to be turned, with segments behind another."""
  encoded = photos.encode(STORED, "jpeg", quality=95, subsampling=0)
  at = 2
  if behind == "DQT":
    at = encoded.rindex(b"\xff\xdb")
    at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
  elif behind == "SOS":
    at = encoded.index(b"\xff\xda")
    at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
  elif behind == "SOF":
    at = encoded.index(b"\xff\xda")
  return encoded[:at] + b"".join(segments) + encoded[at:]


def png(before=b"", behind=b""):
  """A PNG to be turned, with chunks before and behind its pixels."""
  rows = [row.tobytes() for row in STORED]
  return files.png(8, 2, rows, STORED.shape[1], before, behind)


def assert_upright(encoded):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    header = decode.read_header(encoded)
    pixels = np.asarray(decode.whole(header))
  assert header.size == (48, 32) and header.stored_size == (32, 48)
  difference = files.seen(pixels).astype(int) - files.COLORS
  assert np.abs(difference).max() <= 4


COMMENT = files.segment(0xFE, b"a comment with \xff\xe1 in it")
ICC = files.segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(40))
EXIF, XMP = files.exif_segment(6), files.xmp_segment(6)
LIST = files.segment(0xE2, b"MPF\0" + bytes(20))  # of pictures, and broken
# Two halves of a block, as cameras with a lot to say write them.
HALVES = [
  files.segment(0xE1, b"Exif\0\0" + part)
  for part in (files.exif(6)[:30], files.exif(6)[30:])
]
XMP_OF_ELEMENTS = files.segment(
  0xE1,
  b"http://ns.adobe.com/xap/1.0/\0<rdf:Description>"
  b"<tiff:Orientation>6</tiff:Orientation></rdf:Description>",
)


@pytest.mark.parametrize(
  "encoded",
  [
    jpeg(EXIF),
    jpeg(COMMENT, EXIF),
    jpeg(COMMENT, ICC, COMMENT, EXIF),
    jpeg(b"\xff", EXIF),
    jpeg(b"\xff\xff\xff", EXIF),
    jpeg(COMMENT, b"\0\0\0", EXIF),
    jpeg(EXIF, b"\0\0\0", COMMENT),
    jpeg(EXIF, b"\0\0\0"),
    jpeg(b"\xff\0", EXIF),
    jpeg(b"\xff\xd0", EXIF),
    jpeg(LIST, EXIF),
    jpeg(EXIF, behind="DQT"),
    jpeg(EXIF, behind="SOF"),
    jpeg(files.exif_segment(6, order=">")),
    jpeg(files.exif_segment(6, kind=4)),
    jpeg(*HALVES),
    jpeg(XMP),
    jpeg(COMMENT, XMP),
    jpeg(XMP_OF_ELEMENTS),
    jpeg(XMP, behind="DQT"),
    jpeg(files.segment(0xE1, b"Exif\0\0" + files.exif(6)[:22]), XMP),
    jpeg(files.xmp_segment(3), EXIF),  # EXIF goes first
  ],
  ids=lambda encoded: "",
)
def test_a_jpeg_is_turned_wherever_it_says_so(encoded):
  assert_upright(encoded)


DIGITS = (b"Exif\0\0" + files.exif(6)).hex().encode()
PROFILE = b"\nexif\n%8d\n" % (len(DIGITS) // 2) + DIGITS


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
  "chunk",
  [
    files.chunk(b"eXIf", files.exif(6)),
    files.chunk(b"eXIf", files.exif(6, order=">")),
    files.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + files.xmp(6)),
    files.chunk(
      b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(files.xmp(6))
    ),
    files.chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE),
    files.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    files.chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(PROFILE)),
  ],
  ids=["exif", "exif MM", "xmp", "packed xmp", "text", "packed text", "APP1"],
)
def test_a_png_is_turned_wherever_it_says_so(chunk, place):
  other = files.chunk(b"tEXt", b"Comment\0XML:com.adobe.xmp is not here")
  assert_upright(png(**{place: other + chunk}))


@pytest.mark.parametrize(
  "said", [{"exif": files.exif(6)}, {"xmp": files.xmp(6)}]
)
@pytest.mark.parametrize("frames", [1, 2])
def test_a_webp_is_turned_also_where_it_moves(said, frames):
  image = PIL.Image.fromarray(np.ascontiguousarray(STORED))
  others = [PIL.Image.new("RGB", image.size)] * (frames - 1)
  encoded = photos.encode(
    image, "webp", lossless=True, save_all=True, append_images=others, **said
  )
  assert_upright(encoded)


def test_a_tiff_is_turned_once_by_a_tag_or_by_xmp():
  """Which Pillow does when it loads it."""
  assert_upright(photos.encode(STORED, "tiff", tiffinfo={files.TAG: 6}))
  assert_upright(photos.encode(STORED, "tiff", tiffinfo={700: files.xmp(6)}))
  pages = [PIL.Image.fromarray(np.ascontiguousarray(STORED))] * 2
  encoded = photos.encode(
    pages[0],
    "tiff",
    save_all=True,
    append_images=pages[1:],
    tiffinfo={files.TAG: 6},
  )
  assert_upright(encoded)


@pytest.mark.parametrize(
  "block",
  [
    files.exif(0),
    files.exif(9),
    files.exif(65_535),
    files.exif(6, count=2),
    files.exif(6).replace(
      struct.pack("<HH", files.TAG, 3), struct.pack("<HH", files.TAG, 2)
    ),
    files.exif(6)[:12],
    files.exif(6)[:30],
    b"II*\0\xff\xff\xff\xff",
    b"no TIFF at all",
    b"",
  ],
  ids=lambda block: "",
)
def test_values_that_mean_nothing_are_upright(block):
  upright = photos.encode(UPRIGHT, "jpeg", quality=95, subsampling=0)
  exif = files.segment(0xE1, b"Exif\0\0" + block)
  rows = [row.tobytes() for row in UPRIGHT]
  chunk = files.chunk(b"eXIf", block)
  for encoded in (
    upright[:2] + exif + upright[2:],
    files.png(8, 2, rows, 48, chunk),
    files.png(8, 2, rows, 48, b"", chunk),
  ):
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      header = decode.read_header(encoded)
      pixels = np.asarray(decode.whole(header))
    assert header.turn is None
    difference = files.seen(pixels).astype(int) - files.COLORS
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize(
  "encoded",
  [
    jpeg(EXIF, behind="SOS"),
    jpeg(files.segment(0xFE, EXIF)),
    jpeg(files.segment(0xE1, b"Other\0" + files.exif(6))),
    png(files.chunk(b"tEXt", b"Comment\0" + files.xmp(6))),
    png(files.chunk(b"tEXt", b"Raw profile type exif\0no digits")),
    png(files.chunk(b"zTXt", b"Raw profile type exif\0\0not packed")),
  ],
  ids=lambda encoded: "",
)
def test_what_only_looks_like_an_orientation_is_none(encoded):
  assert decode.read_header(encoded).turn is None


def test_a_small_text_that_unpacks_to_gigabytes_is_not_unpacked():
  bomb = zlib.compress(bytes(50_000_000))
  encoded = png(files.chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb))
  assert orientation.of_png(encoded) is None


@pytest.mark.parametrize("value", range(1, 9))
def test_turns_are_pillows(value):
  """The tables that the files of these tests are made by are right."""
  encoded = photos.encode(
    files.TO_STORED[value](UPRIGHT), "png", exif=files.exif(value)
  )
  with PIL.Image.open(decode.io.BytesIO(encoded)) as image:
    upright = PIL.ImageOps.exif_transpose(image)
  np.testing.assert_array_equal(np.asarray(upright), UPRIGHT)


def test_pixels_stay_when_metadata_are_left_out():
  encoded = jpeg(COMMENT, ICC, EXIF, LIST, XMP)
  bare = orientation.bare_jpeg(encoded)
  assert len(bare) == len(encoded) - sum(map(len, (ICC, EXIF, LIST, XMP)))
  np.testing.assert_array_equal(
    decode.stored(decode.read_header(bare)),
    decode.stored(decode.read_header(encoded)),
  )
  plain = jpeg()
  assert orientation.bare_jpeg(plain) is plain
