"""Does the map point at the object? PG, SPG, SPG exact and CH."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax import metrics
from gc_jax.types import EvalBatch, Metrics


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How maps meet annotations; METHOD "paper": both at the image's own size.

  Attributes:
    tolerance_px: how far from the object a point still hits, in pixels of a
      picture 224 pixels high; scaled to the picture at hand.
    spg_samples: points of the stochastic pointing game in each run.
    spg_runs: repetitions, of which mean and standard deviation are given.
  """

  tolerance_px: float = 15.0
  spg_samples: int = 100
  spg_runs: int = 5


def sums(
  cams: dict[str, Float[Array, "B P h w"]],
  batch: EvalBatch,
  key: PRNGKeyArray,
  protocol: Protocol,
) -> tuple[Metrics, dict[str, Float[Array, "B P"]]]:
  """Returns the sums of one batch, and each pair's content heatmap.

  Args:
    cams: method -> raw maps of every (image, class) pair.
    batch: with `target_mask` and `object_mask`. A pair without any annotated
      pixel is left out.
    key: of the stochastic pointing game's points.
    protocol: tolerances and sample counts.
  """
  object_mask = batch["object_mask"]
  height, width = object_mask.shape[-2:]
  mask = batch["target_mask"] * object_mask.any((-2, -1))
  dilated = metrics.dilate(object_mask, protocol.tolerance_px * height / 224)

  totals: Metrics = {}
  content = {}
  for name, cam in cams.items():
    cam_px = metrics.as_distribution(metrics.upsample(cam, height, width))
    content[name] = metrics.content_heatmap(cam_px, object_mask)
    values = {
      "pointing_game": metrics.pointing_game(cam_px, dilated),
      "stochastic_pointing_game_exact": metrics.content_heatmap(
        cam_px, dilated
      ),
      "content_heatmap": content[name],
      "zero_map_frac": metrics.is_empty(cam).astype(jnp.float32),
    }
    for metric, value in values.items():
      totals[f"{name}/{metric}"] = ((value * mask).sum(), mask.sum())
    # The same points for every method: rows then differ by their maps alone.
    runs = jnp.stack(
      [
        metrics.stochastic_pointing_game(
          run_key, cam_px, dilated, protocol.spg_samples
        )
        for run_key in jax.random.split(key, protocol.spg_runs)
      ]
    )
    totals[f"{name}/stochastic_pointing_game"] = (
      (runs * mask[None]).sum((1, 2)),
      mask.sum(),
    )
  totals["num_pairs"] = (mask.sum(), jnp.ones(()))
  return totals, content


def summarize(totals: Metrics) -> dict[str, float]:
  """Returns percent from sums over the whole split; fractions keep their name.

  `stochastic_pointing_game` is the mean over runs, `..._std` their sample
  standard deviation.
  """
  results = {}
  for name, (total, weight) in totals.items():
    value = np.asarray(total, np.float64) / max(float(weight), 1.0)
    if name == "num_pairs":
      results[name] = int(total)
    elif name.endswith("_frac"):
      results[name] = float(value)
    elif value.ndim:
      results[name] = float(100 * value.mean())
      spread = value.std(ddof=1) if value.size > 1 else 0.0
      results[f"{name}_std"] = float(100 * spread)
    else:
      results[name] = float(100 * value)
  return results
