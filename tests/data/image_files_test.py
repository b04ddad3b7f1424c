"""Picture files as people name them: found, read, sized for a model.

What the pixels of each kind of file become: decode_test.
"""

import os

import pytest

from gc_jax.data import image_files


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
  for name in ["b.PNG", "a.jpg", "e.JFIF", "f.jpe", ".hidden.png", "c.txt"]:
    (tmp_path / name).touch()
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
  (tmp_path / "notes.txt").touch()
  with pytest.raises(ValueError, match=r"must hold \.bmp, .* has none"):
    image_files.find([tmp_path])


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_read(tmp_path):
  path = tmp_path / os.fsdecode(b"caf\xe9.png")
  path.touch()
  for names in ([path], [tmp_path]):
    with pytest.raises(ValueError, match=r"must be UTF-8.*caf\\udce9\.png"):
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


def test_a_picture_that_would_fill_the_memory_is_refused():
  with pytest.raises(
    ValueError,
    match=r"one of 9000 by 1 would be 2016000 by 224\. Crop it, or choose a",
  ):
    image_files.model_sizes([(1, 9000)], 224, max_shapes=8)
