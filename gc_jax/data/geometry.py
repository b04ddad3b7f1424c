"""Where the pixels of an evaluated picture, its masks and boxes end up.

Which evaluation uses which (METHOD: protocols):

| evaluation | geometry |
|---|---|
| top-1 of ImageNet, both protocols | `resize_and_crop`, 256 then 224 |
| F1 of COCO, in the release | `squash`, to 224 |
| maps, `paper` | `resize_and_crop`: image and annotation alike |
| maps, `release`, `corrected` | `frame_size`: image scaled, annotation as is |

`resize_and_crop` is torchvision's Resize (shorter side, bilinear with
antialias) and CenterCrop, to the pixel.

An annotation keeps its own pixels, and pictures differ in how many they have.
Only its share on the grid of a map (`on_grid`) goes to the device.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import scipy.sparse
from jaxtyping import Bool, Float32, Int, UInt8

from gc_jax.data import decode, pixels
from gc_jax.method.metrics import GridAnnotation

Grid = tuple[int, int]  # h, w


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
  """
  header = decode.read_header(encoded)
  return np.asarray(picture(header, image_size, resize_px, squash))


def decode_object_masks(
  record: Mapping[str, Any],
  target: int,
  image_size: int,
  resize_px: int = 0,
  squash: bool = False,
) -> list[Bool[np.ndarray, "S S"]]:
  """Returns pixels of each object of a class, fitted as `decode_image` does."""
  header = decode.read_header(record["image"])
  found = []
  for mask in object_masks(record, header, target):
    if squash:
      mask = decode.resized(mask, (image_size, image_size))
    else:
      mask = resize_and_crop(mask, resize_px or image_size, image_size)
    found.append(np.asarray(mask) >= 128)
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
  image = decode.scaled(header, _resized_size(header.size, resize_px))
  return resize_and_crop(image, resize_px, image_size)


def resize_and_crop(
  image: PIL.Image.Image, resize_px: int, crop_px: int
) -> PIL.Image.Image:
  """Scales the shorter side to `resize_px`, keeps the centre of `crop_px`.

  The longer side is cut to whole pixels, the place of the crop rounded, as
  torchvision does.
  """
  width, height = _resized_size(image.size, resize_px)
  image = decode.resized(image, (width, height))
  left, top = round((width - crop_px) / 2), round((height - crop_px) / 2)
  return image.crop((left, top, left + crop_px, top + crop_px))


def _resized_size(
  size: tuple[int, int], shorter_side_px: int
) -> tuple[int, int]:
  """Returns (width, height) once the shorter side has `shorter_side_px`."""
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
  """Returns (width, height) at which a model gets a picture of such a size.

  The shorter side gets `shorter_side_px` (the release: 448), the aspect stays.
  `round_px` rounds both sides to multiples, which changes the aspect a little;
  0 = do not (the release).

  Source: the release's evaluation (METHOD A2): shortest side resized, batch
    of one, annotation in its own pixels.
  """
  sides = _resized_size(size, shorter_side_px)
  width, height = (to_multiple(side, round_px or 1) for side in sides)
  return width, height


def to_multiple(side: int, unit: int) -> int:
  """Returns the multiple of `unit` next to a side; one of them at least."""
  return max(1, round(side / unit)) * unit


def object_masks(
  record: Mapping[str, Any],
  header: decode.Header,
  target: int,
  border: str = "clipped",
) -> list[PIL.Image.Image]:
  """Returns the mask of each object of a class, upright, of 0 and 255.

  An object without a mask is its filled box: the pixels that a box of whole
  pixels was normalised from, so that VOC's inclusive corners are exact. At
  border "release" it is what the release's programs make of the corners of an
  XML file: `mask[ymin - 1 : ymax, xmin - 1 : xmax]`, so that a corner of 0
  slices from the last pixel on, and nothing is left of most such boxes.

  Raises:
    DecodeError: if a mask cannot be read, or does not fit the picture.
  """
  objects = record.get("objects")
  if objects is None:
    return []
  encoded_masks, sliced = objects.get("mask"), objects.get("sliced")
  found = []
  for i, label in enumerate(objects["label"]):
    if int(label) != target:
      continue
    encoded = b"" if encoded_masks is None else encoded_masks[i]
    if len(encoded):
      try:
        inside = stored_mask(decode.read_header(encoded), header)
      except decode.DecodeError as error:
        raise decode.DecodeError(f"the mask of object {i}: {error}") from error
    elif border == "release" and sliced is not None and len(sliced[i]):
      inside = _box_pixels(sliced[i], *header.stored_size)
    else:
      inside = _box_pixels(objects["bbox"][i], *header.stored_size)
    mask = PIL.Image.fromarray(inside * np.uint8(255))
    found.append(decode.turned(mask, header.turn))
  return found


def stored_mask(
  mask: decode.Header, picture: decode.Header
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of the object, in the picture's stored frame.

  A mask with an orientation of its own is put upright by it, into the frame of
  the upright picture. Of others the size tells the frame: one of the stored
  size is turned along with the picture, one of only the upright size is upright
  already. Where both fit (a square, a half turn, a mirror), it is stored.

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
  inside = pixels.inside(decode.stored(mask))
  if is_stored or mask.turn == picture.turn:
    return inside
  upright = decode.turned(PIL.Image.fromarray(inside), mask.turn)
  return np.asarray(decode.turned_back(upright, picture.turn))


def _sizes(header: decode.Header) -> str:
  words = "{}x{} pixels".format(*header.size)
  if header.turn is None:
    return words
  return "{} upright and {}x{} as stored".format(words, *header.stored_size)


def _box_pixels(box: Any, width: int, height: int) -> Bool[np.ndarray, "H W"]:
  scale = np.array([height, width, height, width])
  ymin, xmin, ymax, xmax = np.round(np.asarray(box) * scale).astype(int)
  inside = np.zeros((height, width), bool)
  # A box thinner than a pixel still covers one, at the far borders too.
  ymin, xmin = min(ymin, height - 1), min(xmin, width - 1)
  inside[ymin : max(ymax, ymin + 1), xmin : max(xmax, xmin + 1)] = True
  return inside


def grid_name(grid: Grid) -> str:
  """Returns the key of a grid in a `PairBatch`."""
  return f"{grid[0]}x{grid[1]}"


def on_grid(
  object_mask: Bool[np.ndarray, "H W"],
  dilated: Bool[np.ndarray, "H W"],
  grid: Grid,
) -> GridAnnotation:
  """Returns what maps of h x w cells need of an annotation.

  Maps are enlarged bilinearly, pixel centres aligned, as `metrics.upsample`
  does; a map finer than the annotation is sampled, without smoothing. `dilated`
  is the mask from `dilate`.
  """
  height, width = object_mask.shape
  rows, columns = _axis(grid[0], height), _axis(grid[1], width)

  def pulled_back(mask):
    return rows.weights @ (columns.weights @ mask.T.astype(np.float32)).T

  return GridAnnotation(
    inside=pulled_back(object_mask),
    near=pulled_back(dilated),
    everywhere=np.outer(rows.weights.sum(1), columns.weights.sum(1)),
    rows=rows.peaks,
    columns=columns.peaks,
    near_peak=dilated[np.ix_(rows.peak_pixels, columns.peak_pixels)],
  )


def dilate(
  object_mask: Bool[np.ndarray, "H W"], tolerance_px: float
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels nearer to the mask than a tolerance (Euclidean, strict).

  As `metrics.dilate`, in time that does not depend on the tolerance.
  """
  if not object_mask.any():
    return np.zeros_like(object_mask)
  outside = (~object_mask).astype(np.uint8)
  distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  # Squares of distances between pixels are whole numbers.
  return np.rint(distance.astype(np.float64) ** 2) < tolerance_px**2


class _Axis(NamedTuple):
  """One axis of the enlargement of n cells to N pixels."""

  weights: scipy.sparse.csr_array  # [n N], of each cell in each pixel
  peaks: Float32[np.ndarray, "r"]  # [2n]: an enlarged map is linear between
  peak_pixels: Int[np.ndarray, "r"]  # the pixels there


@functools.lru_cache(maxsize=1024)
def _axis(cells: int, num_pixels: int) -> _Axis:
  pixel = np.arange(num_pixels)
  at = np.clip((pixel + 0.5) * cells / num_pixels - 0.5, 0, cells - 1)
  low = np.floor(at).astype(int)
  high = np.minimum(low + 1, cells - 1)
  share = at - low
  weights = scipy.sparse.coo_array(
    (
      np.concatenate([1 - share, share]).astype(np.float32),
      (np.concatenate([low, high]), np.concatenate([pixel, pixel])),
    ),
    shape=(cells, num_pixels),
  )
  # The first and the last of the pixels between two cells.
  first = np.flatnonzero(np.diff(low, prepend=-1))
  last = np.append(first[1:], num_pixels) - 1
  peaks = np.unique(np.concatenate([first, last]))
  peaks = np.pad(peaks, (0, 2 * cells - len(peaks)), mode="edge")
  return _Axis(weights.tocsr(), at[peaks].astype(np.float32), peaks)
