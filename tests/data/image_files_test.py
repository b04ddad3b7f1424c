"""Picture files as people name them: found, read, sized for a model.

What the pixels of each kind of file become: decode_test.
"""

import os

import numpy as np
import PIL.Image
import pytest

from gc_jax.data import decode, image_files
from tests.data.photos import touch


def test_a_damaged_file_is_refused_by_name(tmp_path, photographs):
  path, whole = tmp_path / "coffee.png", photographs / "coffee.png"
  path.write_bytes(whole.read_bytes()[:10_000])
  with pytest.raises(
    ValueError,
    match=r"coffee\.png must be a picture \(BMP.*\); it cannot be read: .*"
    r"Mend it or leave it out\.",
  ):
    image_files.read(path)
  with pytest.raises(ValueError, match=r"must be a picture .*directory"):
    image_files.read(tmp_path)


def test_a_folder_stands_for_its_pictures_sorted_and_once(tmp_path):
  names = ["b.PNG", "a.jpg", "e.JFIF", "f.jpe", ".hidden.png", "c.txt"]
  touch(tmp_path, *names)
  (tmp_path / "d.png").mkdir()
  named = tmp_path / "c.txt"  # a picture, if someone says so
  found = image_files.find(
    [named, tmp_path / "d.png" / ".." / "b.PNG", tmp_path]
  )
  names = ["c.txt", "b.PNG", "a.jpg", "e.JFIF", "f.jpe"]
  assert [picture.path.name for picture in found.pictures] == names


def test_pictures_below_a_folder_know_the_folders_that_may_tell_their_class(
  tmp_path, monkeypatch
):
  val = tmp_path / "dog" / "val"
  touch(val, "cat/1.jpg", "dog/old/1.jpg", "dog/old/no.txt", ".git/x.png")
  touch(val, "x.png", "masks/cat/1.png", "Annotations/1.xml", "cat/masks/2.jpg")
  found = image_files.find([val])
  assert [
    (str(p.path.relative_to(val)), p.folders) for p in found.pictures
  ] == [
    ("cat/1.jpg", ("cat", "val")),
    ("cat/masks/2.jpg", ("masks", "cat", "val")),
    ("dog/old/1.jpg", ("old", "dog", "val")),
    ("x.png", ("val",)),
  ]
  assert set(found.left_out) == {val / "masks", val / "Annotations"}
  # By its own name, whatever it was called by: and of a file, one folder.
  monkeypatch.chdir(val / "cat")
  one, two = image_files.find([".", "../dog/old/1.jpg"]).pictures
  assert (one.folders, two.folders) == (("cat",), ("old",))
  masks = image_files.find([val / "masks"])  # if someone says so
  assert [p.folders for p in masks.pictures] == [("cat", "masks")]
  skip = lambda path: path.name == "1.jpg"
  assert len(image_files.find([val], skip).pictures) == 2


def test_a_picture_is_read_once_for_both_of_its_sizes(
  tmp_path, photographs, monkeypatch
):
  photo = decode.whole(
    decode.read_header((photographs / "rocket.jpg").read_bytes())
  )
  turned = PIL.Image.Exif()
  turned[274] = 6
  sizes = {"small": (64, 48), "large": (1280, 960)}
  for name, size in sizes.items():
    photo.resize(size).save(tmp_path / f"{name}.jpg", exif=turned)
    photo.resize(size).save(tmp_path / f"{name}.png")
  real, decoded = decode._upright, []

  def upright(header, share):
    decoded.append(share)
    return real(header, share)

  monkeypatch.setattr(decode, "_upright", upright)
  for path in sorted(tmp_path.iterdir()):
    shape = (32, 24) if path.suffix == ".jpg" else (24, 32)
    expected = image_files.read(path), image_files.read(path, shape)
    decoded.clear()
    for found, wanted in zip(
      image_files.read_twice(path, shape), expected, strict=True
    ):
      np.testing.assert_array_equal(found, wanted)
    # A large JPEG is decoded a second time at a quarter of its sides.
    assert len(decoded) == (2 if path.name == "large.jpg" else 1)
    assert image_files.check(path) == expected[0].shape[:2]


def test_a_check_finds_what_reading_would_find(tmp_path, photographs):
  for name in ["rocket.jpg", "coffee.png", "multipage.tif"]:
    whole = (photographs / name).read_bytes()
    verdicts = set()
    for share in [0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1]:
      path = tmp_path / name
      path.write_bytes(whole[: int(share * len(whole))])
      told = []
      for look in (image_files.check, image_files.read):
        try:
          look(path)
          told.append("")
        except ValueError as error:
          told.append(str(error))
      assert told[0] == told[1]
      verdicts.add(told[0] == "")
    assert verdicts == {True, False}


def test_names_without_pictures_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"nothing does not exist\. Check the"):
    image_files.find([tmp_path / "nothing"])
  (tmp_path / "notes.txt").touch()
  with pytest.raises(ValueError, match=r"hold \.bmp, .* below it have none"):
    image_files.find([tmp_path])


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_read(tmp_path):
  path = tmp_path / os.fsdecode(b"caf\xe9.png")
  path.touch()
  for names in ([path], [tmp_path]):
    with pytest.raises(
      ValueError, match=r"must be UTF-8(?s:.*)caf\\(udc|x)e9\.png"
    ):
      image_files.find(names)


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
  # The smallest keep a pixel.
  thin = [(side, 1) for side in range(1, 5)]
  assert image_files.model_sizes(thin, 1, max_shapes=1)[0] == thin
  assert set(image_files.model_sizes(thin, 0, max_shapes=1)[0]) == {(32, 32)}


def test_sides_are_of_whole_patches():
  sizes = [(300, 450), (450, 300), (250, 250), (231, 224)]
  shapes, multiple = image_files.model_sizes(sizes, 224, 8, unit_px=16)
  assert multiple == 16
  assert shapes == [(224, 336), (336, 224), (224, 224), (224, 224)]
  shapes, multiple = image_files.model_sizes(sizes, 0, 8, unit_px=16)
  assert shapes == [(304, 448), (448, 304), (256, 256), (224, 224)]
  # Of too many shapes, too.
  many = [(224, 224 + extra) for extra in range(100)]
  shapes, multiple = image_files.model_sizes(many, 224, 4, unit_px=16)
  assert multiple == 32 and set(shapes) == {(224, 32 * i) for i in range(7, 11)}


def test_a_picture_that_would_fill_the_memory_is_refused():
  with pytest.raises(
    ValueError,
    match=r"one of 9000 by 1 would be 2016000 by 224\. Crop it, or choose a",
  ):
    image_files.model_sizes([(1, 9000)], 224, max_shapes=8)
