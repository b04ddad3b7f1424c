"""Picture files of every kind become the same RGB, or are refused by name."""

import os

import numpy as np
import pytest
from PIL import Image

from gc_jax.data import decode, image_files


@pytest.fixture
def ramp():
  """Grey 0..255, 16 rows of it."""
  return np.tile(np.arange(256, dtype=np.uint8), (16, 1))


@pytest.fixture
def save(tmp_path):
  def save(image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name

  return save


def rgb(grey):
  return np.repeat(grey[..., None], 3, axis=2)


def test_photographs_are_read_as_pillow_shows_them(photographs):
  path = photographs / "rocket.jpg"
  with Image.open(path) as image:
    expected = np.asarray(image.convert("RGB"))
  read = image_files.read(path)
  assert read.shape == (427, 640, 3) and read.dtype == np.uint8
  np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK"])
def test_every_colour_mode_of_a_grey_ramp_is_the_ramp(ramp, save, mode):
  # From grey, a palette holds the 256 levels of the ramp; from RGB it dithers.
  image = Image.fromarray(ramp).convert("P")
  if mode != "P":
    image = image.convert("RGB").convert(mode)
  assert image.mode == mode
  name = "ramp.tif" if mode == "CMYK" else "ramp.png"
  read = image_files.read(save(image, name))
  np.testing.assert_array_equal(read, rgb(ramp))


def test_black_and_white_is_0_and_255(ramp, save):
  image = Image.fromarray(ramp >= 128)
  assert image.mode == "1"
  read = image_files.read(save(image, "bits.png"))
  np.testing.assert_array_equal(read, rgb(np.where(ramp >= 128, 255, 0)))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_keep_their_range(ramp, save, name):
  deep = Image.fromarray(ramp.astype(np.uint16) * 257)
  np.testing.assert_array_equal(image_files.read(save(deep, name)), rgb(ramp))


def test_the_other_byte_order_is_the_same_picture(ramp, save):
  deep = (ramp.astype(np.uint16) * 257).astype(">u2")
  image = Image.frombytes("I;16B", ramp.shape[::-1], deep.tobytes())
  read = image_files.read(save(image, "deep.tif"))
  np.testing.assert_array_equal(read, rgb(ramp))


def test_floats_in_0_to_1_are_read_and_others_refused(ramp, save):
  floats = ramp.astype(np.float32) / 255
  path = save(Image.fromarray(floats), "floats.tif")
  np.testing.assert_array_equal(image_files.read(path), rgb(ramp))
  path = save(Image.fromarray(floats * 300), "wide.tif")
  with pytest.raises(ValueError, match=r"wide\.tif.*span 0 to 300, and must"):
    image_files.read(path)
  floats[3, 3] = np.nan
  path = save(Image.fromarray(floats), "nan.tif")
  with pytest.raises(ValueError, match=r"nan\.tif.*span nan to nan"):
    image_files.read(path)


def test_transparent_pixels_are_put_on_white_as_in_training(ramp, save):
  image = Image.fromarray(rgb(ramp))
  alpha = ramp[:, ::-1].copy()
  image.putalpha(Image.fromarray(alpha))
  path = save(image, "alpha.png")
  opacity = alpha[..., None] / 255
  by_hand = opacity * rgb(ramp) + (1 - opacity) * 255
  np.testing.assert_allclose(image_files.read(path), by_hand, atol=1)
  palette = Image.fromarray(ramp).convert("P")
  path = save(palette, "palette.png", transparency=bytes([0] * 256))
  assert (image_files.read(path) == 255).all()
  for name in ("alpha.png", "palette.png"):
    path = path.with_name(name)
    trained = decode.whole(decode.read_header(path.read_bytes()))
    np.testing.assert_array_equal(image_files.read(path), np.asarray(trained))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_any_way_gives_the_upright_picture(save, orientation):
  upright = np.zeros((16, 32, 3), np.uint8)
  upright[:8, :16] = 255  # the top left quarter
  turned = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: upright.swapaxes(0, 1)[::-1],
    7: upright.swapaxes(0, 1)[::-1, ::-1],
    8: upright.swapaxes(0, 1)[:, ::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  image = Image.fromarray(np.ascontiguousarray(turned))
  path = save(image, "photo.jpg", exif=exif, quality=95)
  # Flat blocks of 8 pixels survive JPEG to a level or two.
  np.testing.assert_allclose(image_files.read(path), upright, atol=2)


@pytest.mark.parametrize("name", ["two.gif", "two.png", "two.tif", "two.webp"])
def test_the_first_frame_of_several_is_read(save, name):
  frames = [Image.new("RGB", (9, 7), color) for color in ("white", "black")]
  lossless = {"lossless": True} if name.endswith("webp") else {}
  path = save(
    frames[0], name, save_all=True, append_images=frames[1:], **lossless
  )
  with Image.open(path) as image:
    assert image.n_frames == 2
  np.testing.assert_array_equal(image_files.read(path), np.full((7, 9, 3), 255))


def test_two_photographs_in_one_file_of_a_camera_are_its_first(save):
  frames = [Image.new("RGB", (16, 16), color) for color in ("white", "black")]
  path = save(
    frames[0], "both.mpo", format="MPO", save_all=True, append_images=frames[1:]
  )
  np.testing.assert_array_equal(image_files.read(path), 255)


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: b"",
    lambda data: b"no picture",
    lambda data: data[: len(data) // 2],
    lambda data: data[:100] + bytes(100) + data[200:],
  ],
  ids=["empty", "text", "truncated", "overwritten"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, photographs, damage):
  path = tmp_path / "coffee.png"
  path.write_bytes(damage((photographs / "coffee.png").read_bytes()))
  with pytest.raises(
    ValueError,
    match=r"coffee\.png must be a picture \(BMP.*\); it cannot be read: .*"
    r"Mend it or leave it out\.",
  ):
    image_files.read(path)


def test_a_folder_named_as_a_file_is_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match=r"must be a picture .*directory"):
    image_files.read(tmp_path)


def test_a_format_that_starts_programs_is_not_opened(tmp_path):
  path = tmp_path / "page.png"
  path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
  with Image.open(path) as image:
    assert image.format == "EPS"  # which Pillow hands to Ghostscript
  with pytest.raises(ValueError, match=r"page\.png must .* it is PostScript"):
    image_files.read(path)


def test_a_folder_stands_for_its_pictures_sorted_and_once(tmp_path, ramp):
  for name in ["b.PNG", "a.jpg", "e.JFIF", "f.jpe", ".hidden.png", "c.txt"]:
    Image.fromarray(ramp).save(tmp_path / name, format="PNG")
  (tmp_path / "d.png").mkdir()
  named = tmp_path / "c.txt"  # a picture, if someone says so
  found = image_files.find(
    [named, tmp_path / "d.png" / ".." / "b.PNG", tmp_path]
  )
  names = ["c.txt", "b.PNG", "a.jpg", "e.JFIF", "f.jpe"]
  assert [path.name for path in found] == names


def test_names_without_pictures_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"nothing does not exist\. Check the"):
    image_files.find([tmp_path / "nothing"])
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(ValueError, match=r"must hold \.bmp, .* has none"):
    image_files.find([tmp_path])


def test_resizing_keeps_what_is_there(ramp, save):
  picture = rgb(ramp)
  path = save(Image.fromarray(picture), "ramp.png")
  np.testing.assert_array_equal(image_files.read(path, (16, 256)), picture)
  smaller = image_files.read(path, (8, 128))
  # Pairs of columns, 2i and 2i + 1, in smooth averages; the ends lean inwards.
  expected = rgb(np.tile(2 * np.arange(128) + 0.5, (8, 1)))
  np.testing.assert_allclose(smaller, expected, atol=1)


def test_the_shorter_side_is_set_and_the_aspect_kept():
  sizes = [(300, 450), (450, 300), (64, 64), (1411, 1411), (25, 14)]
  shapes, multiple = image_files.model_sizes(sizes, 64, max_shapes=8)
  assert multiple == 1
  assert shapes == [(64, 96), (96, 64), (64, 64), (64, 64), (114, 64)]
  assert image_files.model_sizes(sizes, 0, max_shapes=8) == (sizes, 1)
  # Pictures of one shape are one shape, however many they are.
  assert image_files.model_sizes(4 * sizes, 64, 4) == (4 * shapes, 1)


def test_too_many_shapes_are_rounded_to_few():
  sizes = [(100, 100 + extra) for extra in range(100)]
  shapes, multiple = image_files.model_sizes(sizes, 64, max_shapes=8)
  assert multiple == 8
  assert set(shapes) == {(64, 64 + 8 * i) for i in range(9)}
  for (height, width), (tall, wide) in zip(sizes, shapes, strict=True):
    assert abs(wide / tall - width / height) <= 1 / 16 + 1 / 128
  shapes, multiple = image_files.model_sizes(sizes, 0, max_shapes=8)
  assert multiple == 32
  assert set(shapes) == {(96, 32 * i) for i in range(3, 7)}


def test_the_smallest_pictures_keep_a_pixel():
  sizes = [(side, 1) for side in range(1, 5)]
  assert image_files.model_sizes(sizes, 1, max_shapes=1)[0] == sizes
  shapes, _ = image_files.model_sizes(sizes, 0, max_shapes=1)
  assert set(shapes) == {(32, 32)}


def test_a_picture_that_would_fill_the_memory_is_refused():
  with pytest.raises(
    ValueError,
    match=r"one of 9000 by 1 would be 2016000 by 224\. Crop it, or choose a",
  ):
    image_files.model_sizes([(1, 9000)], 224, max_shapes=8)


def test_a_name_that_is_no_utf8_is_told_before_anything_is_read(tmp_path):
  path = tmp_path / os.fsdecode(b"caf\xe9.png")
  path.touch()
  for names in ([path], [tmp_path]):
    with pytest.raises(ValueError, match=r"must be UTF-8.*caf\\udce9\.png"):
      image_files.find(names)
