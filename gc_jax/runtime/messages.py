"""Messages to users: errors they can mend, lists of names, the nearest name."""

import difflib
import itertools
import unicodedata
from collections.abc import Collection, Iterable, Sequence

# How alike names are, of 1: to be listed first, to be what was meant.
_LISTED, _ALIKE = 0.4, 0.6


class UserError(RuntimeError):
  """Something the user can mend; the message says how. Commands exit with 2."""


def listed(names: Collection[str], most: int = 5, between: str = ", ") -> str:
  """Returns the first of some names, and how many more there are."""
  first = list(itertools.islice(names, most))
  if len(names) > most:
    first.append(f"and {len(names) - most:,} more")
  return between.join(first)


def number_of(count: int, noun: str) -> str:
  """Returns "1 picture" or "2,000 pictures"."""
  return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clipped(text: str, most: int = 80) -> str:
  """Returns a text, or its beginning where it is too long for a message."""
  return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown_name_message(
  what: str, name: str, known: Iterable[str], most: int = 20
) -> str:
  """Says that `name` is no `what`, which there are, and the nearest.

  Args:
    what: the kind of thing, or the flag that names one.
    name: as the user wrote it.
    known: the names there are.
    most: of more than these a few are listed, the nearest first.
  """
  known = list(known)
  nearest = _nearest(name, known)
  in_order = known
  if len(known) > most:
    in_order = list(dict.fromkeys([each for _, each in nearest] + known))
  shown = listed(
    [clipped(each) for each in in_order], most if in_order is known else 10
  )
  message = f"Unknown {what}={clipped(name)!r}. Known: {shown}."
  if nearest and nearest[0][0] >= _ALIKE:
    message += f" Did you mean {clipped(nearest[0][1])!r}?"
  return message


def _nearest(name: str, known: Iterable[str]) -> list[tuple[float, str]]:
  """Returns (likeness in 0..1, name) of those like a name, in any case."""
  matcher = difflib.SequenceMatcher()
  matcher.set_seq2(name.casefold())
  found = []
  for each in known:
    matcher.set_seq1(each.casefold())
    bounds = matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio
    if all(bound() >= _LISTED for bound in bounds):
      found.append((matcher.ratio(), each))
  return sorted(found, key=lambda pair: -pair[0])


def class_differences(there: Sequence[str], here: Sequence[str]) -> str:
  """Says in a few lines how two lists of classes differ; "" if they do not.

  An id means a class by its place, so that order counts. The forms that Unicode
  has for one name, which file systems change, are one.

  Args:
    there: of a model, in the order of its outputs.
    here: of the data.
  """
  theirs, ours = (
    [unicodedata.normalize("NFC", name) for name in names]
    for names in (there, here)
  )
  if theirs == ours:
    return ""
  lines = [
    f"{len(theirs):,} there: {_names(theirs)}",
    f"{len(ours):,} now: {_names(ours)}",
  ]
  known, wanted = set(theirs), set(ours)
  if gone := [name for name in theirs if name not in wanted]:
    lines.append(f"only there: {_names(gone)}")
  if new := [name for name in ours if name not in known]:
    lines.append(f"only now: {_names(new)}")
  if not gone and not new:
    lines.append("the same names in another order")
  differing = [
    f"class {i}: {_name(theirs, i)} there, {_name(ours, i)} now"
    for i in range(max(len(theirs), len(ours)))
    if theirs[i : i + 1] != ours[i : i + 1]
  ]
  lines.append(listed(differing, between="\n  "))
  return "\n".join(f"  {line}" for line in lines)


def _names(names: Sequence[str]) -> str:
  return listed([clipped(name) for name in names])


def _name(names: Sequence[str], index: int) -> str:
  return repr(clipped(names[index])) if index < len(names) else "none"
