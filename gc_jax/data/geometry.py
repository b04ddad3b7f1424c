"""Where the pixels of an evaluated picture, its masks and boxes end up.

Which evaluation uses which (METHOD: protocols):

| evaluation | geometry |
|---|---|
| top-1 of ImageNet, both protocols | `resize_and_crop`, 256 then 224 |
| F1 of COCO, `release` | `squash`, to 224 |
| maps, `paper` | `resize_and_crop`: image and annotation alike |
| maps, `release` | `frame_size`: image scaled, annotation as it is |

`resize_and_crop` is torchvision's Resize (shorter side, bilinear with
antialias) and CenterCrop, to the pixel.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool, UInt8

from gc_jax.data import decode, masks


def decode_image(
  encoded: bytes, image_size: int, resize_px: int = 0, squash: bool = False
) -> UInt8[np.ndarray, "S S 3"]:
  """Decodes any picture to a square, as for evaluation.

  Args:
    encoded: the picture.
    image_size: side of the square, in pixels.
    resize_px: shorter side of the picture before its centre is cropped; 0 =
      `image_size`.
    squash: instead, the whole picture is scaled to the square.

  Raises:
    DecodeError: if it cannot be read.
  """
  header = decode.read_header(encoded)
  return np.asarray(picture(header, image_size, resize_px, squash))


def decode_object_masks(
  record: Mapping[str, Any],
  image_size: int,
  resize_px: int = 0,
  squash: bool = False,
  only: int | None = None,
) -> list[tuple[int, Bool[np.ndarray, "S S"]]]:
  """Returns (class, pixels) of each object, fitted as `decode_image` does.

  Args:
    record: of a `Dataset`.
    image_size: see `decode_image`.
    resize_px: see `decode_image`.
    squash: see `decode_image`.
    only: the class whose objects are decoded; None = all.

  Raises:
    DecodeError: if a mask cannot be read.
  """
  header = decode.read_header(record["image"])
  found = []
  for label, mask in object_masks(record, header, only):
    if squash:
      square = (image_size, image_size)
      mask = mask.resize(square, PIL.Image.Resampling.BILINEAR)
    else:
      mask = resize_and_crop(mask, resize_px or image_size, image_size)
    found.append((label, np.asarray(mask) >= 128))
  return found


def picture(
  header: decode.Header,
  image_size: int,
  resize_px: int = 0,
  squash: bool = False,
) -> PIL.Image.Image:
  """Returns a picture as a square, see `decode_image`."""
  resize_px = resize_px or image_size
  if squash:
    return decode.scaled(header, (image_size, image_size))
  image = decode.scaled(header, resized_size(header.size, resize_px))
  return resize_and_crop(image, resize_px, image_size)


def resize_and_crop(
  image: PIL.Image.Image, resize_px: int, crop_px: int
) -> PIL.Image.Image:
  """Scales the shorter side to `resize_px`, keeps the centre of `crop_px`.

  The longer side is cut to whole pixels, the place of the crop rounded, as
  torchvision does.
  """
  width, height = resized_size(image.size, resize_px)
  if image.size != (width, height):
    image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
  left, top = round((width - crop_px) / 2), round((height - crop_px) / 2)
  return image.crop((left, top, left + crop_px, top + crop_px))


def resized_size(
  size: tuple[int, int], shorter_side_px: int
) -> tuple[int, int]:
  """Returns (width, height) once the shorter side has `shorter_side_px`.

  Raises:
    DecodeError: if a strip would become larger than may be decoded.
  """
  shorter = min(size)
  width, height = (int(shorter_side_px * side / shorter) for side in size)
  if width * height > decode.MAX_PIXELS:
    raise decode.DecodeError(
      f"it has {size[0]}x{size[1]} pixels, a strip, and would have "
      f"{width}x{height} once its shorter side has {shorter_side_px}; at most "
      f"{decode.MAX_PIXELS:,} are decoded. Cut it into pieces"
    )
  return width, height


def frame_size(
  size: tuple[int, int], shorter_side_px: int, round_px: int = 0
) -> tuple[int, int]:
  """Returns (width, height) at which a model gets a whole picture.

  Args:
    size: (width, height) of the picture.
    shorter_side_px: of the image; its aspect stays.
    round_px: both sides become the nearest multiple of this, for which the
      aspect gives way a little; 0 = they stay.

  Raises:
    DecodeError: if a strip would become larger than may be decoded.
  """
  sides = resized_size(size, shorter_side_px)
  if not round_px:
    return sides
  width, height = (max(1, round(n / round_px)) * round_px for n in sides)
  return width, height


def object_masks(
  record: Mapping[str, Any], header: decode.Header, only: int | None = None
) -> list[tuple[int, PIL.Image.Image]]:
  """Returns (class, mask) of each object of a record, upright: 0 and 255.

  An object without a mask is its filled box: the pixels that a box of whole
  pixels was normalised from, so that VOC's inclusive corners are exact.

  Args:
    record: of a `Dataset`.
    header: of its picture.
    only: the class whose objects are decoded; None = all.

  Raises:
    DecodeError: if a mask cannot be read, or is none of this picture.
  """
  objects = record.get("objects")
  if objects is None:
    return []
  encoded_masks = objects.get("mask")
  found = []
  for i, label in enumerate(objects["label"]):
    if only is not None and int(label) != only:
      continue
    encoded = b"" if encoded_masks is None else encoded_masks[i]
    if len(encoded):
      try:
        inside = stored_mask(decode.read_header(encoded), header)
      except decode.DecodeError as error:
        raise decode.DecodeError(f"the mask of object {i}: {error}") from error
    else:
      inside = _filled_box(objects["bbox"][i], *header.stored_size)
    mask = PIL.Image.fromarray(inside * np.uint8(255))
    found.append((int(label), decode.turned(mask, header.turn)))
  return found


def stored_mask(
  mask: decode.Header, picture: decode.Header
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of the object, in the picture's stored frame.

  A mask says by its size which frame it is in. With the size that is stored,
  it is turned along with the picture; with that of the upright picture alone,
  it is upright already. Where both fit (a square, a half turn, a mirror), it is
  taken for the stored one.

  A mask with an orientation of its own says how it is put upright, which is
  where the picture is upright too.

  Args:
    mask: what is inside, see `gc_jax.data.masks`.
    picture: that it is of.

  Raises:
    DecodeError: if the mask cannot be read, shows more than one object, or
      fits in neither frame.
  """
  is_stored = mask.turn is None and mask.size == picture.stored_size
  if not is_stored and mask.size != picture.size:
    raise decode.DecodeError(
      f"a mask must be as large as its picture, {_sizes(picture)}, and is "
      f"{_sizes(mask)}"
    )
  inside = masks.inside(mask)
  if is_stored or mask.turn == picture.turn:
    return inside
  upright = decode.turned(PIL.Image.fromarray(inside), mask.turn)
  return np.asarray(decode.turned_back(upright, picture.turn))


def _sizes(header: decode.Header) -> str:
  width, height = header.size
  words = f"{width}x{height} pixels"
  if header.turn is None:
    return words
  width, height = header.stored_size
  return f"{words} upright and {width}x{height} as stored"


def _filled_box(box: Any, width: int, height: int) -> Bool[np.ndarray, "H W"]:
  scale = np.array([height, width, height, width])
  ymin, xmin, ymax, xmax = np.round(np.asarray(box) * scale).astype(int)
  pixels = np.zeros((height, width), bool)
  # A box thinner than a pixel still covers one.
  pixels[ymin : max(ymax, ymin + 1), xmin : max(xmax, xmin + 1)] = True
  return pixels
