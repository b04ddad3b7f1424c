"""A trained model as programs that run without gc_jax, by `jax.export`.

A folder of them holds StableHLO for several platforms; lowering it needs none
of them. The weights are arguments: both programs share one file of them, and no
compiler has to fold constants of their size.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import UInt8

from gc_jax.attribution import METHODS
from gc_jax.inference import arrays
from gc_jax.models.pixels import RGB_MEAN, RGB_STD
from gc_jax.runtime import files
from gc_jax.torch_io import proof
from gc_jax.torch_io.card import Exported

WEIGHTS = "weights.npz"
PROGRAMS = ("predict", "explain")
PLATFORMS = ("cpu", "cuda", "tpu")

_LOAD_CODE = """\
import jax
import numpy as np
from jax import export


def program(name):
  with open(f"{name}.jax_export", "rb") as file:
    return jax.jit(export.deserialize(bytearray(file.read())).call)


weights = jax.device_put(dict(np.load("weights.npz")))
predict, explain = program("predict"), program("explain")
"""
_USE_CODE = """\
logits = predict(weights, images)
logits, maps = explain(weights, images, targets)
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
  """A model's `predict` and `explain`, exported.

    predict(weights, images) -> logits
    explain(weights, images, targets) -> logits, raw maps

  Images are uint8 RGB `[b S S 3]`; targets int32 `[b]`, `arrays.PREDICTED` for
  the class with the highest logit.
  """

  exported: dict[str, export.Exported]  # by name, of `PROGRAMS`
  weights: dict[str, np.ndarray]
  image_size: int
  method: str  # of the maps, a key of `METHODS`
  # Why b must be 1; "" if it may be any number.
  one_by_one: str = ""

  def save(self, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes programs and weights; returns the files."""
    with files.replacing(folder / WEIGHTS) as file:
      np.savez(file, **self.weights)
    written = [folder / WEIGHTS]
    for name, exported in self.exported.items():
      written.append(folder / filename(name))
      with files.replacing(written[-1]) as file:
        file.write(exported.serialize())
    return written


def filename(program: str) -> str:
  """Returns the file of a program in its folder."""
  return f"{program}.jax_export"


def make(
  model: nnx.Module,
  image_size: int,
  method: str,
  platforms: tuple[str, ...] = PLATFORMS,
) -> Programs:
  """Returns the programs of a model for pictures of one size.

  They take a batch of any size. Where a network or method needs to know it,
  they take one picture.
  """
  graphdef, state = nnx.split(model)
  variables = {
    ".".join(map(str, path)): (path, variable)
    for path, variable in nnx.to_flat_state(state)
  }

  def rebuilt(weights):
    flat = [
      (path, variable.replace(weights[name]))
      for name, (path, variable) in variables.items()
    ]
    model = nnx.merge(graphdef, nnx.from_flat_state(flat), copy=True)
    model.eval()
    return model

  def predict(weights, images):
    return arrays.logits_of(rebuilt(weights), images)

  def explain(weights, images, targets):
    logits, cams = arrays.logits_and_maps(
      rebuilt(weights), images, targets[:, None], [(method, METHODS[method])]
    )
    return logits, cams[method][:, 0]

  def shapes(batch):
    return (
      {
        name: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        for name, (_, variable) in variables.items()
      },
      jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8),
      jax.ShapeDtypeStruct((batch,), jnp.int32),
    )

  def exported(batch):
    weights, images, targets = shapes(batch)
    make = lambda function: export.export(
      jax.jit(function), platforms=platforms
    )
    return {
      "predict": make(predict)(weights, images),
      "explain": make(explain)(weights, images, targets),
    }

  (batch,) = export.symbolic_shape("b")
  why = ""
  try:
    found = exported(batch)
  except Exception as error:
    # If the batch is not to blame, one picture fails as well.
    found = exported(1)
    why = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
  arrays_of = {name: np.asarray(v[...]) for name, (_, v) in variables.items()}
  return Programs(found, arrays_of, image_size, method, why)


def contract(programs: Programs, described: Exported) -> dict[str, Any]:
  """Returns what the folder's JSON file says: arguments, results, classes."""
  metadata = described.metadata
  batch = 1 if programs.one_by_one else "b"
  size = programs.image_size
  images = {
    "dtype": "uint8",
    "shape": [batch, size, size, 3],
    "meaning": "RGB, 0 to 255",
  }
  targets = {
    "dtype": "int32",
    "shape": [batch],
    "meaning": "class ids; -1: the class with the highest logit",
  }
  logits = {"dtype": "float32", "shape": [batch, described.num_classes]}
  _, maps = programs.exported["explain"].out_avals
  maps = {
    "dtype": "float32",
    "shape": [batch, *maps.shape[1:]],
    "meaning": "raw, >= 0; zero everywhere: the map is empty",
  }
  of_all = {"weights": {"file": WEIGHTS}, "images": images}
  said: dict[str, Any] = {
    "architecture": metadata.architecture,
    "library": "jax",
    "num_classes": described.num_classes,
    "label_names": list(metadata.class_names),
    "programs": {
      "predict": {
        "file": filename("predict"),
        "arguments": of_all,
        "results": {"logits": logits},
      },
      "explain": {
        "file": filename("explain"),
        "method": programs.method,
        "arguments": of_all | {"targets": targets},
        "results": {"logits": logits, "maps": maps},
      },
    },
    "normalised_inside_by": {"mean": RGB_MEAN, "std": RGB_STD},
    "platforms": programs.exported["predict"].platforms,
    "jax_version": jax.__version__,
  }
  if metadata.multi_label is not None:
    kind = "multi" if metadata.multi_label else "single"
    said["problem_type"] = f"{kind}_label_classification"
  return said


def section(programs: Programs) -> str:
  """Returns the card's part on running the programs."""
  size = programs.image_size
  method = METHODS[programs.method].title
  _, maps = programs.exported["explain"].out_avals
  cells = "×".join(map(str, maps.shape[1:]))
  batch = "one at a time" if programs.one_by_one else "in any number"
  return f"""\
## In JAX, without gc_jax

After `pip install jax flatbuffers`, in this folder:

```python
{_LOAD_CODE}```

```python
# images: uint8 [b, {size}, {size}, 3], RGB. targets: int32 [b], class ids;
# -1: the class with the highest logit.
{_USE_CODE}```

Pictures come {batch}, as they are: the programs normalise them. `maps` are of
{cells} cells, by {method}: raw, not less than 0; one that is zero everywhere is
empty. Each program is StableHLO for {", ".join(PLATFORMS)}, made by jax
{jax.__version__}, which keeps such files readable for six months at least;
`export.deserialize(...).mlir_module()` shows it. `config.json` lists arguments
and results.
"""


def differences_alone(
  programs: Programs,
  folder: pathlib.Path,
  model: nnx.Module,
  images: UInt8[np.ndarray, "B S S 3"],
) -> dict[str, float]:
  """Returns how far results are that the folder gives without gc_jax, at most.

  The card's own code runs in a fresh process that cannot import gc_jax; see
  `proof.largest_differences`. Every second map is of class 0, the others of the
  class with the highest logit.

  Raises:
    RuntimeError: the code fails.
  """
  if programs.one_by_one:
    images = images[:1]
  targets = np.where(np.arange(len(images)) % 2, 0, arrays.PREDICTED)
  targets = targets.astype(np.int32)
  script = f"""\
import sys
sys.modules["gc_jax"] = None
{_LOAD_CODE}
given, result = sys.argv[1:]
given = np.load(given)
images, targets = given["images"], given["targets"]
alone = predict(weights, images)
{_USE_CODE}
np.savez(result, predict=alone, logits=logits, maps=maps)
"""
  given = {"images": images, "targets": targets}
  theirs = proof.run_alone(script, folder, given)
  logits, cams = arrays.run(model, images, targets[:, None], (programs.method,))
  ours = {
    "predict": logits,
    "logits": logits,
    "maps": cams[programs.method][:, 0],
  }
  return {
    name: proof.difference(np.asarray(each), theirs[name])
    for name, each in ours.items()
  }
