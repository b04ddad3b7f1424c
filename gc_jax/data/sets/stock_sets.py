"""What gc_jax knows of stock TFDS sets: which feature holds what. A table.

Sets that are not in it are used as they are if they have the features `image`
and `label`: `cifar10`, `tf_flowers`, `imagenette`, `imagenet_v2` and so on.
"""

import dataclasses
from collections.abc import Iterable

PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Layout:
  """The features that hold what a record needs. "" = there is none.

  `objects` is a sequence with `bbox` for each annotated object, `label` where
  the objects differ in class, and `is_difficult` where the annotator said so.
  """

  label: str = ""  # the class of the image; "": the classes of its objects
  objects: str = ""
  box: str = ""  # of the one object that the label names
  mask: str = ""  # image in which that object has the values `mask_levels`
  mask_levels: frozenset[int] = frozenset()
  label_name: str = ""  # names the class, where the set has only numbers
  unlabelled: tuple[str, ...] = ()  # splits without annotations, never read
  title: str = ""  # its name in reports; "" = the name itself

  @property
  def has_objects(self) -> bool:
    """Whether anything says where the objects are."""
    return bool(self.objects or self.box or self.mask)


PLAIN = Layout(label="label")

# Text that says which file a record came from, where a set has one of them.
FILE_NAMES = (
  "image/filename",
  "file_name",
  "filename",
  "image/file_name",
  "id",
)

# name, or name/config where configs differ -> layout
STOCK_SETS = {
  "oxford_iiit_pet": Layout(
    label="label",
    mask="segmentation_mask",
    # A trimap: 1 is the animal, 2 the background, 3 the outline between, five
    # pixels wide, which the annotators left open. Fur is on it: it counts as
    # the animal. `head_bbox` is not the object, and not used.
    mask_levels=frozenset({1, 3}),
    title="Oxford-IIIT Pet",
  ),
  # Boxes are as TFDS divides them: VOC counts pixels from 1, both ends within,
  # so that they leave out their first row and column. No masks.
  "voc": Layout(objects="objects"),
  "voc/2007": Layout(objects="objects", title="PASCAL VOC 2007"),
  "voc/2012": Layout(
    objects="objects", unlabelled=("test",), title="PASCAL VOC 2012"
  ),
  "caltech_birds2011": Layout(
    label="label",
    box="bbox",
    mask="segmentation_mask",
    # 255 times the share of five annotators who saw the bird there.
    mask_levels=frozenset(range(128, 256)),
    label_name="label_name",
    title="Caltech-UCSD Birds 2011",
  ),
  "stanford_dogs": Layout(label="label", objects="objects"),
  "cars196": Layout(label="label", box="bbox"),
}

# Shown in messages; any other plain set works alike.
EXAMPLES = (
  "oxford_iiit_pet",
  "voc/2007",
  "voc/2012",
  "caltech_birds2011",
  "stanford_dogs",
  "cars196",
  "imagenet_v2/matched-frequency",
  "cifar10",
  "tf_flowers",
  "imagenette/320px-v2",
)


def find_layout(name: str, config_name: str) -> Layout:
  """Returns the layout of a set, `PLAIN` where the table has none."""
  layout = STOCK_SETS.get(name, PLAIN)
  return STOCK_SETS.get(f"{name}/{config_name}", layout)


def map_splits(available: Iterable[str]) -> dict[str, str]:
  """Returns what train, validation and test mean in a set's labelled splits.

  Where the set has all three, they are its own. Nothing is ever chosen on the
  test split: a set with two splits is tested on the second, and gives the last
  tenth of its training split for validation; a set with a training split alone
  gives two tenths. TFDS shuffles records when it prepares them, so that a
  tenth holds all classes. Further splits keep their names.
  """
  available = list(available)
  mapped = {name: name for name in available}
  if {"train", "validation", "test"} <= set(available) or (
    "train" not in available
  ):
    return mapped
  held_out = [name for name in ("test", "validation") if name in available]
  if held_out:
    tenths = {"train": "train[:90%]", "validation": "train[90%:]"}
    return mapped | tenths | {"test": held_out[0]}
  return mapped | {
    "train": "train[:80%]",
    "validation": "train[80%:90%]",
    "test": "train[90%:]",
  }
