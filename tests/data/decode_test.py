"""Every kind of picture that people have, and those that are none."""

import io
import tracemalloc

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest

from gc_jax.data import decode
from gc_jax.data.augment import Augmentation
from tests.data import photos


def whole(encoded):
  return np.asarray(decode.whole(decode.read_header(encoded)))


def crop(encoded, box, size_px):
  out = np.empty((size_px, size_px, 3), np.uint8)
  decode.crop(decode.read_header(encoded), box, out)
  return out


@pytest.fixture(scope="module")
def photo():
  return photos.load("chelsea.png", (120, 80))


def test_a_truncated_jpeg_is_told(photo):
  encoded = photos.encode(photo)
  for broken in (encoded[: len(encoded) // 2], encoded[:700]):
    for read in (whole, lambda e: crop(e, (10, 10, 50, 50), 32)):
      with pytest.raises(decode.DecodeError, match=r"broken: .*truncated"):
        read(broken)


def test_no_bytes_are_told():
  with pytest.raises(decode.DecodeError, match=r"empty \(0 bytes\)"):
    whole(b"")


def test_text_called_a_picture_is_told_by_how_it_starts():
  with pytest.raises(
    decode.DecodeError, match=r"no picture: its 18 bytes star"
  ):
    whole(b"<html>Not found</h")


def test_a_header_that_breaks_off_is_told(photo):
  with pytest.raises(decode.DecodeError):
    whole(photos.encode(photo, "png")[:20])


def test_stray_bytes_between_segments_are_passed_over(photo):
  """As in some pictures of ImageNet: a decoder that is strict stops there."""
  encoded = photos.encode(photo)
  # Before the start of the scan.
  at = encoded.index(b"\xff\xda")
  stray = encoded[:at] + b"\0\0\0" + encoded[at:]
  np.testing.assert_array_equal(whole(stray), whole(encoded))
  box = (0, 0, *photo.size)
  difference = crop(stray, box, 64).astype(int) - crop(encoded, box, 64)
  assert np.abs(difference).mean() < 2  # levels: Pillow smooths colours more


def test_cmyk_as_adobe_writes_it_has_the_colours_of_the_picture(photo):
  cmyk = photos.encode(photo.convert("CMYK"), quality=95)
  assert b"Adobe" in cmyk  # inverted: 255 is no ink
  # Subsampled twice; wrong inks would be off by a hundred.
  assert np.abs(whole(cmyk).astype(int) - np.asarray(photo)).mean() < 4
  part = crop(cmyk, (0, 0, 80, 80), 80).astype(int)
  assert np.abs(part - np.asarray(photo)[:, :80]).mean() < 4


def test_16_bits_of_grey_are_scaled_not_clipped(photo):
  grey = np.asarray(photo.convert("L"))
  decoded = whole(photos.encode(grey.astype(np.uint16) * 257, "png"))
  np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, -1))


def test_32_bits_have_no_known_white():
  encoded = photos.encode(np.full((4, 4), 1000, np.int32), "tiff")
  with pytest.raises(decode.DecodeError, match=r"32 bits .* 8 or 16"):
    whole(encoded)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_grey_is_repeated(photo, encoding):
  decoded = whole(photos.encode(photo.convert("L"), encoding))
  assert decoded.shape == (80, 120, 3)
  assert (decoded == decoded[..., :1]).all()


def test_what_is_transparent_becomes_white(photo):
  pixels = np.dstack([np.asarray(photo), np.full((80, 120), 255, np.uint8)])
  pixels[:, :40, 3] = 0
  decoded = whole(photos.encode(pixels, "png"))
  assert (decoded[:, :40] == 255).all()
  np.testing.assert_array_equal(decoded[:, 40:], np.asarray(photo)[:, 40:])


def test_a_palette_with_a_transparent_colour_is_looked_up(photo):
  few = photo.quantize(16)
  colours = np.asarray(few.convert("RGB"))
  decoded = whole(photos.encode(few, "png", transparency=3))
  clear = np.asarray(few) == 3
  assert clear.any()
  assert (decoded[clear] == 255).all()
  np.testing.assert_array_equal(decoded[~clear], colours[~clear])


def test_an_animation_is_its_first_frame(photo):
  frames = [photo, photos.load("coffee.png", (120, 80))]
  buffer = io.BytesIO()
  frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
  decoded = whole(buffer.getvalue()).astype(int)
  assert np.abs(decoded - np.asarray(frames[0])).mean() < 12  # 256 colours
  assert np.abs(decoded - np.asarray(frames[1])).mean() > 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo, orientation):
  encoded = photos.with_orientation(photo, orientation)
  header = decode.read_header(encoded)
  upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
  assert header.size == upright.size
  assert header.stored_size == (120, 80)
  np.testing.assert_array_equal(whole(encoded), np.asarray(upright))
  box = (5, 7, 64, 64)
  part = np.asarray(upright)[7:71, 5:69].astype(int)
  # Colours are smoothed less: a level on average.
  assert np.abs(crop(encoded, box, 64) - part).mean() < 1.5


def _turned_png(photo, how):
  """A PNG to be turned by 90 degrees, which it says in one of four ways."""
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  texts = PIL.PngImagePlugin.PngInfo()
  texts.add_text("Software", "a program")
  if how == "xmp":
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
  elif how == "profile":
    # ImageMagick's way: a name, a length, hexadecimal digits.
    digits = (b"Exif\0\0" + exif.tobytes()).hex()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(digits)}\n{digits}")
  if how in ("xmp", "profile"):
    return photos.encode(photo, "png", pnginfo=texts)
  encoded = photos.encode(photo, "png", pnginfo=texts, exif=exif)
  if how == "exif":
    return encoded
  # The chunk moved behind the pixels.
  at = encoded.index(b"eXIf") - 4
  end = at + 12 + int.from_bytes(encoded[at : at + 4], "big")
  last = encoded.index(b"IEND") - 4
  return encoded[:at] + encoded[end:last] + encoded[at:end] + encoded[last:]


@pytest.mark.parametrize("how", ["exif", "exif behind", "xmp", "profile"])
def test_a_png_is_turned_wherever_it_says_so(photo, how):
  encoded = _turned_png(photo, how)
  upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
  assert upright.size == (80, 120)
  assert decode.read_header(encoded).size == (80, 120)
  np.testing.assert_array_equal(whole(encoded), np.asarray(upright))


def test_the_header_of_a_png_is_read_without_its_pixels(photo, monkeypatch):
  texts = PIL.PngImagePlugin.PngInfo()
  texts.add_text("Comment", "XML:com.adobe.xmp is not here")
  encoded = photos.encode(photo, "png", pnginfo=texts)
  with monkeypatch.context() as patched:
    patched.setattr(PIL.PngImagePlugin.PngImageFile, "load", None)
    header = decode.read_header(encoded)
  assert header.size == (120, 80) and header.turn is None
  np.testing.assert_array_equal(whole(encoded), np.asarray(photo))


def test_a_truncated_png_is_told(photo):
  encoded = photos.encode(photo, "png")
  with pytest.raises(decode.DecodeError, match=r"broken: .*truncated"):
    whole(encoded[: len(encoded) // 2])


def test_one_pixel_is_a_picture():
  encoded = photos.encode(np.full((1, 1, 3), 7, np.uint8), "png")
  assert (whole(encoded) == 7).all()
  for name in ("center", "random_resized"):
    square = np.empty((16, 16, 3), np.uint8)
    Augmentation(16, crop=name)(encoded, np.random.default_rng(0), square)
    assert square.shape == (16, 16, 3) and (square == 7).all()


@pytest.fixture(scope="module")
def huge():
  """12,000 x 9,000 pixels: a photograph, repeated."""
  tile = photos.load("coffee.png", (600, 450))
  image = PIL.Image.new("RGB", (12_000, 9_000))
  for x in range(0, 12_000, 600):
    for y in range(0, 9_000, 450):
      image.paste(tile, (x, y))
  return photos.encode(image, quality=70)


def test_a_huge_picture_is_read_in_little_memory(huge):
  """108 megapixels: whole, it would be 324 MB here and 432 in Pillow."""
  header = decode.read_header(huge)
  assert header.size == (12_000, 9_000)
  tracemalloc.start()
  part = np.empty((224, 224, 3), np.uint8)
  decode.crop(header, (0, 0, 12_000, 9_000), part)
  pixels = decode.whole(decode.read_header(huge), 64)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert part.shape == (224, 224, 3)
  assert pixels.size == (1_500, 1_125)  # an eighth, of which nothing is lost
  assert peak < 40e6


def test_more_pixels_than_the_limit_are_refused(photo, monkeypatch):
  monkeypatch.setattr(decode, "MAX_PIXELS", 120 * 80 - 1)
  with pytest.raises(
    decode.DecodeError, match=r"120x80 pixels and must have at"
  ):
    whole(photos.encode(photo))


def test_far_beyond_the_limit_pillow_refuses_and_we_say_so(photo, monkeypatch):
  monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1_000)
  with pytest.raises(
    decode.DecodeError, match=r"exceeds limit.*make it smaller"
  ):
    whole(photos.encode(photo, "png"))


@pytest.mark.parametrize("name", photos.NAMES)
@pytest.mark.parametrize("size_px", [64, 224])
def test_a_fast_crop_looks_like_an_exact_one(name, size_px):
  """Of decoding at a smaller scale, and of a filter of three taps."""
  image = photos.load(name, (500, 375))
  encoded = photos.encode(image)
  image = PIL.Image.open(io.BytesIO(encoded))
  # Corners that whole pixels of every scale have.
  for left, top, width, height in [(0, 0, 500, 375), (96, 32, 232, 296)]:
    box = (left, top, left + width, top + height)
    exact = image.crop(box).resize((size_px, size_px), 2)
    fast = crop(encoded, (left, top, width, height), size_px)
    difference = np.abs(fast - np.asarray(exact).astype(int)).mean()
    # Grey levels, as measured (1.8 and 2.1) and a little more; at smaller
    # scales Pillow's own, exactly resized, are off by nearly as much.
    assert difference < (2.2 if size_px == 224 else 3.2)


def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices(monkeypatch):
  encoded = photos.encode(photos.load("coffee.png", (600, 400)))
  scales = []
  decode_jpeg = decode._decode_jpeg
  monkeypatch.setattr(
    decode,
    "_decode_jpeg",
    lambda header, scale: scales.append(scale) or decode_jpeg(header, scale),
  )
  for side in (400, 399, 200, 100, 99, 50):
    crop(encoded, (0, 0, side, side), 50)
  assert scales == [8, 4, 4, 2, 1, 1]
