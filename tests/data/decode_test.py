"""Every kind of picture that people have, and those that are none."""

import ast
import io
import os
import pathlib
import struct
import tracemalloc
import warnings

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import PIL.PngImagePlugin
import pytest

from gc_jax.data import decode, geometry, image_files
from gc_jax.data.augment import Augmentation
from tests.data import evaluated, photos
from tests.data import picture_files as files


def whole(encoded):
  return np.asarray(decode.whole(decode.read_header(encoded)))


def crop(encoded, box, size_px):
  out = np.empty((size_px, size_px, 3), np.uint8)
  decode.crop(decode.read_header(encoded), box, out)
  return out


@pytest.fixture(scope="module")
def photo():
  return photos.load("chelsea.png", (120, 80))


def test_what_is_no_whole_picture_is_refused_with_the_reason(photo):
  jpeg, png = photos.encode(photo), photos.encode(photo, "png")
  for broken, reason in (
    (jpeg[: len(jpeg) // 2], r"broken: .*truncated"),
    (jpeg[:700], r"broken: .*truncated"),
    (png[: len(png) // 2], r"broken: .*truncated"),
    (png[:20], "it is"),
    (b"", r"empty \(0 bytes\)"),
    (b"<html>Not found</h", r"no picture: its 18 bytes start with b'<html"),
  ):
    for read in (whole, lambda e: crop(e, (10, 10, 50, 50), 32)):
      with pytest.raises(decode.DecodeError, match=reason):
        read(broken)


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


@pytest.mark.parametrize(
  ("levels", "span"),
  [
    (np.int32([[0, 70_000]]), "span 0 to 70000, and must be in 0 to 65535"),
    (np.int32([[-1, 100]]), "span -1 to 100, and"),
    (np.float32([[0, 300]]), "span 0 to 300, and must be in 0 to 1;"),
    (np.float32([[0.5, np.nan]]), "span nan to nan"),
    (np.float32([[0.5, np.inf]]), "span 0.5 to inf"),
  ],
)
def test_32_bits_of_unknown_scale_are_refused(levels, span):
  with pytest.raises(decode.DecodeError, match=f"32 bits {span}"):
    whole(photos.encode(levels, "tiff"))


@pytest.mark.parametrize("encoding", ["gif", "png", "tiff", "webp", "mpo"])
def test_of_several_frames_the_first_is_read(encoding):
  frames = [PIL.Image.new("RGB", (16, 16), name) for name in ("white", "black")]
  options = {"lossless": True} if encoding == "webp" else {}
  encoded = photos.encode(
    frames[0], encoding, save_all=True, append_images=frames[1:], **options
  )
  with PIL.Image.open(io.BytesIO(encoded)) as image:
    assert image.n_frames == 2
  assert (whole(encoded) == 255).all()


def test_one_bit_is_black_and_white_and_either_byte_order_is_read():
  bits = np.arange(256)[None] >= 128
  decoded = whole(photos.encode(bits, "png"))
  np.testing.assert_array_equal(decoded[..., 0], 255 * bits)
  deep = (np.arange(256) * 257).astype(">u2")
  image = PIL.Image.frombytes("I;16B", (256, 1), deep.tobytes())
  decoded = whole(photos.encode(image, "tiff"))
  assert decoded[0, :, 0].tolist() == list(range(256))


EVERY_FILE = [
  (name, orientation)
  for name in (*files.COLOR_FILES, *files.GREY_FILES)
  for orientation in range(1, 9)
] + [(name, 1) for name in files.FLAT_FILES]


def picture_file(name, orientation, width=32):
  """A file that shows the four quarters upright, and their colours."""
  levels = files.GREY if name in files.GREY_FILES else files.COLORS
  stored = files.TO_STORED[orientation](files.quarters(levels, 32, width))
  if name in files.FLAT_FILES:
    return files.FLAT_FILES[name](stored), levels
  write = (files.COLOR_FILES | files.GREY_FILES)[name]
  return write(stored, orientation), levels


@pytest.mark.parametrize(("name", "orientation"), EVERY_FILE)
def test_every_file_is_upright_and_has_its_colours(name, orientation):
  encoded, levels = picture_file(name, orientation, width=48)
  header = decode.read_header(encoded)
  assert header.size == (48, 32)
  assert header.stored_size == ((32, 48) if orientation > 4 else (48, 32))
  pixels = whole(encoded)
  assert pixels.shape == (32, 48, 3)
  expected = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, -1)
  # In the middle of flat quarters, JPEG keeps colours; LAB has fewer of them.
  tolerance = 25 if "LAB" in name else 4
  difference = files.seen(pixels).astype(int) - expected
  assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize(("name", "orientation"), EVERY_FILE)
def test_training_evaluation_and_explain_see_the_same_pixels(
  name, orientation, tmp_path
):
  encoded, _ = picture_file(name, orientation)
  (tmp_path / "picture").write_bytes(encoded)
  explained = image_files.read(tmp_path / "picture")
  np.testing.assert_array_equal(geometry.decode_image(encoded, 32), explained)
  np.testing.assert_array_equal(crop(encoded, (0, 0, 32, 32), 32), explained)
  out = np.empty((32, 32, 3), np.uint8)
  Augmentation(32)(encoded, np.random.default_rng(0), out)
  np.testing.assert_array_equal(out, explained)
  image, *_ = evaluated.frame({"image": encoded, "labels": [0]}, 0, 32)
  np.testing.assert_array_equal(image, explained)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("encoding", ["jpeg", "png"])
@pytest.mark.parametrize("size", [(48, 32), (300, 200), (1_200, 800)])
def test_evaluation_and_explain_resize_alike(
  encoding, orientation, size, tmp_path
):
  """A picture enlarged, made smaller, and decoded at a smaller scale."""
  photo = photos.load("coffee.png", size)
  encoded = photos.with_orientation(photo, orientation, encoding)
  (tmp_path / "picture").write_bytes(encoded)
  image, *_ = evaluated.frame({"image": encoded, "labels": [0]}, 0, 64)
  shape = image.shape[:2]
  assert shape == ((96, 64) if orientation == 6 else (64, 96))
  explained = image_files.read(tmp_path / "picture", shape)
  np.testing.assert_array_equal(image, explained)
  np.testing.assert_array_equal(
    geometry.decode_image(encoded, 64),
    explained[shape[0] // 2 - 32 :, shape[1] // 2 - 32 :][:64, :64],
  )


def test_a_part_as_large_as_it_will_be_is_exact(photo):
  """Colours are smoothed as Pillow smooths them, which is slower."""
  encoded = photos.encode(photo)
  part = crop(encoded, (11, 7, 64, 64), 64)
  np.testing.assert_array_equal(part, whole(encoded)[7:71, 11:75])


def test_16_bits_of_grey_with_a_transparent_level_are_white_there():
  clear = files.chunk(b"tRNS", b"\x02\x02")
  levels = np.array([[257 * 9, 257 * 2]], ">u2")
  encoded = files.png(16, 0, [levels.tobytes()], 2, clear)
  assert whole(encoded)[0].tolist() == [[9] * 3, [255] * 3]


@pytest.mark.parametrize(
  "clear", [b"", b"\0", b"\1\2\3" * 100], ids=["none", "short", "long"]
)
@pytest.mark.parametrize("kind", [0, 2, 3])
def test_broken_transparency_is_no_other_error_and_no_warning(kind, clear):
  chunks = files.chunk(b"PLTE", bytes(range(9))) if kind == 3 else b""
  row = b"\1\2\3\4\5\6" if kind == 2 else b"\1\2"
  encoded = files.png(8, kind, [row], 2, chunks + files.chunk(b"tRNS", clear))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    try:
      assert whole(encoded).shape == (1, 2, 3)
    except decode.DecodeError as error:
      assert "broken: " in str(error)


def test_alpha_of_a_palette_is_put_on_white():
  chunks = files.chunk(b"PLTE", bytes([0, 0, 0, 255, 0, 0, 0, 0, 255]))
  chunks += files.chunk(b"tRNS", bytes([255, 0, 128]))
  encoded = files.png(8, 3, [bytes([0, 1, 2])], 3, chunks)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    pixels = whole(encoded)[0]
  assert pixels[:2].tolist() == [[0, 0, 0], [255, 255, 255]]
  np.testing.assert_allclose(pixels[2], [127, 127, 255], atol=1)


def test_grey_with_alpha_multiplied_into_it_is_put_on_white():
  """Pillow's mode La, which it converts to nothing but LA."""
  # The tag of the second channel: 2 is alpha, 1 is alpha multiplied into it.
  encoded = photos.encode(np.uint8([[[200, 255], [0, 0]]]), "tiff").replace(
    struct.pack("<HHLL", 338, 3, 1, 2), struct.pack("<HHLL", 338, 3, 1, 1)
  )
  assert PIL.Image.open(io.BytesIO(encoded)).mode == "La"
  assert whole(encoded)[0].tolist() == [[200] * 3, [255] * 3]


def test_the_header_of_a_png_is_read_without_its_pixels(photo, monkeypatch):
  texts = PIL.PngImagePlugin.PngInfo()
  texts.add_text("Comment", "XML:com.adobe.xmp is not here")
  encoded = photos.encode(photo, "png", pnginfo=texts)
  with monkeypatch.context() as patched:
    patched.setattr(PIL.PngImagePlugin.PngImageFile, "load", None)
    header = decode.read_header(encoded)
    turned = decode.read_header(photos.with_orientation(photo, 6, "png"))
  assert header.size == (120, 80) and header.turn is None
  assert turned.size == (80, 120)
  np.testing.assert_array_equal(whole(encoded), np.asarray(photo))


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
  image = decode.scaled(header, (85, 64))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert part.shape == (224, 224, 3)
  assert image.size == (85, 64)
  assert peak < 40e6


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
  for side in (400, 399, 200, 100, 99, 51):
    crop(encoded, (0, 0, side, side), 50)
  assert scales == [8, 4, 4, 2, 1, 1]


OTHERS = {
  "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
  "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40),
  "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
  "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
  "PDF": b"%PDF-1.7\n",
  "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
}


def mask_inside(encoded):
  picture = decode.read_header(photos.encode(np.zeros((9, 9), np.uint8), "png"))
  geometry.stored_mask(decode.read_header(encoded), picture)


def trained(encoded):
  out = np.empty((8, 8, 3), np.uint8)
  Augmentation(8, crop="random_resized")(encoded, np.random.default_rng(0), out)


READERS = {
  "training": trained,
  "evaluation": lambda encoded: geometry.decode_image(encoded, 8),
  "mask": mask_inside,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_read_is_told_by_its_name(kind, reader):
  with pytest.raises(
    decode.DecodeError, match=f"is no picture of BMP, .*it is .*{kind}.*Save it"
  ):
    READERS[reader](OTHERS[kind])


@pytest.mark.parametrize("encoding", ["avif", "ico", "jpeg2000", "tga", "icns"])
def test_what_pillow_could_read_is_refused_by_every_reader(
  encoding, tmp_path, photo
):
  if encoding == "avif" and not PIL.features.check("avif"):
    pytest.skip("this Pillow writes no AVIF")
  encoded = photos.encode(photo.resize((64, 64)), encoding)
  path = tmp_path / "photo.jpg"
  path.write_bytes(encoded)
  for read in READERS.values():
    with pytest.raises(decode.DecodeError, match="is no picture"):
      read(encoded)
  with pytest.raises(ValueError, match=r"photo\.jpg must be .*is no picture"):
    image_files.read(path)


def test_reading_starts_no_program(tmp_path, monkeypatch):
  """Pillow hands EPS to Ghostscript, whatever the file is called."""
  mark = tmp_path / "started"
  program = tmp_path / "gs"
  program.write_text(f"#!/bin/sh\necho $0 >> {mark}\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", None)
  path = tmp_path / "x.jpg"
  path.write_bytes(OTHERS["PostScript"])
  for read in READERS.values():
    with pytest.raises(decode.DecodeError, match="is no picture"):
      read(path.read_bytes())
  with pytest.raises(ValueError, match="is no picture"):
    image_files.read(path)
  assert not mark.exists()
  # The trap works: without a list of formats, it is started.
  with pytest.raises(OSError), PIL.Image.open(path) as image:
    image.load()
  assert mark.read_text()


def test_every_opening_of_a_picture_names_its_formats():
  for path in pathlib.Path(decode.__file__).parents[1].rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        "Image.open"
      ):
        names = [keyword.arg for keyword in node.keywords]
        assert "formats" in names, f"{path}, line {node.lineno}"


def test_endings_are_lower_case_and_formats_have_one():
  assert {"." + suffix.strip(".").lower() for suffix in decode.SUFFIXES} == set(
    decode.SUFFIXES
  )
  known = PIL.Image.registered_extensions()
  assert {known[suffix] for suffix in decode.SUFFIXES} == set(decode.FORMATS)


def test_too_many_pixels_are_an_error_and_no_warning(monkeypatch, photo):
  with monkeypatch.context() as patched:
    patched.setattr(decode, "MAX_PIXELS", 120 * 80 - 1)
    with pytest.raises(decode.DecodeError, match="120x80 pixels and must have"):
      whole(photos.encode(photo))
  monkeypatch.setattr(decode, "MAX_PIXELS", 100)
  monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
  # A little above the limit, where Pillow warns, and far above it.
  for side in (12, 40):
    with pytest.raises(decode.DecodeError, match="make it smaller"):
      whole(photos.encode(np.zeros((side, side), np.uint8), "png"))
