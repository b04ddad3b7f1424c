"""What all commands share: exit statuses, and paths that may begin with ~."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from configs import quickstart
from gc_jax import cli, data
from gc_jax.inference import trained
from gc_jax.report import artefact
from gc_jax.runtime.messages import UserError

ROOT = pathlib.Path(__file__).parents[1]

# Runs commands; those that are to stop do so where the work would begin, and
# say what they would work on.
DRIVER = """
import contextlib, io, json, runpy, sys
from absl import flags

class Begun(Exception):
  pass

def begin(*args, **kwargs):
  raise Begun(str([*args, kwargs]))

for words, stops in json.load(sys.stdin):
  if stops:  # these come last
    from gc_jax.evaluation import run as evaluating
    from gc_jax.pods import check
    from gc_jax.training import loop
    loop.train_and_evaluate = evaluating.evaluate = check.preflight = begin
  sys.argv = list(words)
  said, status = io.StringIO(), "begun"
  try:
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
      runpy.run_module(words[0], run_name="__main__", alter_sys=True)
  except Begun as begun:
    said.write(str(begun))
  except SystemExit as ended:
    status = ended.code
  slow = {"jax", "grain", "orbax", "matplotlib", "cv2"} & set(sys.modules)
  print(json.dumps([said.getvalue(), status, sorted(slow)]))
  # The next command has some of the same names. Those of libraries stay.
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    of_library = {"absl", "array_record"} & set(module.split("."))
    for flag in list(defined):
      if flag.name in flags.FLAGS:
        if not of_library or flag.name.startswith("config."):
          delattr(flags.FLAGS, flag.name)
  if "help" in flags.FLAGS:
    flags.FLAGS.help = False
"""


# Exit statuses: 0 done, 1 the answer is no, 2 the arguments or data are wrong.

COMMANDS = ("main", "evaluate", "explain", "export", "compare", "preflight")
QUICKSTART = f"--config={ROOT}/configs/quickstart.py:ce,smoke"
MAIN = f"main {QUICKSTART} --workdir=w"
FOLDER = f"main --config={ROOT}/configs/folder.py --workdir=w"
# A command line, and what it says when it exits with 2. These import nothing
# that takes long.
TOLD_AT_ONCE = {
  **{f"{name} --nonsense": "error: " for name in COMMANDS},
  **dict.fromkeys(COMMANDS, "error: "),
  f"{MAIN} more": "Unexpected argument 'more'",
  f"main --config={ROOT}/configs/quickstat.py --workdir=w": (
    "quickstart.py\n    Context digits"
  ),
  f"main --config={ROOT}/configs/quickstart.py:gap --workdir=w": (
    "Unknown config variant 'gap'"
  ),
  # A field may be near by its spelling, its last part, or what is said of it.
  **{
    f"{MAIN} --config.{name}=1": f"Did you mean '--config.{meant}'?"
    for name, meant in {
      "optim.lr_per_257": "optim.lr_per_256",
      "optin.momentum": "optim.momentum",
      "lr": "optim.lr_per_256",
      "learning_rate": "optim.lr_per_256",
      "epochs": "num_epochs",
      "loss.lambda": "loss.consistency_weight",
      "path": "data.path",
      "data.folder": "data.path",
      "workers": "data.num_workers",
      "pretrained": "init_from",
      "model": "model.name",
    }.items()
  },
  f"{MAIN} --config.zzz=1": "Unknown field '--config.zzz'. gc_jax/runtime/conf",
  f"{MAIN} --config.batch_size=many": "many",
  "main --config=~/recipe.py:ce --workdir=~/foreign": "holds letter.txt",
  "evaluate --out=o": "Give --workdir or --checkpoint",
  "evaluate --out=o --workdir=nowhere": "nowhere has no config.json",
  "compare nowhere --out=o": "nowhere' does not exist",
  "export --workdir=nowhere --out=o.pth": "nowhere has no config.json",
}
# These need the names of models and methods, and nothing that reads or draws.
OF_VALUES = {
  f"{MAIN} --config.model.name=resnet5": "Did you mean 'resnet50'?",
  f"{MAIN} --config.optim.schedule=stop": "Did you mean 'step'?",
  f"evaluate {QUICKSTART} --checkpoint=a.pth --out=o --methods=gradcan": (
    "Did you mean 'gradcam'?"
  ),
  f"preflight {QUICKSTART} --topology=local --config.batch_size=0": (
    "--config.batch_size=0 must be"
  ),
}
WRONG = {
  **TOLD_AT_ONCE,
  **OF_VALUES,
  f"{MAIN} --config.batch_size=3": "--config.batch_size=3 must be divisible",
  f"{MAIN} --config.init_from=none.pth": "there is none",
  f"{FOLDER} --config.data.path=nowhere": "nowhere",
  f"preflight {QUICKSTART} --topology=v5e:16x15": "Did you mean 'v5e:16x16'?",
  "explain none.png --workdir=nowhere --out=o": "none.png",
  "explain a.png --workdir=w --arch=resnet18 --out=o": "--arch goes with",
}
HELP = [f"{name} --help" for name in COMMANDS]


# A command line with paths that begin with ~, and what it says; `HOME` stands
# for the home folder. These stop where the work would begin.
RECIPE = "--config=~/recipe.py:ce"
AT_HOME = {
  f"main {RECIPE} --workdir=~/runs/a": "HOME/runs/a",
  "main --config=~nobody-at-all/x.py --workdir=a": (
    "--config: '~nobody-at-all/x.py' begins with a home folder, and there is"
  ),
  "evaluate --workdir=~/none --out=a": "HOME/none has no config.json",
  f"evaluate {RECIPE} --checkpoint=a.pth --out=~/evaluated": "HOME/evaluated",
  f"evaluate {RECIPE} --checkpoint=a.pth --out=~nobody-at-all": (
    "there is none of a user 'nobody-at-all'"
  ),
  f"preflight {RECIPE} --topology=local --out=~/new/found.json": (
    "from the recipe at home"
  ),
  "export --workdir=~/none --out=a.pth": "HOME/none has no config.json",
  "export --workdir=~/run --out=~/full/a.pth": "HOME/full/a.pth exists",
  "compare ~/none --out=a": "HOME/none' does not exist",
  "compare ~/run --out=~/full": "HOME/full' holds a.pth",
  "explain ~/none.png --workdir=a --out=a": "HOME/none.png does not",
  "explain ~/a.png --workdir=a --out=~/full/a.pth": "HOME/full/a.pth",
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
  Image.new("RGB", (8, 8)).save(home / "a.png")
  (home / "run").mkdir()
  (home / "run" / "config.json").write_text("{}")
  (home / "foreign").mkdir()
  (home / "foreign" / "letter.txt").touch()
  (home / "full").mkdir()
  (home / "full" / "a.pth").touch()
  return home


@pytest.fixture(scope="module")
def ended(home, tmp_path_factory):
  """[Output, status] of each command line, all run in one process."""
  folder = tmp_path_factory.mktemp("nothing_here")
  lines = [*WRONG, *HELP, *AT_HOME]
  done = subprocess.run(
    [sys.executable, "-c", DRIVER],
    input=json.dumps([[f"gc_jax.{x}".split(), x in AT_HOME] for x in lines]),
    capture_output=True,
    text=True,
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)},
  )
  assert done.returncode == 0, done.stderr
  assert not list(folder.iterdir()), "something was written, to ~ perhaps"
  results = map(json.loads, done.stdout.splitlines())
  return dict(zip(lines, results, strict=True))


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_or_data_end_with_2_and_say_what_is_wrong(ended, line):
  said, status, _ = ended[line]
  assert status == 2, said
  assert WRONG[line] in said and "Traceback" not in said


def test_what_is_wrong_is_told_before_what_takes_long_is_imported(ended):
  assert [line for line in TOLD_AT_ONCE if ended[line][2]] == []
  assert all(ended[line][2] == ["jax"] for line in OF_VALUES)


@pytest.mark.parametrize("line", HELP)
def test_help_ends_with_0(ended, line):
  said, status, _ = ended[line]
  assert status == 0 and f"gc_jax.{line.split()[0]}" in said


def test_help_of_main_lists_recipes_variants_and_where_fields_stand(ended):
  said, *_ = ended["main --help"]
  for words in (
    *("configs/folder.py\n    Your own pictures", ":ce :gc :gmp :gmp_gc"),
    *(":objects_gmp_gc", "gc_jax/runtime/config.py"),
  ):
    assert words in said
  assert "gradcam_elementwise, " in ended["evaluate --help"][0]


@pytest.mark.parametrize(
  ("result", "status"),
  [
    (None, 0),
    (True, 0),
    (False, 1),
    (UserError("mend it"), 2),
    (ValueError("mend it"), 2),
    (OSError("mend it"), 2),
    (ImportError("mend it"), 2),
  ],
)
def test_the_result_of_the_work_decides_the_status(result, status, capsys):
  def work():
    if isinstance(result, Exception):
      raise result
    return result

  assert cli.exit_status(work) == status
  assert capsys.readouterr().err == "error: mend it\n" * (status == 2)


def test_a_fault_of_the_program_keeps_its_traceback():
  with pytest.raises(KeyError):
    cli.exit_status({}.popitem)


@pytest.mark.parametrize("line", AT_HOME)
def test_a_path_of_a_command_may_begin_at_home(ended, home, line):
  said, *_ = ended[line]
  assert AT_HOME[line].replace("HOME", str(home)) in said
  assert (home / "new").is_dir(), "made by preflight, before the long work"


@pytest.fixture
def at_home(home, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(tmp_path)
  return home


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
def test_models_and_runs_may_be_at_home(at_home, read, name):
  """--workdir, --checkpoint, --config.init_from, --config.report.baseline."""
  with pytest.raises(ValueError, match=f"{at_home}/{name}"):
    read(f"~/{name}")


@pytest.mark.parametrize("field", ["path", "dir"])
def test_data_may_be_at_home(at_home, monkeypatch, field):
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


def test_the_classes_of_a_folder_may_be_at_home(at_home):
  config = quickstart.get_config()
  config.data.name, config.data.path = "folder", "~/none"
  with pytest.raises(ValueError, match=f"{at_home}/none"):
    data.classes(config.data)
