"""A mask is read by its levels, or refused with what it has."""

import cv2
import numpy as np
import PIL.Image
import pytest

from gc_jax.data import decode, pixels
from tests.data import photos
from tests.data import picture_files as files

INSIDE = np.zeros((40, 48), bool)
INSIDE[10:24, 12:25] = True
# As VOC marks the outline of an object, to be ignored.
BORDER = cv2.dilate(INSIDE.astype(np.uint8), np.ones((5, 5))) > INSIDE


def save(image, encoding="png", **options):
  return photos.encode(image, encoding, **options)


def inside(encoded):
  return pixels.inside(decode.stored(decode.read_header(encoded)))


def palette(numbers, colors):
  """A picture of numbers, whose colours are number -> (red, green, blue)."""
  image = PIL.Image.fromarray(numbers.astype(np.uint8)).convert("L")
  image = PIL.Image.frombytes("P", image.size, image.tobytes())
  table = np.zeros((256, 3), np.uint8)
  for number, color in colors.items():
    table[number] = color
  image.putpalette(table.tobytes())
  return image


def levels(*values, dtype=np.uint8):
  """Outside, inside, and where there is a third, the border."""
  values = [*values, values[0]][:3]
  return np.choose(INSIDE + 2 * BORDER, values).astype(dtype)


MAROON, CREAM = (128, 0, 0), (224, 224, 192)
ALPHA = INSIDE * np.uint8(255)
TWO_LEVELS = {
  "one bit": save(INSIDE),
  "one bit of TIFF": save(INSIDE, "tiff"),
  "0 and 255": save(levels(0, 255)),
  "0 and 1": save(levels(0, 1)),
  "0 and 8": save(levels(0, 8)),
  "2 bits": files.png(2, 0, files.packed(levels(0, 85), 2), 48),
  "16 bits, 65535": save(levels(0, 65_535, dtype=np.uint16)),
  "16 bits, 1": save(levels(0, 1, dtype=np.uint16)),
  "32 bits, 1": save(levels(0, 1, dtype=np.int32), "tiff"),
  "32 bits, 70000": save(levels(0, 70_000, dtype=np.int32), "tiff"),
  "floats": save(levels(0, 1, dtype=np.float32), "tiff"),
  "grey and alpha": save(np.dstack([levels(0, 255), ALPHA])),
  "grey, all opaque": save(np.dstack([levels(0, 1), np.full_like(ALPHA, 255)])),
  "a transparent level": save(levels(7, 9), transparency=7),
  "RGB, white": save(np.repeat(levels(0, 255)[..., None], 3, 2)),
  "RGB, 1": save(np.repeat(levels(0, 1)[..., None], 3, 2), "bmp"),
  "RGB, red": save(levels(0, 255)[..., None] * np.uint8([1, 0, 0])),
  "CMYK": save(
    PIL.Image.fromarray(INSIDE).convert("RGB").convert("CMYK"), "tiff"
  ),
  "RGBA, white": save(np.dstack([np.full((40, 48, 3), 255, np.uint8), ALPHA])),
  "RGBA, a black silhouette": save(
    np.dstack([np.zeros((40, 48, 3), np.uint8), ALPHA])
  ),
  "RGBA, red on green that is transparent": save(
    np.dstack(
      [np.where(INSIDE[..., None], *np.uint8([files.RED, files.GREEN])), ALPHA]
    ),
    "webp",
    lossless=True,
    exact=True,
  ),
  "palette of VOC": save(palette(levels(0, 15), {15: CREAM})),
  "palette of VOC, dark": save(palette(levels(0, 1), {1: MAROON})),
  "palette of GIF": save(palette(levels(0, 1), {1: MAROON}), "gif"),
  "palette without black": save(
    palette(levels(0, 1), {0: files.BLUE, 1: files.GREEN})
  ),
  "black elsewhere in the palette": save(
    palette(levels(1, 2), {0: CREAM, 2: MAROON})
  ),
  "palette, all black": save(palette(levels(0, 5), {})),
  "palette of greys": save(palette(levels(3, 0), {0: (9, 9, 9)})),
  "palette, transparent": save(
    palette(levels(1, 0), {0: MAROON, 1: CREAM}), transparency=1
  ),
}


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_of_two_levels_one_is_inside(name):
  found = inside(TWO_LEVELS[name])
  assert found.dtype == bool
  np.testing.assert_array_equal(found, INSIDE)


def several(image, what):
  return save(image, "png" if image.dtype != np.int32 else "tiff"), what


SEVERAL = {
  "class and border": several(levels(0, 8, 255), "0, 8 and 255"),
  "first class and border": several(levels(0, 1, 255), "0, 1 and 255"),
  "bright class and border": several(levels(0, 200, 255), "0, 200 and 255"),
  "border before the class": several(levels(0, 255, 100), "0, 100 and 255"),
  "trimap of pets": several(levels(2, 1, 3), "1, 2 and 3"),
  "trimap of mattes": several(levels(0, 255, 128), "0, 128 and 255"),
  "no level 0": several(levels(1, 255), "1 and 255"),
  "of 16 bits": several(
    levels(0, 24_000, 24_001, dtype=np.uint16), "0, 24000 and 24001"
  ),
  "of 32 bits": several(
    levels(0, 24_000, 65_535, dtype=np.int32), "0, 24000 and 65535"
  ),
  "below 0": several(levels(-1, 1, dtype=np.int32), "-1 and 1"),
  "palette of VOC": (
    save(palette(levels(0, 8, 255), {8: MAROON, 255: CREAM})),
    "0, 8 and 255",
  ),
  "palette of greys": (
    save(palette(levels(0, 1, 2), {1: (90, 90, 90), 2: (200, 200, 200)})),
    "0, 90 and 200",
  ),
  "palette, all black": (
    save(palette(levels(0, 1, 2), {})),
    "0, 1 and 2",
  ),
  "palette, two classes": (
    save(palette(levels(0, 1, 2), {1: MAROON, 2: CREAM}), "gif"),
    "0, 1 and 2",
  ),
  "colours": several(
    np.uint8([(0, 0, 0), MAROON, CREAM])[INSIDE + 2 * BORDER],
    "#000000, #800000 and #e0e0c0",
  ),
  "colours without black": several(
    np.uint8([files.BLUE, MAROON])[INSIDE * 1], "#0000ff and #800000"
  ),
  "opaque colours": several(
    np.dstack(
      [
        np.uint8([(9, 9, 9), MAROON, CREAM])[INSIDE + 2 * BORDER],
        np.uint8(255) * (INSIDE | BORDER),
      ]
    ),
    "#000000, #800000 and #e0e0c0",
  ),
  "many": several(
    np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 6)[None].repeat(9, 0),
    "0, 20, 40, 60, 80, 100, 120, 140 and 4 more",
  ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_objects_in_a_mask_are_refused_with_what_was_found(name):
  encoded, found = SEVERAL[name]
  with pytest.raises(
    decode.DecodeError,
    match=rf"a mask must have two .* inside; it has .*{found}\. Save one mask "
    "for each object, 0 outside and 255 inside",
  ):
    inside(encoded)


def test_a_border_around_a_thin_object_is_no_soft_edge():
  thin = np.zeros((20, 40), np.uint8)
  thin[5:12, 5:35] = 255
  thin[8:9, 7:33] = 8
  with pytest.raises(decode.DecodeError, match="it has 0, 8 and 255"):
    inside(save(thin))


def test_black_that_is_not_the_first_of_a_palette_may_mean_either():
  swapped = palette(levels(0, 1), {0: MAROON, 1: (0, 0, 0)})
  with pytest.raises(decode.DecodeError, match="black is number 1, and 0 is"):
    inside(save(swapped))


DISC = cv2.circle(np.zeros((320, 320), np.uint8), (150, 170), 100, 255, -1)
SMALL_DISC = cv2.resize(DISC, (40, 40), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
  "soft",
  [
    SMALL_DISC,
    cv2.GaussianBlur(DISC, (0, 0), 1),
    cv2.GaussianBlur(DISC, (0, 0), 6),
    cv2.resize(DISC, (37, 51), interpolation=cv2.INTER_LINEAR),
    cv2.resize(SMALL_DISC, (320, 320), interpolation=cv2.INTER_CUBIC),
  ],
  ids=["smaller", "blurred", "much blurred", "squashed", "larger"],
)
def test_soft_edges_are_halved_whatever_the_mode(soft):
  assert len(np.unique(soft)) > 3
  white = np.full((*soft.shape, 3), 255, np.uint8)
  for encoded in (
    save(soft),
    save(soft.astype(np.uint16) * 257),
    save(soft.astype(np.float32) / 255, "tiff"),
    save(PIL.Image.fromarray(soft).convert("RGB")),
    save(PIL.Image.fromarray(soft).convert("P")),
    save(np.dstack([white, soft])),
    save(np.dstack([white[..., 0], soft])),
  ):
    np.testing.assert_array_equal(inside(encoded), soft > 127)


def test_noise_of_jpeg_around_an_object_is_soft():
  noisy = decode.stored(decode.read_header(save(DISC, "jpeg", quality=80)))
  assert len(np.unique(noisy)) > 20
  np.testing.assert_array_equal(inside(save(noisy)), DISC > 127)


@pytest.mark.parametrize("level", [0, 1, 37, 255])
def test_a_mask_of_one_level_is_all_or_nothing(level):
  encoded = save(np.full((5, 7), level, np.uint8))
  assert (inside(encoded) == (level > 0)).all()
  encoded = save(np.full((5, 7, 3), level, np.uint8))
  assert (inside(encoded) == (level > 0)).all()


def test_a_mask_that_is_all_transparent_has_nothing_inside():
  encoded = save(np.zeros((5, 7, 4), np.uint8))
  assert not inside(encoded).any()


def test_a_broken_mask_is_told():
  encoded = save(np.repeat(levels(0, 255), 9, 0))
  with pytest.raises(decode.DecodeError, match=r"broken: .*truncated"):
    inside(encoded[: len(encoded) // 2])


def test_of_vocs_palette_what_is_to_be_ignored_is_no_object():
  """Of an object that is nothing but border, say."""
  encoded = save(palette(levels(0, 255), {255: CREAM}))
  with pytest.raises(decode.DecodeError, match="255 are pixels to be ignored"):
    inside(encoded)
  other = save(palette(levels(0, 255), {255: MAROON}))
  np.testing.assert_array_equal(inside(other), INSIDE)
