"""How maps are held against annotations: `PROTOCOLS`."""

from typing import NamedTuple


class Protocol(NamedTuple):
  """How maps are held against annotations."""

  meaning: str  # for pages; {hits} stands for when a point hits
  # Pictures and annotations keep their pixels, the pointing game is a mean over
  # classes, and both games pass over difficult objects; else all are squares.
  whole: bool = False
  border: str = "clipped"  # | "release", see geometry.object_masks
  counts_unseen: bool = False  # in that mean, classes without a pair count 0


PROTOCOLS = {
  "paper": Protocol(
    "as its text says: pictures and annotations as squares of one size; a "
    "point hits the object if it {hits}; the pointing game counts hits over "
    "hits and misses."
  ),
  "release": Protocol(
    "as the authors' programs measure, to the letter: pictures whole, maps "
    "resized to the annotation's own pixels; a box at the left or the top "
    "border is empty; a point hits the object if it {hits}; the pointing game "
    "is averaged over all classes, those without a picture counting 0; objects "
    "marked difficult count in CH only.",
    whole=True,
    border="release",
    counts_unseen=True,
  ),
  "corrected": Protocol(
    "as the authors' programs measure, but with boxes clipped to the picture: "
    "pictures whole, maps resized to the annotation's own pixels; a point hits "
    "the object if it {hits}; the pointing game is averaged over the classes "
    "that are shown; objects marked difficult count in CH only.",
    whole=True,
  ),
}
