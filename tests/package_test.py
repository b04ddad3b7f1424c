"""What pip installs: a wheel, alone in a folder, away from the repository."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import gc_jax

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = ROOT / "gc_jax"
PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_its_dependencies_are_those_of_requirements():
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  wanted = {line.partition("#")[0].strip() for line in lines} - {""}
  declared = [
    *PROJECT["project"]["dependencies"],
    *EXTRAS["data"],
    *EXTRAS["report"],
  ]
  assert sorted(declared) == sorted(wanted)
  assert EXTRAS["all"] == ["gc_jax[data,report]"]
  tests = (ROOT / "tests/requirements.txt").read_text()
  (torch,) = EXTRAS["torch"]
  assert re.search(rf"^{re.escape(torch)}\s", tests, re.MULTILINE)


def test_its_packages_are_all_folders():
  """Of templates and pages too, which are data."""
  files = [path for path in SOURCE.rglob("*") if path.is_file()]
  folders = {
    path.parent.relative_to(ROOT)
    for path in files
    if path.suffix in (".py", ".md", ".html", ".css", ".js", ".tex", ".txt")
    and not {"__pycache__"} & set(path.parts)
    and not any(part.endswith(".egg-info") for part in path.parts)
  }
  packages = {".".join(folder.parts) for folder in folders}
  assert sorted(packages) == PROJECT["tool"]["setuptools"]["packages"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder that holds what the wheel puts there, and nothing else."""
  folder = tmp_path_factory.mktemp("package")
  copy = shutil.copytree(
    SOURCE,
    folder / "source/gc_jax",
    ignore=shutil.ignore_patterns("__pycache__"),
  )
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
  offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
  subprocess.run(
    [*pip, "wheel", *offline, f"--wheel-dir={folder}", str(copy)],
    check=True,
    capture_output=True,
  )
  (wheel,) = folder.glob("*.whl")
  assert wheel.name.startswith(f"gc_jax-{gc_jax.__version__}-")
  # A wheel of Python alone is installed by unpacking it.
  zipfile.ZipFile(wheel).extractall(folder / "site")
  # No build is left that would be taken for the source.
  assert not list(copy.rglob("build"))
  return folder / "site"


def run(installed, folder, *args, script="", check=True):
  """Runs Python on what is installed, in a folder."""
  env = {**os.environ, "PYTHONPATH": str(installed)}
  command = [sys.executable, *(args or ("-c", script))]
  done = subprocess.run(
    command, cwd=folder, env=env, capture_output=True, text=True
  )
  if check:
    assert done.returncode == 0, done.stderr
  return done


def test_it_holds_every_file_of_the_source(installed):
  wanted = {
    path.relative_to(ROOT)
    for path in SOURCE.rglob("*")
    if path.is_file()
    and "__pycache__" not in path.parts
    and not any(part.endswith(".egg-info") for part in path.parts)
  }
  found = {
    path.relative_to(installed)
    for path in (installed / "gc_jax").rglob("*")
    if path.is_file()
  }
  assert wanted - found == {pathlib.Path("gc_jax/pyproject.toml")}
  assert found <= wanted


# A user's own model, wrapped and explained; and what that brought in.
USE = """
import sys, time
import jax, flax.nnx, optax
started = time.perf_counter()
import gc_jax
took = time.perf_counter() - started
assert took < 0.3, took
assert {installed!r} in gc_jax.__file__, gc_jax.__file__
import jax.extend.backend
import jax._src.xla_bridge as bridge
from flax import nnx

wrap, explain, predict = gc_jax.wrap, gc_jax.explain, gc_jax.predict
gc_jax.consistency, gc_jax.localize, gc_jax.create
assert not bridge._backends, "a device was touched"

class Net(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 2, (3, 3), rngs=rngs)
    self.head = nnx.Linear(2, 2, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.relu(self.conv(x)).mean((1, 2)))

net = wrap(Net(nnx.Rngs(0)), at="conv")
images = jax.numpy.ones((1, 8, 8, 3))
assert predict(net, images).shape == (1, 2)
assert explain(net, images, [1]).shape == (1, 8, 8)
heavy = ["orbax", "fsspec", "tensorstore", "ml_collections", "grain", "cv2"]
heavy += ["matplotlib", "scipy", "PIL", "tensorflow", "torch", "configs"]
assert not [name for name in heavy if name in sys.modules]
print(gc_jax.create("resnet8-small", 3).fc.bias.shape)
"""


def test_it_wraps_and_explains_and_brings_in_no_more_than_that_needs(
  installed, tmp_path
):
  script = USE.replace("{installed!r}", repr(str(installed)))
  assert run(installed, tmp_path, script=script).stdout == "(3,)\n"


RECIPE = '''"""A recipe of a user's."""

from gc_jax.runtime.config import get_config as defaults


def get_config(variant=""):
  c = defaults()
  c.data.name = "folder"
  c.batch_size = 4
  return c
'''


def test_its_commands_take_a_recipe_of_the_users_and_no_defaults_of_others(
  installed, tmp_path
):
  """A `configs` of the user's is the user's, whatever is in it."""
  (tmp_path / "mine.py").write_text(RECIPE)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/__init__.py").write_text("")
  (tmp_path / "configs/base.py").write_text("raise SystemExit('not mine')")
  helped = run(installed, tmp_path, "-m", "gc_jax.main", "--help").stdout
  assert "--workdir" in helped
  assert "none here: they are in the repository" in helped
  done = run(
    installed,
    tmp_path,
    *("-m", "gc_jax.main", "--config=mine.py", "--workdir=run"),
    check=False,
  )
  assert done.returncode == 2
  assert "--config.data.path must name a folder of pictures" in done.stderr


def test_what_is_missing_is_named_with_the_line_that_installs_it(
  installed, tmp_path
):
  (tmp_path / "mine.py").write_text(RECIPE)
  script = """
import runpy, sys
import gc_jax
sys.modules["orbax"] = sys.modules["simplejpeg"] = None
try:
  gc_jax.load
except ImportError as error:
  print(error)
sys.argv = ["gc_jax.main", "--config=mine.py", "--workdir=run"]
sys.argv.append("--config.data.path=pictures")
runpy.run_module("gc_jax.main", run_name="__main__")
"""
  done = run(installed, tmp_path, script=script, check=False)
  assert "gc_jax.load needs the package 'orbax" in done.stdout
  assert done.returncode == 2
  assert "pip install 'gc_jax[all]'" in done.stderr
