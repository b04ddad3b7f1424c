"""Messages to users: errors they can mend, lists of names, the nearest name."""

import difflib
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

# Likeness in 0..1 of a name to be listed first, and to be suggested.
_LISTED, _ALIKE = 0.4, 0.6


class UserError(RuntimeError):
  """Something the user can mend; the message says how. Commands exit with 2."""


def listed(names: Collection[str], most: int = 5, between: str = ", ") -> str:
  """Returns the first few names, and how many more there are."""
  first = list(itertools.islice(names, most))
  if len(names) > most:
    first.append(f"and {len(names) - most:,} more")
  return between.join(first)


def number_of(count: int, noun: str) -> str:
  """Returns "1 picture" or "2,000 pictures"."""
  return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clipped(text: str) -> str:
  """Returns a text, cut where it is too long for a message."""
  return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_name_message(
  what: str, name: str, known: Iterable[str], most: int = 20
) -> str:
  """Says that `name` is unknown, which names are known, and the nearest.

  `what` is the kind of thing, or the flag that names one. Up to `most` names
  are listed in their order; of more, the ten nearest.
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
  """Returns (likeness in 0..1, name) of similar names, ignoring case."""
  matcher = difflib.SequenceMatcher()
  matcher.set_seq2(name.casefold())
  found = []
  for each in known:
    matcher.set_seq1(each.casefold())
    bounds = matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio
    if all(bound() >= _LISTED for bound in bounds):
      found.append((matcher.ratio(), each))
  return sorted(found, key=lambda pair: -pair[0])


def nearest_fields(name: str, meanings: Mapping[str, str]) -> list[str]:
  """Returns the fields that a dotted name may stand for, the likeliest first.

  Every word of the name is looked for among the words of a field, as it is
  spelled and nearly so, and then among those of its meaning. The last part of
  the name says what is meant; parts before it, where, and count half.

  Args:
    name: "lr", "loss.lambda".
    meanings: field, "optim.lr_per_256", to a text on it.
  """
  parts = [_words(part) for part in name.split(".")]
  asked = [(word, 0.5) for part in parts[:-1] for word in part]
  asked += [(word, 1.0) for word in parts[-1]]
  weights = sum(weight for _, weight in asked) or 1.0
  likeness = {}
  for field, meaning in meanings.items():
    words, said = _words(field), _words(meaning)
    found = sum(weight * _among(word, words, said) for word, weight in asked)
    # Of fields with the same word the one with fewer others.
    likeness[field] = found / weights - 0.02 * len(words)
  best = sorted(likeness, key=lambda field: -likeness[field])
  bound = max(_LISTED, likeness[best[0]] - 0.25)
  return [field for field in best if likeness[field] >= bound]


def _words(text: str) -> list[str]:
  return re.findall(r"[^\W_]+", text.casefold())


def _among(word: str, words: Sequence[str], said: Sequence[str]) -> float:
  """Returns how surely a word is one of a field's, or of what is said of it."""
  if word in words:
    return 1.0
  alike = max(
    (difflib.SequenceMatcher(None, word, own).ratio() for own in words),
    default=0.0,
  )
  if word in said:
    # What is said first says what the field is.
    alike = max(alike, 0.85 - 0.01 * min(said.index(word), 10))
  return alike if alike >= _ALIKE else 0.0


def class_differences(there: Sequence[str], here: Sequence[str]) -> str:
  """Says in a few lines how two lists of classes differ; "" if they do not.

  Their order counts, as an id means a class by its place. Unicode forms do not,
  as file systems change them. `there` is of a model, `here` of the data.
  """
  theirs, ours = (
    [unicodedata.normalize("NFC", name) for name in names]
    for names in (there, here)
  )
  if theirs == ours:
    return ""
  shown = lambda names: listed([clipped(name) for name in names])
  known, wanted = set(theirs), set(ours)
  gone = [name for name in theirs if name not in wanted]
  new = [name for name in ours if name not in known]
  lines = [
    f"{len(theirs):,} there: {shown(theirs)}",
    f"{len(ours):,} now: {shown(ours)}",
    *([f"only there: {shown(gone)}"] if gone else []),
    *([f"only now: {shown(new)}"] if new else []),
  ]
  if not gone and not new:
    lines.append("the same names in another order")
  differing = [
    f"class {i}: {_quoted(a)} there, {_quoted(b)} now"
    for i, (a, b) in enumerate(itertools.zip_longest(theirs, ours))
    if a != b
  ]
  lines.append(listed(differing, between="\n  "))
  return "\n".join(f"  {line}" for line in lines)


def _quoted(name: str | None) -> str:
  return "none" if name is None else repr(clipped(name))
