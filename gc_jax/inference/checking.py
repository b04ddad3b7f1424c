"""Which methods hold for a network? Each by its own law, measured there."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import PyTree

from gc_jax.attribution import METHODS, Method, laws
from gc_jax.attribution.wrapping import Tapped
from gc_jax.inference import arrays, wrapped
from gc_jax.method import metrics
from gc_jax.runtime.messages import number_of, unknown_name_message


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a method's law says of a network.

  Attributes:
    title: of the method.
    holds: None where no law is known of the method, or the network's float
      type is too coarse to measure it.
    why: a sentence.
    error: by the law, as a share of the whole; NaN where nothing was measured.
    num_empty: how many of the maps are zero everywhere.
  """

  title: str
  holds: bool | None
  why: str
  error: float = np.nan
  num_empty: int = 0


@dataclasses.dataclass(frozen=True)
class Checked:
  """What was found of each method; `print` shows it."""

  verdicts: dict[str, Verdict]  # by the method's name

  def __getitem__(self, method: str) -> Verdict:
    """Returns what was found of a method."""
    return self.verdicts[method]

  def __iter__(self) -> Iterator[str]:
    """Yields the names of the methods."""
    return iter(self.verdicts)

  def __str__(self) -> str:
    """Returns a line for each method: whether it holds, and why."""
    words = {True: "holds", False: "does not hold", None: "not known"}
    width = max((len(one.title) for one in self.verdicts.values()), default=0)
    return "\n".join(
      f"{one.title:<{width}}  {words[one.holds]}: {one.why}"
      for one in self.verdicts.values()
    )


def check(
  net: nnx.Module | Tapped,
  images: ArrayLike,
  targets: ArrayLike | Sequence | None = None,
  methods: str | Iterable[str] | None = None,
) -> Checked:
  """Returns whether each method holds for a network, measured on pictures.

  Each method is run, and its law is measured: of FullGrad and integrated
  gradients, that the parts sum to the score; of excitation backprop, that a
  unit of mass arrives at every layer, and of cMWP that as much arrives for the
  class as against it; of Grad-CAM, its relatives and gradients of pixels, that
  the gradient is that of finite differences; of RISE, that a picture's score
  does not depend on those beside it. `print` shows the answers. Of a network
  that computes in bfloat16, what rounding may have made is not held against a
  method: it is not known whether that holds.

  It compiles a program for each method and law, at every call.

  Args:
    net: from `wrap`, in evaluation mode; or a model of gc_jax.
    images: a few, as `explain` takes them.
    targets: `[B]`, the class to explain in each; None for the predicted ones.
    methods: one or several keys of `METHODS`; None for all.

  Raises:
    ValueError: the images, targets or methods are something else, the model is
      in training mode, or it is called inside a `jax.jit`.
  """
  given = jax.tree.leaves((net, images, targets))
  if any(isinstance(x, jax.core.Tracer) for x in given):
    raise ValueError(
      "check must be called outside of jax.jit and other transformations: it "
      "looks at values."
    )
  if isinstance(methods, str):
    methods = (methods,)
  logits = arrays.predict(net, images)
  targets = logits.argmax(-1) if targets is None else targets
  targets = wrapped.ids_of(net, targets, "targets")
  names = tuple(METHODS if methods is None else methods)
  for name in names:
    if name not in METHODS:
      raise ValueError(unknown_name_message("method", str(name), METHODS))
  targets, images = jnp.asarray(targets), jnp.asarray(images)
  wrapped.check_labels("targets", targets, *logits.shape)
  run = functools.partial(_run, net, images, targets[:, None])
  errors = {}
  return Checked({name: _verdict(METHODS[name], run, errors) for name in names})


def _verdict(
  entry: Method,
  run: Callable[[Callable], PyTree],
  errors: dict[Callable, laws.Missed],
) -> Verdict:
  """Returns what is found of a method; `errors` of laws are measured once."""
  law = entry.law
  try:
    maps = run(functools.partial(entry, **dict(law.settings if law else ())))
    if law and law.error not in errors:
      errors[law.error] = laws.Missed(*map(float, run(law.error)))
  except Exception as refused:
    # The method says what in the network it has no rule for.
    return Verdict(entry.title, False, str(refused) or repr(refused))
  error, rounding = errors[law.error] if law else (np.nan, 0)
  if not (np.isfinite(maps).all() and maps.min() >= 0):
    why = "its maps must be finite and at least 0; some are not."
    return Verdict(entry.title, False, why, error)
  num_empty = int(metrics.is_empty(maps).sum())
  holds, why = None, "its maps are finite and at least 0; no law is stated"
  if law:
    holds = error <= law.most
    why = f"{law.title} differ by {100 * error:.2g}% (at most "
    why += f"{100 * law.most:g}%)"
    if law.most < error <= law.most + rounding:
      holds = None
      why += "; the network computes in a type coarser than float32, and "
      why += f"rounding may make {100 * rounding:.2g}%: check it in float32"
  if num_empty:
    why += f"; of {number_of(len(maps), 'map')} {num_empty} are empty"
  return Verdict(entry.title, holds, f"{why}.", error, num_empty)


def _run(net, images, targets, function) -> PyTree:
  """Returns what a function of a model, images and targets gives, compiled.

  By a program of its own, so that no plain function is remembered with the
  arrays that it holds now.
  """
  if isinstance(net, Tapped):
    parts, made = net, lambda net: net
  else:
    graphdef, parts = arrays.split(net)
    made = lambda state: arrays.evaluated(graphdef, state)
  run = lambda parts, *args: function(made(parts), *args)
  return jax.jit(run)(parts, images, targets)
