"""One file per question; predictions and maps in, numbers out.

Each has `sums` (pure, on the device, one batch) and `summarize` (on the host,
sums over the whole split), so that every example counts exactly once.
"""

from gc_jax.evaluators import (
  classification,
  localization,
  negative_quadrants,
)

EVALUATORS = {
  "classification": classification,
  "localization": localization,
  "negative_quadrants": negative_quadrants,
}
