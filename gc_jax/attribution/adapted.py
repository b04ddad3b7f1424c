"""A user's NNX module as a `Network`: what is trained and measured by command.

The module is cut at its place: `features` is everything up to the output there,
`classify` everything from there on. Nothing of the module is rewritten. To get
the features its call is ended at the place; to go on from features, it is
called on blank pictures and gets the features at the place instead. What was
computed of the blank pictures is not used then, and the compiler drops it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.attribution import programs
from gc_jax.attribution.calls import Recorder, Static, observed_class
from gc_jax.attribution.flax_models import nnx_parts
from gc_jax.attribution.programs import Value
from gc_jax.method.cam import at_least_float32
from gc_jax.models.network import FEATURES, Network

# Sides of a blank picture, of which a module may take no more than one. Most
# take the first; patches and poolings divide one of the others.
_SIDES = (224, *range(16, 513, 16), 28, 36, 40, 56, 72, 84, 100, 299)


class _ReachedError(Exception):
  """Ends a call at the place: nothing has failed."""

  def __init__(self, output: Array):
    self.output = output


class Adapted(Network):
  """Cuts a module at a place.

  Everything random in the part after the place follows from the key of
  `classify`; before it, from the module's own streams of random numbers, which
  a checkpoint holds.

  Args:
    model: from `wrap`; in the mode that `train()` and `eval()` set.
    at: path of the module whose output is the features.
    cells: how the output there lies, `calls.Cells`.
    channels_first: whether the module takes `[B 3 H W]`.
    settings: of its call.
  """

  torch_names = None

  def __init__(
    self,
    model: nnx.Module,
    at: str,
    cells: Any,
    channels_first: bool,
    settings: Static,
  ):
    self.model = model
    self.at, self.cells, self.channels_first = at, cells, channels_first
    self.settings = settings
    self.dtype = jnp.float32  # of the pixels; the module casts them itself
    self._raw_keys()
    self.side = self._blank_side()
    if cells.prefix:
      channels = self._of_blank().shape[-1]
      self.num_context = channels * cells.prefix // (1 + cells.prefix)

  def _raw_keys(self) -> None:
    """Makes keys of random numbers plain integers, for files to hold."""
    for stream in self._streams():
      if jnp.issubdtype(stream.key.dtype, jax.dtypes.prng_key):
        raw = jax.random.bits(stream.key[...], _key_shape(), jnp.uint32)
        stream.key = nnx.RngKey(raw, tag=stream.tag)

  def _streams(self) -> list[nnx.RngStream]:
    return [
      node
      for _, node in nnx.iter_graph(self.model)
      if isinstance(node, nnx.RngStream)
    ]

  def _blank_side(self) -> int:
    """Returns the side of pictures that the module takes.

    Raises:
      Exception: the module takes none; its own error for the first.
    """
    graphdef, state = nnx.split(self)
    failed = None

    def whole(state, images):
      copy = nnx.merge(graphdef, state, copy=True)
      return copy.model(copy._native(images), **dict(self.settings.value))

    for side in _SIDES:
      shape = jax.ShapeDtypeStruct((1, side, side, 3), self.dtype)
      try:
        jax.eval_shape(whole, state, shape)
        return side
      except Exception as error:
        failed = failed or error
    raise failed

  def _of_blank(self) -> jax.ShapeDtypeStruct:
    """Returns the shape of the features of a blank picture."""
    graphdef, state = nnx.split(self)

    def features(state, blank):
      return nnx.merge(graphdef, state, copy=True).features(blank)

    blank = jax.ShapeDtypeStruct((1, self.side, self.side, 3), self.dtype)
    return jax.eval_shape(features, state, blank)

  # The modes of a module are its own: it may use our names for other things.

  def train(self, **attributes: Any) -> None:
    """Sets the module to training mode; the settings are of our own layers."""
    del attributes
    self.model.train()

  def eval(self, **attributes: Any) -> None:
    """Sets the module to evaluation mode."""
    del attributes
    self.model.eval()

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the output at the place. The module's state follows that far."""

    def end(output):
      raise _ReachedError(output)

    try:
      self._called(images, end)
    except _ReachedError as reached:
      return self._with_context(reached.output, *images.shape[1:3])
    raise ValueError(
      f"A call of the model must pass the place {self.at!r}, and did not. Wrap "
      "it at another; gc_jax.places lists them."
    )

  def _with_context(
    self, output: Array, height: int, width: int
  ) -> Float[Array, "B h w D"]:
    """Returns cells; tokens before them are channels of every cell.

    Tokens lie on a grid of the picture's shape, of whatever size that is.
    """
    how, prefix = self.cells, self.cells.prefix
    if how.grid is not None and output.ndim == len(how.axes):
      rows = round(((output.shape[1] - prefix) * height / width) ** 0.5)
      how = dataclasses.replace(how, grid=(rows, round(rows * width / height)))
    cells = how.of(output, self.at)
    if not prefix:
      return cells
    tokens = output[:, :prefix].reshape(len(output), 1, 1, -1)
    tokens = jnp.broadcast_to(tokens, (*cells.shape[:3], tokens.shape[-1]))
    return jnp.concatenate([cells, tokens], axis=-1)

  def _output(self, features: Float[Array, "B h w D"]) -> Array:
    """Returns what `_with_context` was given."""
    cells, context = self.parted(features)
    output, prefix = self.cells.back(cells), self.cells.prefix
    if not prefix:
      return output
    tokens = context[:, 0, 0].reshape(cells.shape[0], prefix, -1)
    return output.at[:, :prefix].set(tokens)

  def classify(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns the logits. The module's state follows from the place on."""
    blank = jnp.zeros((features.shape[0], self.side, self.side, 3), self.dtype)
    return self._classified(blank, features, key)

  def _classified(self, blank, features, key=None):
    variables = [
      node
      for _, node in nnx.iter_graph(self.model)
      if isinstance(node, nnx.Variable)
    ]
    before = [variable[...] for variable in variables]

    def restore(kind):
      for variable, value in zip(variables, before, strict=True):
        if isinstance(variable, kind) and variable[...] is not value:
          variable[...] = value

    def go_on(output):
      del output
      restore(nnx.Variable)  # what blank pictures did to it
      if key is not None:
        for number, stream in enumerate(self._streams()):
          own = jax.random.fold_in(key, number)
          stream.key[...] = jax.random.bits(own, _key_shape(), jnp.uint32)
          stream.count[...] = jnp.zeros_like(stream.count[...])
      return self._output(features)

    logits = self._called(blank, go_on)
    if key is not None:
      restore(nnx.RngState)
    if not isinstance(logits, jax.Array) or logits.ndim != 2:
      raise ValueError(
        "The model must return logits [B K]; it returned "
        f"{getattr(logits, 'shape', type(logits).__name__)}."
      )
    return at_least_float32(logits)

  def _called(self, images: Array, at_place: Callable[[Array], Array]) -> Any:
    """Returns what the module does, its output at the place exchanged."""
    module = self.model
    for name in self.at.split("."):
      module = module[int(name)] if name.isdecimal() else getattr(module, name)
    kind = type(module)
    recorder = Recorder(self.at, None)  # refuses what cannot be a place
    seen = observed_class(
      module, self.at, lambda *output: at_place(recorder(*output))
    )
    # Past the module's own check of who may write to it: it is put back.
    object.__setattr__(module, "__class__", seen)
    try:
      return self.model(self._native(images), **dict(self.settings.value))
    finally:
      object.__setattr__(module, "__class__", kind)

  def _native(self, images: Array) -> Array:
    return jnp.moveaxis(images, -1, -3) if self.channels_first else images

  def check(self) -> None:
    """Raises ValueError if the logits need more than passes the place.

    Nothing is computed.
    """
    graphdef, state = nnx.split(self)
    blank = jax.ShapeDtypeStruct((1, self.side, self.side, 3), self.dtype)
    features = self._of_blank()
    passes_by = []

    def run(state, blank, features):
      def logits(blank):
        copy = nnx.merge(graphdef, state, copy=True)
        return copy._classified(blank, features)

      out = programs.walk(logits, (blank,), _follow)
      passes_by.append(out.follows)
      return out.array

    jax.eval_shape(run, state, blank, features)
    if any(passes_by):
      raise ValueError(
        f"All that the logits are made of must pass the place {self.at!r}, so "
        "that training can go on from there; some of it takes another way. "
        "Wrap the model at a later place, where its branches have met."
      )

  def layer_inputs(self) -> dict[str, str]:
    """Returns the place, the one layer that maps are taken at."""
    return {self.at: FEATURES}

  @property
  def excitation_layer(self) -> str:
    """Returns the place."""
    return self.at

  @property
  def last_layer(self) -> tuple[str, ...]:
    """Returns the path of the first module whose shape depends on K."""
    shapes = [
      {
        path: variable.shape
        for path, variable in nnx.to_flat_state(
          nnx.state(nnx.eval_shape(made, jax.random.key(0)), nnx.Param)
        )
      }
      for made in (
        self.anew,
        dataclasses.replace(self.anew, num_classes=self.anew.num_classes + 1),
      )
    ]
    paths = [
      path for path, shape in shapes[0].items() if shape != shapes[1][path]
    ]
    return tuple(map(str, paths[0][:-1])) if paths else ()

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns the attributes of the module that hold weights.

    Each item of a list is one. They are in the order of their calls, after
    those that are never called.
    """
    call, variables = nnx_parts(self.model, dict(self.settings.value))
    called = []

    def see(variables, images):
      called.extend(call(variables, self._native(images), None, None)[1])

    blank = (1, self.side, self.side, 3)
    jax.eval_shape(see, variables, jax.ShapeDtypeStruct(blank, self.dtype))
    first = {}
    for place, path in enumerate(called):
      first.setdefault(_part(path.split(".")), place)
    found = {
      _part(list(map(str, path)))
      for path, variable in nnx.to_flat_state(nnx.state(self.model))
      if not isinstance(variable, nnx.RngState)
    }
    names = sorted(found, key=lambda name: (first.get(name, -1), name))
    return {name: (f"model.{name}",) for name in names}


def _part(path: list[str]) -> str:
  """Returns "head", or "blocks.1" of an item of a list."""
  indexed = path[1:] and path[1].isdecimal()
  return ".".join(path[: 2 if indexed else 1])


def _follow(operation: programs.Operation) -> list[Value]:
  return [Value(x, True) for x in operation.compute(operation.arrays)]


def _key_shape() -> tuple[int, ...]:
  """Returns the shape of a key that is not typed."""
  return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
