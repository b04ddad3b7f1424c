"""The house rules that can be read off the source, and that they bite.

Each check takes a tree and returns sentences, one a violation; it is held
against this repository, and against small trees that break it on purpose.
"""

import ast
import importlib
import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from ml_collections import ConfigDict

from gc_jax.method import cam as cams

ROOT = pathlib.Path(__file__).parents[1]

TOP_LEVEL = {
  "README.md",
  "configs",
  "gc_jax",
  "launch",
  "requirements.txt",
  "tests",
}
NOT_CHECKED_IN = {"runs", "__pycache__"}

# A file at the top of gc_jax is a command, or what commands share. Everything
# else has a room, and imports from its own and from rooms before it alone.
COMMANDS = {
  *("main", "evaluate", "explain", "export", "compare", "preflight"),
  "cli",
}
ROOMS = (
  "method",
  "runtime",
  "models",
  "attribution",
  "data",
  "report",
  "torch_io",
  "inference",
  "evaluation",
  "training",
  "pods",
)

# Who alone may import what.
ONLY_IN = {
  "orbax": "gc_jax.runtime.checkpoint",
  "torch": "gc_jax.torch_io",
  "tensorflow": "nobody",
  "configs": "nobody",  # a user's own folder may be called so
}
MATHS = {"jax", "numpy", "optax", "jaxtyping"}  # all that the method needs
PLAIN = ("method", "models", "attribution")  # take arguments, not configs


def sources(root):
  """Yields (path below the root, parts of the module's name, syntax tree)."""
  for path in sorted((root / "gc_jax").rglob("*.py")):
    below = path.relative_to(root)
    parts = below.with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    yield below, parts, ast.parse(path.read_text())


def imports(tree, parts, is_package):
  """Yields (line, dotted name) of everything imported, wherever it stands.

  `from a import b` yields a.b, whether b is a module or not.
  """
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = [node.module] if node.module else []
      if node.level:
        up = len(parts) - node.level + is_package
        base = [*parts[:up], *base]
      for alias in node.names:
        yield node.lineno, ".".join([*base, alias.name])


def outward_imports(root):
  for path, parts, tree in sources(root):
    if len(parts) == 1:
      continue  # gc_jax itself may offer anything
    room = parts[1]
    if room not in ROOMS and room not in COMMANDS:
      yield f"{path}: {room} is no room and no command; find it one"
      continue
    known = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ROOMS
    for line, name in imports(tree, parts, path.stem == "__init__"):
      package, *rest = name.split(".")
      if package != "gc_jax":
        continue
      if not rest:
        yield f"{path}:{line}: imports gc_jax whole; name what it needs"
      elif rest[0] not in known and not (room in COMMANDS and rest[0] == "cli"):
        yield f"{path}:{line}: {room} imports {name} of a room after it"


def circles(root):
  """Modules of a room that need each other, at import."""
  modules = {
    ".".join(parts): (path, tree) for path, parts, tree in sources(root)
  }
  needs = {}
  for name, (path, tree) in modules.items():
    top = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    body = ast.Module(top, [])
    found = imports(body, name.split("."), path.stem == "__init__")
    needs[name] = {
      other if other in modules else other.rpartition(".")[0]
      for _, other in found
    } & modules.keys()
  while leaves := [name for name, others in needs.items() if not others]:
    for name in leaves:
      del needs[name]
    for others in needs.values():
      others.difference_update(leaves)
  for name in needs:
    # A package is its modules' sum: what it offers, it imports.
    if modules[name][0].stem != "__init__":
      yield f"{modules[name][0]}: imports itself, by {sorted(needs[name])}"


def misplaced_imports(root):
  for path, parts, tree in sources(root):
    module = ".".join(parts)
    room = parts[1] if len(parts) > 1 else ""
    for line, name in imports(tree, parts, path.stem == "__init__"):
      package = name.split(".")[0]
      if not module.startswith(ONLY_IN.get(package, "")):
        yield f"{path}:{line}: imports {package}"
      known = {*MATHS, "gc_jax", *sys.stdlib_module_names}
      if room == "method" and package not in known:
        yield f"{path}:{line}: maths imports {package}"
      if room in PLAIN and package == "ml_collections":
        yield f"{path}:{line}: takes a config; take plain arguments"


def process_questions(root):
  for path, parts, tree in sources(root):
    if parts[1:] == ("runtime", "parallel"):
      continue
    for node in ast.walk(tree):
      named = isinstance(node, ast.Attribute | ast.alias) and (
        node.attr if isinstance(node, ast.Attribute) else node.name
      )
      from_jax = isinstance(node, ast.alias) or (
        isinstance(node.value, ast.Name) and node.value.id == "jax"
        if isinstance(node, ast.Attribute)
        else False
      )
      if from_jax and named in ("process_index", "process_count"):
        yield f"{path}:{node.lineno}: asks jax which process it is"


def lookups_in_modules(root):
  """`getattr(module, name)` hides what a name may be; a dict says it."""
  for path, _, tree in sources(root):
    modules = {
      (alias.asname or alias.name).split(".")[0]
      for node in ast.walk(tree)
      if isinstance(node, ast.Import | ast.ImportFrom)
      for alias in node.names
    }
    for node in ast.walk(tree):
      if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id in modules
        and not isinstance(node.args[1], ast.Constant)
      ):
        yield f"{path}:{node.lineno}: looks a name up in a module"


def drawers(root):
  for path in sorted((root / "gc_jax").rglob("*.py")):
    if path.stem in ("utils", "util", "helpers", "misc", "common"):
      yield f"{path.relative_to(root)}: a helper lives where its noun lives"


def hidden_modules(root):
  """`from gc_jax.room import x` must give the module x, if there is one."""
  for path, parts, tree in sources(root):
    if path.stem != "__init__" or len(parts) == 1:
      continue
    modules = {file.stem for file in (root / path.parent).glob("*.py")}
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and node.module != ".".join(parts):
        for alias in node.names:
          if (alias.asname or alias.name) in modules:
            yield f"{path}:{node.lineno}: hides the module {alias.name}"


def strangers(root):
  names = {path.name for path in root.iterdir()} - NOT_CHECKED_IN
  for name in sorted(names - TOP_LEVEL):
    if not name.startswith("."):
      yield f"{name}: the top level is fixed"


CHECKS = (
  outward_imports,
  circles,
  misplaced_imports,
  process_questions,
  lookups_in_modules,
  drawers,
  hidden_modules,
  strangers,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check):
  assert list(check(ROOT)) == []


PLANTED = [
  ("gc_jax/method/cam.py", "from gc_jax.models import MODELS", outward_imports),
  (
    "gc_jax/data/a.py",
    "def f():\n  import gc_jax.training.loop",
    outward_imports,
  ),
  ("gc_jax/models/a.py", "from ..training.step import x", outward_imports),
  ("gc_jax/models/__init__.py", "from .. import training", outward_imports),
  ("gc_jax/method/types.py", "import gc_jax", outward_imports),
  ("gc_jax/training/a.py", "from gc_jax import main", outward_imports),
  ("gc_jax/new.py", "", outward_imports),
  ("gc_jax/attic/a.py", "", outward_imports),
  ("gc_jax/data/a.py", "from gc_jax.data import a", circles),
  ("gc_jax/training/loop.py", "import orbax.checkpoint", misplaced_imports),
  ("gc_jax/data/a.py", "import tensorflow as tf", misplaced_imports),
  ("gc_jax/models/a.py", "from torch import nn", misplaced_imports),
  ("gc_jax/method/cam.py", "import flax", misplaced_imports),
  ("gc_jax/attribution/a.py", "import ml_collections", misplaced_imports),
  (
    "gc_jax/training/loop.py",
    "import jax\njax.process_index()",
    process_questions,
  ),
  ("gc_jax/main.py", "from jax import process_count", process_questions),
  (
    "gc_jax/training/loop.py",
    "from gc_jax import models\nname = 'a'\ngetattr(models, name)",
    lookups_in_modules,
  ),
  ("gc_jax/models/utils.py", "", drawers),
  (
    "gc_jax/data/__init__.py",
    "from gc_jax.data.reading import __init__",
    hidden_modules,
  ),
  ("scripts/run.py", "", strangers),
]


@pytest.mark.parametrize("path, source, check", PLANTED)
def test_every_check_can_fail(tmp_path, path, source, check):
  planted = tmp_path / path
  planted.parent.mkdir(parents=True)
  planted.write_text(source)
  (violation,) = check(tmp_path)
  assert violation.startswith(path.removesuffix("/run.py"))


ALLOWED = [
  ("gc_jax/__init__.py", "from gc_jax.training.loop import train_and_evaluate"),
  (
    "gc_jax/training/loop.py",
    "from gc_jax.training import step\nfrom gc_jax.method.types import Batch",
  ),
  ("gc_jax/models/a.py", "from gc_jax.models import layers\nimport jax"),
  ("gc_jax/runtime/checkpoint.py", "import orbax.checkpoint as ocp"),
  ("gc_jax/runtime/parallel.py", "import jax\njax.process_index()"),
  ("gc_jax/models/b.py", "class A:\n  def f(self, n):\n    getattr(self, n)"),
  ("gc_jax/method/losses.py", "import math\nimport optax"),
]


@pytest.mark.parametrize("path, source", ALLOWED)
def test_no_check_cries_wolf(tmp_path, path, source):
  allowed = tmp_path / path
  allowed.parent.mkdir(parents=True)
  allowed.write_text(source)
  assert [sentence for check in CHECKS for sentence in check(tmp_path)] == []


def unoverridable(config, prefix="config"):
  """Yields the fields that no flag of the command line could set."""
  for name, value in config.items(preserve_field_references=True):
    field = f"{prefix}.{name}"
    if isinstance(value, ConfigDict):
      yield from unoverridable(value, field)
    elif value is None or isinstance(value, list):
      yield f"{field} is {value!r}: use a placeholder, or a tuple"


@pytest.mark.parametrize(
  "name", sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
)
def test_every_field_of_a_config_can_be_overridden(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  assert list(unoverridable(config)) == []


def test_fields_that_cannot_be_overridden_are_found():
  config = ConfigDict({"a": 1, "b": {"c": None, "d": [1, 2]}, "e": (3,)})
  found = sorted(line.split(" ")[0] for line in unoverridable(config))
  assert found == ["config.b.c", "config.b.d"]


# What conftest.py and pytest.ini promise.


def test_there_are_four_devices():
  assert jax.device_count() == 4


def test_arrays_are_held_to_the_axes_of_the_signature():
  with pytest.raises(jaxtyping.TypeCheckError, match="normalize_cam"):
    cams.normalize_cam(jnp.zeros(3))


def test_ranks_are_not_promoted_silently():
  with pytest.raises(ValueError, match="rank_promotion"):
    jnp.ones((2, 2)) + jnp.ones(2)


def test_warnings_are_errors():
  with pytest.raises(UserWarning):
    warnings.warn("as an error", stacklevel=1)
