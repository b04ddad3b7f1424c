"""What a compiler says of a train step, as lines of text."""

import textwrap
from collections.abc import Mapping
from typing import Any

_MEMORY = {
  "arguments": "arguments (state, batch)",
  "outputs": "outputs",
  "aliased": "of them in place",
  "temporaries": "temporaries",
  "code": "program",
  "next_batch": "next batch, waiting",
}


def lines(found: Mapping[str, Any]) -> list[str]:
  """Returns a readable table.

  Args:
    found: from `check.preflight` of the room pods.
  """
  side = found["image_size"]
  return [
    f"{found['model']}, {found['num_classes']:,} classes, {side} x {side}, "
    f"{found['compute_dtype']}",
    *_guidance(found["guidance"]),
    f"{found['topology']}: {found['num_devices']:,} x {found['device_kind']}",
    f"Compiled, not executed ({found['compiler']}).",
    *(["Fast: with few optimizations; memory may differ."] * found["fast"]),
    *_sections(found),
  ]


def _guidance(terms: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a line for each term, with all its settings."""
  text = []
  for title, settings in terms.items():
    words = [f"{key}={value}" for key, value in settings.items()]
    line = " ".join([f"guidance: {title},", *words]).rstrip(",")
    text += textwrap.wrap(line, 80, subsequent_indent="  ")
  return text or ["no guidance"]


def _sections(found: Mapping[str, Any]) -> list[str]:
  limit = found["memory_limit_bytes"]
  asked = found["asked"]
  text = []
  if asked:
    text += ["", *_finding(asked, limit)]
  else:
    text += [
      "",
      f"--config.batch_size={found['batch_size']} cannot be divided over "
      f"{found['num_devices']:,} devices this way.",
    ]
  if "largest" not in found:
    if not asked["fits"]:
      text += ["--per_chip_batch=auto finds the largest that does."]
    return text
  largest = found["largest"]
  tried = ", ".join(
    f"{each['per_device']:,} {'fits' if each['fits'] else 'does not'}"
    for each in found["tried"]
  )
  text += ["", f"Tried, images a device: {tried}."]
  if not largest:
    return [*text, "No batch fits."]
  text += [
    f"Largest batch that fits: {largest['per_device']:,} a device, "
    f"--config.batch_size={largest['batch_size']}"
  ]
  if largest != asked:
    text += ["", *_finding(largest, limit)]
  return text


def _finding(finding: Mapping[str, Any], limit: int | None) -> list[str]:
  verdict = "FITS" if finding["fits"] else "DOES NOT FIT"
  if limit is None:
    verdict = "memory's limit is not known"
  text = [
    f"batch {finding['batch_size']:,}, {finding['per_device']:,} a device: "
    f"{verdict}"
  ]
  memory = finding["memory_bytes"]
  if memory is None:
    needed = finding["refused"]["needed"]
    text += [
      f"  the compiler needs {_size(needed) if needed else 'more'} of "
      f"{_size(finding['refused']['limit'])} a device, and gave up"
    ]
    return text
  text += ["  memory of a device"]
  text += [
    _row(what, _size(memory[name]), indent=4) for name, what in _MEMORY.items()
  ]
  total = _size(memory["total_with_next_batch"])
  if limit is not None:
    share = memory["total_with_next_batch"] / limit
    total += f"  of {_size(limit)}: {share:.1%}"
  text += [_row("total", total, indent=4)]
  if finding["flops_per_image"]:
    text += [
      _row("FLOPs of an image", _count(finding["flops_per_image"])),
      _row("FLOPs of a step, a device", _count(finding["flops_per_device"])),
      _row("FLOPs of a step", _count(finding["flops_per_step"])),
    ]
  text += ["  collectives of a step, bytes on a device"]
  for kind, total in sorted(finding["collectives"].items()):
    text += [_row(f"{total['count']} {kind}", _size(total["bytes"]), indent=4)]
  if not finding["collectives"]:
    text += ["    none"]
  pictures = finding["picture_sized"]
  text += [
    _row(
      "pictures between devices",
      "none: nothing of their size but gradients" if not pictures else "YES",
    )
  ]
  for each in pictures:
    shapes = " ".join(str(list(shape)) for shape in each["shapes"])
    text += [f"    {each['kind']} {_size(each['bytes'])} {shapes}"]
  text += [_row("compiled in", f"{finding['compile_secs']:.0f} s")]
  return text


def _row(what: str, value: str, indent: int = 2) -> str:
  return f"{' ' * indent}{what:<{32 - indent}}{value:>12}"


def _size(num_bytes: int) -> str:
  """Returns bytes in binary units, as compilers give them."""
  size = float(num_bytes)
  for unit in ("B", "KiB", "MiB"):
    if size < 1024:
      return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
    size /= 1024
  return f"{size:.2f} GiB"


def _count(number: float) -> str:
  for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
    if number >= factor:
      return f"{number / factor:.2f} {unit}"
  return f"{number:.0f}"
