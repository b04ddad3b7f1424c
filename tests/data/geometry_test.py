"""What an evaluated picture and its annotation are cut to."""

import io

import numpy as np
import PIL.Image
import pytest

from gc_jax.data import decode, geometry
from tests.data import evaluated, photos
from tests.data import picture_files as files


def triangle_weights(in_px, out_px):
  """Rows of weights: bilinear with antialias, written out."""
  shrink = in_px / out_px
  support = max(shrink, 1.0)
  centres = (np.arange(out_px) + 0.5) * shrink
  positions = np.arange(in_px) + 0.5
  distance = np.abs(positions[None] - centres[:, None]) / support
  weights = np.maximum(0, 1 - distance)
  return weights / weights.sum(1, keepdims=True)


def recomputed(pixels, resize_px, crop_px):
  """Resize(shorter side), CenterCrop: torchvision's rules, matrix by matrix."""
  height, width = pixels.shape[:2]
  shorter = min(height, width)
  new_height, new_width = (
    int(resize_px * n / shorter) for n in (height, width)
  )
  rows = triangle_weights(height, new_height)
  columns = triangle_weights(width, new_width)
  # Pillow rounds once after each direction, columns first.
  resized = np.round(np.einsum("xj,yjc->yxc", columns, pixels.astype(float)))
  resized = np.round(np.einsum("yi,ixc->yxc", rows, resized))
  top = round((new_height - crop_px) / 2.0)
  left = round((new_width - crop_px) / 2.0)
  return resized[top : top + crop_px, left : left + crop_px]


@pytest.mark.parametrize(
  "size", [(500, 375), (375, 500), (257, 256), (640, 427), (300, 1000)]
)
def test_evaluation_is_resize_256_and_center_crop_224(size):
  """Within one grey level of a computation without Pillow."""
  encoded = photos.encode(photos.load("motorcycle_left.png", size))
  ours = geometry.decode_image(encoded, 224, 256)
  assert ours.shape == (224, 224, 3) and ours.dtype == np.uint8
  image = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
  assert np.abs(ours - recomputed(np.asarray(image), 256, 224)).max() <= 1


@pytest.mark.parametrize("name", ["astronaut.png", "brick.png"])
def test_decoding_at_a_smaller_scale_does_not_show_in_an_evaluation(name):
  """Pictures of 2,400 pixels are read at 1/2 or 1/4, and end up the same."""
  encoded = photos.encode(photos.load(name, (3_000, 2_400)), quality=95)
  exact = geometry.resize_and_crop(PIL.Image.open(io.BytesIO(encoded)), 72, 64)
  ours = geometry.decode_image(encoded, 64, 72).astype(int)
  assert np.abs(ours - np.asarray(exact)).max() <= 1


def record_of(image, *masks, **objects):
  """A record whose objects, of the classes 0, 1 and so on, have the masks."""
  count = len(masks) or len(objects["bbox"])
  encoded = [
    mask if isinstance(mask, bytes) else photos.encode(mask, "png")
    for mask in masks
  ]
  if not isinstance(image, bytes):
    image = photos.encode(image, "png")
  return {
    "image": image,
    "labels": list(range(count)),
    "objects": {
      "label": list(range(count)),
      "bbox": [(0, 0, 1, 1)] * count,
      "difficult": [False] * count,
    }
    | ({"mask": encoded} if masks else {})
    | objects,
  }


def ellipse(shape):
  y, x = np.mgrid[: shape[0], : shape[1]]
  y = (y + 0.5) / shape[0] - 0.55
  x = (x + 0.5) / shape[1] - 0.45
  return (((y / 0.3) ** 2 + (x / 0.2) ** 2) < 1).astype(np.uint8) * 255


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_and_boxes_are_turned_and_cut_as_the_picture_is(orientation):
  mask = ellipse((150, 200))
  rows, columns = (np.flatnonzero(mask.any(i)) for i in (1, 0))
  top, bottom = rows[0] / 150, (rows[-1] + 1) / 150
  left, right = columns[0] / 200, (columns[-1] + 1) / 200
  picture = PIL.Image.fromarray(np.repeat(mask[..., None], 3, -1))
  record = record_of(
    photos.with_orientation(picture, orientation, "png"),
    mask,
    b"",
    bbox=[(top, left, bottom, right)] * 2,
  )
  seen = geometry.decode_image(record["image"], 96, 110)[..., 0] >= 128
  (of_mask,) = geometry.decode_object_masks(record, 0, 96, 110)
  (of_box,) = geometry.decode_object_masks(record, 1, 96, 110)
  np.testing.assert_array_equal(of_mask, seen)
  # The box is tight around what is seen, to a pixel.
  for axis in (0, 1):
    edges = [np.flatnonzero(m.any(axis))[[0, -1]] for m in (seen, of_box)]
    assert np.abs(edges[0] - edges[1]).max() <= 1
  image, whole, _ = evaluated.frame(record, 0, 75)
  shape = (75, 100) if orientation in (1, 3) else (100, 75)
  assert image.shape[:2] == shape
  box = PIL.Image.Resampling.BOX
  small = np.asarray(PIL.Image.fromarray(whole).resize(shape[::-1], box))
  # Two filters differ along the edge; turned wrongly, a tenth would.
  assert (small != (image[..., 0] >= 128)).mean() < 0.01


@pytest.mark.parametrize(
  ("box", "expected"),
  [
    ((0.1, 0.996, 0.2, 1.0), (slice(8, 16), slice(99, 100))),
    ((0.996, 0.1, 1.0, 0.4), (slice(79, 80), slice(10, 40))),
    ((0.1, 0.0, 0.2, 0.004), (slice(8, 16), slice(0, 1))),
  ],
  ids=["right", "bottom", "left"],
)
def test_a_box_thinner_than_a_pixel_covers_one_at_every_border(box, expected):
  record = record_of(np.zeros((80, 100, 3), np.uint8), bbox=[box])
  (mask,) = geometry.object_masks(
    record, decode.read_header(record["image"]), 0
  )
  wanted = np.zeros((80, 100), bool)
  wanted[expected] = True
  np.testing.assert_array_equal(np.asarray(mask) > 0, wanted)


def test_a_frame_keeps_the_aspect_and_the_annotations_own_pixels():
  """The release: shortest side 448, 15 pixels in those of the annotation."""
  # VOC's corners count from 1, both included: rows 21..60, columns 31..90.
  box = (20 / 200, 30 / 300, 60 / 200, 90 / 300)
  other = (0.5, 0.5, 1.0, 1.0)
  record = record_of(
    photos.encode(photos.load("coffee.png", (300, 200))),
    label=[5, 2, 5, 7],
    bbox=[box, other, other, other],
    difficult=[True, True, False, False],
  )
  exact = PIL.Image.open(io.BytesIO(record["image"])).resize((672, 448), 2)
  expected = np.zeros((200, 300), bool)
  expected[100:, 150:] = True
  # Difficult is what has no easy object: class 5 has one.
  for target, is_difficult in ((2, True), (5, False)):
    if target == 5:
      expected[20:60, 30:90] = True
    image, mask, difficult = evaluated.frame(record, target, 448)
    np.testing.assert_array_equal(image, np.asarray(exact))
    np.testing.assert_array_equal(mask, expected)
    assert difficult == is_difficult


def corners():
  """Corners of boxes in 500x375 pixels as XML files have them, some of 0."""
  rng = np.random.default_rng(0)
  drawn = np.sort(rng.integers(0, (500, 375), (200, 2, 2)), axis=1)
  drawn[::3, 0, 0] = 0
  drawn[::5, 0, 1] = 0
  ends = [[[0, 35], [487, 346]], [[1, 1], [500, 375]], [[0, 0], [500, 375]]]
  return np.concatenate([ends, drawn]).reshape(-1, 4).tolist()


def test_a_box_at_the_border_is_what_the_release_slices_or_clipped():
  """The release slices rows ymin - 1 up to ymax; a start of -1 is the last."""
  header = decode.read_header(photos.encode(np.zeros((375, 500, 3), np.uint8)))
  scale = np.array([375, 500, 375, 500])
  counted = []
  for xmin, ymin, xmax, ymax in corners():
    sliced = np.array([ymin - 1, xmin - 1, ymax, xmax]) / scale
    record = {
      "objects": {
        "label": [0],
        "bbox": [np.maximum(sliced, 0)],
        "sliced": [sliced.astype(np.float32)],
      }
    }
    found = {}
    for border in ("release", "clipped"):
      (mask,) = geometry.object_masks(record, header, 0, border)
      found[border] = np.asarray(mask) > 0
    literal = np.zeros((375, 500), bool)
    literal[ymin - 1 : ymax, xmin - 1 : xmax] = True
    np.testing.assert_array_equal(found["release"], literal)
    if min(xmin, ymin) > 0 and xmin < xmax and ymin < ymax:
      np.testing.assert_array_equal(found["clipped"], literal)
    counted.append((found["release"].sum(), found["clipped"].sum()))
  assert counted[0] == (0, 151_944)
  assert counted[2] == (1, 500 * 375)


@pytest.mark.parametrize("masks", [{}, {"mask": [b""]}])
def test_an_object_without_a_mask_is_its_filled_box(masks):
  # In the image rows 10..19, columns 40..59.
  box = (0.25, 0.5, 0.5, 0.75)
  record = record_of(np.zeros((40, 80, 3), np.uint8), bbox=[box], **masks)
  (mask,) = geometry.decode_object_masks(record, 0, 40)
  expected = np.zeros((40, 40), bool)
  expected[10:20, 20:40] = True  # the centre square is columns 20..59
  np.testing.assert_array_equal(mask, expected)


def test_a_squashed_picture_is_whole_and_its_masks_go_along():
  """The release's F1 on COCO. A box at the very right would be cropped off."""
  photo = photos.load("coffee.png", (120, 80))
  record = record_of(photo, bbox=[[0.25, 0.75, 1.0, 1.0]])
  seen = geometry.decode_image(record["image"], 40, squash=True)
  expected = photo.resize((40, 40), PIL.Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(seen, np.asarray(expected))
  (mask,) = geometry.decode_object_masks(record, 0, 40, squash=True)
  by_hand = np.zeros((40, 40), bool)
  by_hand[10:, 30:] = True
  np.testing.assert_array_equal(mask, by_hand)
  (cropped,) = geometry.decode_object_masks(record, 0, 40)
  assert cropped.sum() < 0.6 * by_hand.sum()


def test_a_strip_that_would_fill_the_memory_is_refused_first():
  encoded = photos.encode(PIL.Image.new("RGB", (1, 12_000)), "png")
  with pytest.raises(decode.DecodeError, match=r"1x12000 pixels, a strip, and"):
    geometry.decode_image(encoded, 224, 256)


# Which frame a mask is in.

ORIENTATIONS = range(1, 9)
INSIDE = np.zeros((40, 48), bool)
INSIDE[5:12, 8:21] = True  # in the upright frame


def picture_header(orientation, encoding="jpeg", upright=INSIDE):
  stored = files.TO_STORED[orientation](np.zeros(upright.shape, np.uint8))
  said = {"exif": b"Exif\0\0" + files.exif(orientation)}
  if encoding == "tiff":
    said = {"tiffinfo": {files.TAG: orientation}}
  return decode.read_header(photos.encode(stored, encoding, **said))


def mask_header(inside, encoding="png", **said):
  return decode.read_header(photos.encode(inside, encoding, **said))


@pytest.mark.parametrize("encoding", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_of_the_stored_size_is_turned_along(orientation, encoding):
  picture = picture_header(orientation, encoding)
  stored = files.TO_STORED[orientation](INSIDE)
  found = geometry.stored_mask(mask_header(stored), picture)
  np.testing.assert_array_equal(found, stored)
  if orientation > 4:  # the upright size is another
    found = geometry.stored_mask(mask_header(INSIDE), picture)
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_where_both_frames_fit_a_mask_is_in_the_stored_one(orientation):
  square = INSIDE[:, :40]
  picture = picture_header(orientation, upright=square)
  found = geometry.stored_mask(mask_header(square), picture)
  np.testing.assert_array_equal(found, square)


@pytest.mark.parametrize("encoding", ["png", "tiff"])
@pytest.mark.parametrize("of_mask", ORIENTATIONS[1:])
@pytest.mark.parametrize("of_picture", ORIENTATIONS)
def test_a_mask_with_an_orientation_of_its_own_is_put_upright_by_it(
  of_mask, of_picture, encoding
):
  said = {"exif": files.exif(of_mask)}
  if encoding == "tiff":
    said = {"tiffinfo": {files.TAG: of_mask}}
  mask = mask_header(files.TO_STORED[of_mask](INSIDE), encoding, **said)
  found = geometry.stored_mask(mask, picture_header(of_picture))
  np.testing.assert_array_equal(found, files.TO_STORED[of_picture](INSIDE))


def test_a_mask_of_neither_size_is_refused_with_both():
  picture = picture_header(6)
  with pytest.raises(
    decode.DecodeError,
    match="as large as its picture, 48x40 pixels upright and 40x48 as stored, "
    "and is 47x40 pixels",
  ):
    geometry.stored_mask(mask_header(INSIDE[:, 1:]), picture)
  # Its own orientation brings it into another frame than the picture's.
  mask = mask_header(INSIDE, exif=files.exif(6))
  with pytest.raises(
    decode.DecodeError, match="and is 40x48 pixels upright and 48x40 as stored"
  ):
    geometry.stored_mask(mask, picture)


def test_an_object_whose_mask_cannot_be_used_is_named():
  classes = np.kron(np.uint8([[0, 8], [255, 8]]), np.ones((20, 24), np.uint8))
  for mask, found in ((classes, "it has 0, 8 and 255"), (INSIDE.T, "40x48")):
    with pytest.raises(
      decode.DecodeError, match=f"mask of object 1: .*{found}"
    ):
      geometry.decode_object_masks(
        record_of(np.zeros((40, 48, 3), np.uint8), b"", mask), 1, 16
      )
