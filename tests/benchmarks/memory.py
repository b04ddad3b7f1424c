"""What this process holds in memory, as Linux tells it."""

import pathlib
import resource


def resident_bytes() -> int:
  """Returns the bytes that it has now."""
  pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
  return int(pages) * resource.getpagesize()


def peak_bytes() -> int:
  """Returns the most bytes that it ever had."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
