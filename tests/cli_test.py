"""What the commands share: every path that a flag names may begin with ~."""

import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest
from PIL import Image

from configs import quickstart
from gc_jax import data
from gc_jax.inference import trained
from gc_jax.report import artefact

ROOT = pathlib.Path(__file__).parents[1]

# Runs a command until it begins to work, and prints what it would work on.
DRIVER = """
import json, runpy, sys
from absl import flags
from gc_jax.evaluation import run as evaluating
from gc_jax.pods import preflighting
from gc_jax.training import loop

class Begun(Exception):
  pass

def begin(*args, **kwargs):
  raise Begun(str([*args, kwargs]))

loop.train_and_evaluate = evaluating.evaluate = preflighting.preflight = begin
for words in json.load(sys.stdin):
  sys.argv = list(words)
  try:
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
  except (Begun, SystemExit) as ended:
    print(json.dumps(str(ended)))
  # The next command has some of the same names. absl's own stay.
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    for flag in list(defined) if "absl" not in module else ():
      if flag.name in flags.FLAGS:
        delattr(flags.FLAGS, flag.name)
"""

CONFIG = "--config=~/recipe.py:ce"
# Words of a command line, and what must be found at home.
CASES = {
  "main --workdir": (
    ["gc_jax.main", CONFIG, "--workdir=~/runs/a"],
    "runs/a",
  ),
  "main --config": (
    ["gc_jax.main", "--config=~nobody-at-all/x.py", "--workdir=a"],
    "--config: '~nobody-at-all/x.py' begins with a home folder, and there is",
  ),
  "evaluate --workdir": (
    ["gc_jax.evaluate", "--workdir=~/runs/none", "--out=a"],
    "runs/none has no config.json",
  ),
  "evaluate --out": (
    ["gc_jax.evaluate", CONFIG, "--checkpoint=a.pth", "--out=~/evaluated"],
    "evaluated",
  ),
  "evaluate --out of nobody": (
    ["gc_jax.evaluate", CONFIG, "--checkpoint=a.pth", "--out=~nobody-at-all"],
    "there is none of a user 'nobody-at-all'",
  ),
  "preflight --config, --out": (
    ["gc_jax.preflight", CONFIG, "--topology=local", "--out=~/new/found.json"],
    "from the recipe at home",
  ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp("home")
  (home / "recipe.py").write_text(
    "from configs import quickstart\n\n\n"
    "def get_config(variant):\n"
    "  config = quickstart.get_config(variant)\n"
    "  config.data.train_split = 'from the recipe at home'\n"
    "  return config\n"
  )
  return home


@pytest.fixture(scope="module")
def begun(home, tmp_path_factory):
  """What each command line comes to; all in one process, started elsewhere."""
  folder = tmp_path_factory.mktemp("elsewhere")
  done = subprocess.run(
    [sys.executable, "-c", DRIVER],
    input=json.dumps([words for words, _ in CASES.values()]),
    capture_output=True,
    text=True,
    cwd=folder,
    env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  assert not list(folder.iterdir()), "a folder that is called ~, say"
  said = map(json.loads, done.stdout.splitlines())
  return dict(zip(CASES, said, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_path_of_a_flag_may_begin_at_home(begun, home, case):
  expected = CASES[case][1]
  if "/" in expected and " " not in expected.split("/")[0]:
    expected = f"{home}/{expected}"
  assert expected in begun[case]


@pytest.fixture
def at_home(home, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(tmp_path)
  yield home
  assert not list(tmp_path.iterdir()), "a folder that is called ~, say"


def command(module):
  """Returns the `main` of a command."""
  # Not imported: gc_jax.explain is a function, and refuses to be a module.
  return runpy.run_path(ROOT / "gc_jax" / f"{module}.py", run_name=module)[
    "main"
  ]


@pytest.mark.parametrize(
  ("module", "words", "expected"),
  [
    ("export", ["--workdir=~/none", "--out=a.pth"], "none does not exist"),
    ("compare", ["~/none", "--out=a"], "none' does not exist"),
    ("explain", ["~/none.png", "--workdir=a", "--out=a"], "none.png does not"),
  ],
)
def test_what_is_not_there_is_looked_for_at_home(
  at_home, capsys, module, words, expected
):
  assert command(module)(words) == 2
  assert f"{at_home}/{expected}" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("module", "words", "path"),
  [
    ("export", ["--workdir=a", "--out=~/full/a.pth"], "full/a.pth exists"),
    ("compare", ["a", "--out=~/full"], "full' holds a.pth"),
    (
      "explain",
      ["~/a.png", "--workdir=a", "--out=~/full/a.pth"],
      "full/a.pth",
    ),
  ],
)
def test_what_is_written_is_written_at_home(
  at_home, capsys, module, words, path
):
  """As what is in the way there shows."""
  Image.new("RGB", (8, 8)).save(at_home / "a.png")
  (at_home / "full").mkdir(exist_ok=True)
  (at_home / "full" / "a.pth").touch()
  assert command(module)(words) == 2
  assert f"{at_home}/{path}" in capsys.readouterr().err


@pytest.mark.parametrize(
  "read",
  [
    trained.load_model,
    trained.load,
    functools.partial(trained.initial_model, name="resnet18"),
    artefact.load,
    artefact.load_finished,
  ],
)
@pytest.mark.parametrize("name", ["none", "none.pth"])
def test_models_and_runs_are_looked_for_at_home(at_home, read, name):
  """--workdir, --checkpoint, --config.init_from, --config.report.baseline."""
  with pytest.raises(ValueError, match=f"{at_home}/{name}"):
    read(f"~/{name}")


@pytest.mark.parametrize("field", ["path", "dir"])
def test_data_is_looked_for_at_home(at_home, monkeypatch, field):
  config = quickstart.get_config()
  config.data[field] = "~/pictures"
  seen = []

  def load(found, split):
    seen.append((found, split))
    return data.Dataset((), (), False, "")

  entry = data.DATASETS["context_digits"]._replace(load=load)
  monkeypatch.setitem(data.DATASETS, "context_digits", entry)
  data.load(config.data, "train")
  ((found, split),) = seen
  assert found[field] == f"{at_home}/pictures" and split == "train"
  assert config.data[field] == "~/pictures", "what is saved with the run"
  config.data[field] = "~nobody-at-all/pictures"
  with pytest.raises(ValueError, match=rf"config\.data\.{field}: \'~nobody"):
    data.load(config.data, "train")


def test_classes_are_looked_for_at_home(at_home):
  config = quickstart.get_config()
  config.data.name, config.data.path = "folder", "~/none"
  with pytest.raises(ValueError, match=f"{at_home}/none"):
    data.classes(config.data)


def test_preflight_makes_the_folder_it_will_write_to(begun, home):
  assert (home / "new").is_dir()
