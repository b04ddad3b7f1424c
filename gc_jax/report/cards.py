"""Examples in words and layers, for a page: what cards.html draws."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS
from gc_jax.report import tables
from gc_jax.report.artefact import Evaluated
from gc_jax.report.gallery import Example
from gc_jax.report.pictures import (
  Layer,
  enlarge_map,
  frame_layer,
  heat_layer,
  image_layer,
  outline_layer,
)

_PLACES = ("top left", "top right", "bottom left", "bottom right")
_MAX_PAIRS = 12
Maps = Mapping[str, Float32[np.ndarray, "_ _"]]


class MapPicture(NamedTuple):
  """A map, to be laid over its image."""

  heat: Layer
  title: str
  method: str  # a key of `METHODS`
  by: str  # the method in words
  share: float | None  # percent on the object, of a composite outside its cell
  is_empty: bool  # nothing speaks for the class
  of: str = ""  # the class explained, if not the card's


class Card(NamedTuple):
  """One example: its words, its image, and what lies over that."""

  index: int
  target: str
  predicted: str
  # None: another scored highest, but several may show; or several models' own.
  is_correct: bool | None
  classes: Sequence[int]  # to find it by: what it shows, and what was predicted
  facts: Sequence[tuple[str, str]]
  image: Layer
  outline: Layer
  has_object: bool  # whether it is known where it is
  maps: Sequence[MapPicture]
  predicted_maps: Sequence[MapPicture] = ()
  place: str = ""  # of the image in the composite
  composite: Layer | None = None
  frame: Layer | None = None
  composite_maps: Sequence[MapPicture] = ()


def card(evaluated: Evaluated, example: Example) -> Card:
  """Returns an example's image, its maps, its composite and that one's maps."""
  facts = [
    # By the first method.
    (METRICS[metric].title, f"{next(iter(by_method.values())):.1f}%")
    for metric, by_method in example.scores.items()
    if by_method
  ]
  maps = [
    _map(example, method, title_of(method))
    for method in tables.in_order(example.maps)
  ]
  made = _card(evaluated, example, facts, maps)
  if example.composite is None:
    return made
  size = example.composite.shape[:2]
  outside = example.scores.get("negative_quadrants_heatmap", {})
  return made._replace(
    place=_PLACES[example.cell],
    composite=image_layer(example.composite),
    frame=frame_layer(size, example.cell),
    composite_maps=[
      MapPicture(
        heat_layer(cam, size),
        "Its map",
        method,
        title_of(method),
        outside.get(method),
        not cam.any(),
      )
      for method, cam in example.composite_maps.items()
    ],
  )


def pairs(evaluated: Evaluated, other: Evaluated) -> list[Card]:
  """Returns the fixed images that both show, with the maps of both."""
  theirs = {(e.index, e.target): e for e in other.examples if e.kind == "fixed"}
  cards = []
  for example in evaluated.examples:
    before = theirs.get((example.index, example.target))
    if example.kind != "fixed" or before is None:
      continue
    methods = [m for m in tables.in_order(example.maps) if m in before.maps]
    if not methods:
      continue
    maps = [
      _map(before, methods[0], "Before"),
      _map(example, methods[0], "This run"),
    ]
    was, now = (one.share for one in maps)
    facts = []
    if was is not None and now is not None:
      words = f"{now - was:+.1f} points".replace("-", "−")
      facts = [(METRICS["content_heatmap"].title, words)]
    # What it predicts wrongly is among the gallery's.
    found = _card(evaluated, example, facts, maps)
    cards.append(found._replace(predicted_maps=()))
  return cards[:_MAX_PAIRS]


def beside(
  named: Evaluated, examples: Mapping[str, Example], method: str
) -> Card:
  """Returns one image with the maps of several models, by their labels.

  Args:
    named: an evaluation that names the classes.
    examples: the same image and class, by each model.
    method: of the maps.
  """
  maps = []
  for label, example in examples.items():
    wrong = example.predicted != example.target and not named.about.multi_label
    said = f", predicts {named.class_name(example.predicted)}" * wrong
    maps.append(_map(example, method, f"{label}{said}"))
  own = next(iter(examples.values()))
  facts = [("image", _image_name(named, own))]
  found = _card(named, own, (), maps)
  return found._replace(
    predicted="",
    is_correct=None,
    classes=[own.target],
    facts=facts,
    predicted_maps=(),
  )


def _image_name(evaluated: Evaluated, example: Example) -> str:
  return example.name or f"{evaluated.about.split} {example.index}"


def _card(
  evaluated: Evaluated,
  example: Example,
  facts: Sequence[tuple[str, str]],
  maps: Sequence[MapPicture],
) -> Card:
  is_right = example.predicted == example.target
  predicted = evaluated.class_name(example.predicted)
  return Card(
    example.index,
    evaluated.class_name(example.target),
    predicted,
    None if evaluated.about.multi_label and not is_right else is_right,
    [example.target] + [example.predicted] * (not is_right),
    [
      *_probabilities(evaluated, example),
      *facts,
      ("image", _image_name(evaluated, example)),
    ],
    image_layer(example.image),
    outline_layer(example.object_mask),
    bool(example.object_mask.any()),
    maps,
    [
      _map(example, method, title_of(method), of=predicted)
      for method in tables.in_order(example.predicted_maps)
    ],
  )


def _probabilities(
  evaluated: Evaluated, example: Example
) -> list[tuple[str, str]]:
  """Returns how likely the model finds what is there, and what it says."""
  said = {
    example.target: example.probability,
    example.predicted: example.predicted_probability,
  }
  return [
    (f"p({evaluated.class_name(label)})", f"{100 * value:.1f}%")
    for label, value in said.items()
    if value is not None
  ]


def _map(example: Example, method: str, title: str, of: str = "") -> MapPicture:
  """Returns the map of the target, or of the predicted class if `of` names it.

  Only the target's object is known: no other map has a share on it.
  """
  cam = (example.predicted_maps if of else example.maps)[method]
  share = example.scores.get("content_heatmap", {}).get(method)
  if share is None and example.object_mask.any():
    heat = enlarge_map(cam, *example.object_mask.shape)
    total = float(heat.sum())
    if total > 0:
      share = 100.0 * float(heat[example.object_mask].sum()) / total
  return MapPicture(
    heat_layer(cam, example.image.shape[:2]),
    title,
    method,
    title_of(method),
    None if of or not cam.any() else share,
    not cam.any(),
    of,
  )
