"""The launch scripts, with stand-ins for the programs that they drive.

Every stand-in writes its arguments into a file, and plays what the test says.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time

import jsonschema
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "tests/launch/jobset.schema.json").read_text())
TRAINING = ("--config=configs/quickstart.py:gc", "--workdir=runs/gc")
CLOUD = ("--config=configs/quickstart.py:gc", "--workdir=gs://bucket/gc")
TPU = (
  *("--on=tpu", "--name=gc", "--image=docker.pkg.dev/p/gc:1"),
  *("--accelerator=tpu-v5-lite-podslice", "--topology=4x4"),
)
GPU = (
  *("--on=gpu", "--name=gc", "--image=docker.pkg.dev/p/gc:1"),
  *("--accelerator=nvidia-h100-80gb", "--nodes=2"),
)
POD = ("--name=gc", "--zone=us-west4-a", "--accelerator=v5litepod-16")
# What each script needs to do its work.
COMPLETE = {
  "gke.sh": (*TPU, *CLOUD),
  "gpus.sh": TRAINING,
  "slurm.sh": ("--gpus-per-node=4", *TRAINING),
  "tpu_pod.sh": (*POD, *CLOUD),
  "two_processes.sh": TRAINING,
  "worker.sh": TRAINING,
}

# The arguments of each call are a line of calls, in JSON.
PROGRAM = """#!{python} -S
import json, os, pathlib, sys
here = pathlib.Path({folder!r})
call = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (here / "calls").open("a") as file:
  file.write(json.dumps(call) + "\\n")
def play(name, default):
  path = here / name
  lines = path.read_text().splitlines() if path.exists() else [default]
  if len(lines) > 1:
    path.write_text("\\n".join(lines[1:]))
  return lines[0]
{body}
"""

# What gcloud 528 takes; it refuses the whole command for any other flag.
GCLOUD = """
words = " ".join(call)
common = {"--zone", "--project", "--format", "--quiet"}
flags = {
  "queued-resources create": {
    *("--node-id", "--accelerator-type", "--runtime-version"),
    *("--spot", "--reserved"),
  },
  "queued-resources describe": set(),
  "queued-resources delete": {"--force", "--async"},
  "tpu-vm describe": set(),
  "tpu-vm scp": {"--worker", "--recurse", "--compress"},
  "tpu-vm ssh": {"--worker", "--command"},
}
given = {word.split("=")[0] for word in call if word.startswith("--")}
if unknown := given - common - flags[" ".join(call[3:5])]:
  sys.exit(f"unrecognized arguments: {unknown}")
if "queued-resources describe" in words:
  state = play("states", "ACTIVE")
  sys.exit(1) if state == "-" else print(state)
elif "tpu-vm describe" in words:
  print(play("nodes", "READY"))
elif "queued-resources delete" in words:
  sys.exit(int(play("deletions", "0")))
elif "tpu-vm scp" in words:
  (here / "copied").write_bytes(pathlib.Path(call[5]).read_bytes())
elif "tpu_worker.sh install" in words:
  sys.exit(int(play("installations", "0")))
elif "tpu_worker.sh train" in words:
  statuses = play("trainings", "0 0").split()
  if statuses == ["wait"]:
    (here / "training").touch()
    import time
    time.sleep(60)
  for status in statuses:
    if status != "lost":
      print("worker exited:", status)
  sys.exit(int(play("verdict", "0" if set(statuses) == {"0"} else "255")))
"""

# One process of a training: ends by itself, fails, or waits to be stopped.
PYTHON = """
import signal, time
rank = os.environ.get("JAX_PROCESS_ID", "0")
def save(*_):
  print("saved", flush=True)
  sys.exit(0)
deaf = play("deaf" + rank, "")
signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else save)
(here / f"environment{rank}").write_text(json.dumps(dict(os.environ)))
print("training", flush=True)
(here / f"started{rank}").touch()
status = play("status" + rank, "0")
if status == "wait":
  time.sleep(60)
  status = 99
while status == "7" and not (here / f"started{1 - int(rank)}").exists():
  time.sleep(0.01)  # it fails once the other has begun
sys.exit(int(status))
"""

# An interpreter that environments are made of, or one of the wrong version.
INTERPRETER = """
import shutil
if call[1] == "-c":
  sys.exit(int(play("version", "0")))
elif call[1:3] == ["-m", "venv"]:
  copy = pathlib.Path(call[3], "bin", "python")
  copy.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(sys.argv[0], copy)
elif call[1:4] == ["-m", "uv", "python"] and "find" in call:
  print(here / "uv/python3.12")
elif call[1:3] == ["-m", "pip"]:
  sys.exit(int(play("pip", "0")))
"""

# All else that the scripts may find. Not whole folders: a gcloud, kubectl or
# sbatch of the machine that tests must never be reached.
TOOLS = (
  *("basename", "bash", "cat", "cksum", "date", "dirname", "env", "grep"),
  *("gzip", "head", "mkdir", "mkfifo", "mktemp", "rm", "sed", "setsid"),
  *("sleep", "tail", "tar", "tee", "timeout"),
)


class Fakes:
  """A folder that is the PATH, and what was called in it."""

  def __init__(self, folder):
    self.folder = folder
    self.root = ROOT
    self.bin = folder / "bin"
    self.bin.mkdir()
    self.env = {
      k: v
      for k, v in os.environ.items()
      if not k.startswith(("JAX_", "SLURM_", "CUDA_")) and k != "PYTHON"
    }
    for tool in TOOLS:
      (self.bin / tool).symlink_to(shutil.which(tool))
    self.env["PATH"] = str(self.bin)
    self.env["XLA_FLAGS"] = ""
    # An active environment is used as it is: nothing is installed.
    self.env["VIRTUAL_ENV"] = str(folder / "venv")

  def add(self, name, body=""):
    path = self.bin / name
    path.unlink(missing_ok=True)  # a tool it takes the place of
    path.write_text(
      PROGRAM.format(python=sys.executable, folder=str(self.folder), body=body)
    )
    path.chmod(0o755)

  def plays(self, **lines):
    for name, text in lines.items():
      (self.folder / name).write_text(text.replace(", ", "\n"))

  def calls(self, *having):
    path = self.folder / "calls"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines()]
    return [c for c in found if all(h in " ".join(c) for h in having)]

  def start(self, script, *arguments, **options):
    return subprocess.Popen(
      [str(self.root / "launch" / script), *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=self.env,
      **options,
    )

  def run(self, script, *arguments, status=0, **options):
    """Returns what it said on stdout and stderr, once it ended as it must."""
    process = self.start(script, *arguments, **options)
    said = process.communicate(timeout=30)
    assert process.returncode == status, said
    return said

  def environment(self, rank=0):
    """Returns that of the process of a rank, which has trained."""
    return json.loads((self.folder / f"environment{rank}").read_text())

  def copy_source(self):
    """Lets a copy of the scripts run, beside which files may be made."""
    self.root = self.folder / "source"
    shutil.copytree(ROOT / "launch", self.root / "launch")
    shutil.copy(ROOT / "requirements.txt", self.root)
    return self.root

  def wait_for(self, *names):
    for _ in range(500):
      if all((self.folder / name).exists() for name in names):
        return
      time.sleep(0.02)
    raise AssertionError(f"{names} never came")


@pytest.fixture
def fakes(tmp_path, hearing_ctrl_c):
  return Fakes(tmp_path)


@pytest.fixture
def cloud(fakes):
  fakes.add("gcloud", GCLOUD)
  fakes.add("sleep")
  return fakes


def test_no_program_of_a_cloud_is_within_reach(fakes):
  for program in ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "python"):
    assert shutil.which(program, path=fakes.env["PATH"]) is None


def test_shellcheck_finds_nothing():
  here = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
  shellcheck = here if here.exists() else shutil.which("shellcheck")
  scripts = sorted((ROOT / "launch").glob("*.sh"))
  assert len(scripts) >= 8
  done = subprocess.run(
    [shellcheck, *scripts], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", COMPLETE)
def test_help_is_the_comment_at_the_top_and_names_every_option(fakes, script):
  said, _ = fakes.run(script, "--help")
  text = (ROOT / "launch" / script).read_text()
  comment = re.match(r"#!.*\n((?:#.*\n)+)", text)[1]
  assert said == re.sub("^# ?", "", comment, flags=re.M)
  specification = re.search(r'parse_arguments "([^"]*)"', text)[1]
  for option in specification.replace("\\\n", "").split():
    name, default = re.fullmatch(r"([a-z-]+)[=!?]?(.*)", option).groups()
    assert f"--{name}" in said
    if default:
      assert f"--{name}={default}" in said or name == "gpus"


@pytest.mark.parametrize("script", COMPLETE)
def test_a_dry_run_prints_the_training_and_calls_nothing(fakes, script):
  for program in ("gcloud", "kubectl", "sbatch", "srun", "python", "curl"):
    fakes.add(program)
  field = "--config.data.path=/a b/it's"
  said, errors = fakes.run(script, *COMPLETE[script], field, "--dry-run")
  assert "--config=configs/quickstart.py:gc" in said
  assert "--config.data.path=/a b/it" in said
  assert errors == "" and fakes.calls() == []


@pytest.mark.parametrize("script", COMPLETE)
def test_every_script_needs_a_config_and_a_workdir_and_no_unknown_argument(
  fakes, script
):
  for without, added, message in (
    ("--config=", (), "--config=FILE must say what to train"),
    ("--workdir=", (), "--workdir=DIR must say where to write"),
    (None, ("--multihost",), "--multihost is added where it belongs"),
    (None, ("--noeds=2",), r"Unknown argument '--noeds=2'. Known:.*--config"),
    (None, ("--config.seed",), r"Unknown argument '--config.seed'"),
    (None, ("configs/a.py",), r"Unknown argument 'configs/a.py'"),
  ):
    kept = [a for a in COMPLETE[script] if a.split("=")[0] + "=" != without]
    said, error = fakes.run(script, *kept, *added, "--dry-run", status=2)
    assert said == ""
    assert re.match(rf"{script}: .*{message}", error, re.DOTALL)


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("two_processes.sh", "--grace=-1", "--grace must be a whole number"),
    ("two_processes.sh", "--grace=", "--grace needs a value"),
    ("gpus.sh", "--gpus=0", "--gpus must be a whole number of at least 1"),
    ("slurm.sh", "--nodes=08", "--nodes must be a whole number"),
    ("slurm.sh", "--time=tomorrow", "--time must be a time as SLURM"),
    ("slurm.sh", "--name=a b", "--name must be letters"),
    ("slurm.sh", "--account=a\n#SBATCH -x", "--account must be the name"),
    ("tpu_pod.sh", "--workdir=/data", "lost when they are preempted"),
    ("tpu_pod.sh", "--zone=us-west4", "--zone must be a zone"),
    ("tpu_pod.sh", "--accelerator=a100", "--accelerator must be a gener"),
    ("tpu_pod.sh", "--accelerator=v9z-8", "--runtime must be given"),
    ("tpu_pod.sh", ("--spot", "--reserved"), "exclude one another"),
    ("tpu_pod.sh", "--spot=yes", "--spot is a switch"),
    ("tpu_pod.sh", "--name=A", "--name must be small letters"),
    ("tpu_pod.sh", "--config=/tmp/mine.py", "a file of configs/"),
    ("gke.sh", "--on=cpu", "--on must be tpu or gpu"),
    ("gke.sh", "--workdir=runs/gc", "--workdir must be a folder of a bucket"),
    ("gke.sh", "--topology=4", "--topology must be a topology"),
    ("gke.sh", "--topology=2x3", "must fill whole nodes"),
    ("gke.sh", "--nodes=2", "--nodes and --gpus-per-node are for --on=gpu"),
    ("gke.sh", "--image=a b", "--image must be the name of an image"),
    ("gke.sh", "--on=gpu", "--topology is for --on=tpu"),
    ("gke.sh", "--config.data.path=a\nb", "of one line"),
  ],
)
def test_bad_arguments_are_told(fakes, script, arguments, message):
  if isinstance(arguments, str):
    arguments = (arguments,)
  # Of an option given twice, the last counts.
  words = (*COMPLETE[script], *arguments, "--dry-run")
  said, error = fakes.run(script, *words, status=2)
  assert said == "" and message in error


@pytest.mark.parametrize(
  ("script", "required", "program"),
  [
    ("tpu_pod.sh", ("--name", "--zone", "--accelerator"), "gcloud"),
    ("gke.sh", ("--on", "--name", "--image", "--accelerator"), "kubectl"),
    ("slurm.sh", ("--gpus-per-node",), "sbatch"),
  ],
)
def test_missing_options_and_programs_are_told(
  fakes, script, required, program
):
  for option in required:
    kept = [a for a in COMPLETE[script] if not a.startswith(f"{option}=")]
    _, error = fakes.run(script, *kept, "--dry-run", status=2)
    assert f"{option} must be given; it was not" in error
  _, error = fakes.run(script, *COMPLETE[script], status=2)
  assert f"{program} must be on the PATH" in error


# Two processes.


def test_both_processes_train_and_their_lines_are_numbered(fakes):
  fakes.add("python", PYTHON)
  fakes.env["XLA_FLAGS"] = "--xla_a=1"
  said, errors = fakes.run("two_processes.sh", *TRAINING)
  assert errors == ""
  assert sorted(said.split("\n")) == ["", "[0] training", "[1] training"]
  command = ["python", "-m", "gc_jax.main", *TRAINING, "--multihost"]
  assert fakes.calls() == [command, command]
  addresses = set()
  for rank in "01":
    env = fakes.environment(rank)
    addresses.add(env["JAX_COORDINATOR_ADDRESS"])
    assert env["JAX_NUM_PROCESSES"] == "2"
    assert env["JAX_PLATFORMS"] == "cpu"
    assert env["XLA_FLAGS"].split() == [
      "--xla_a=1",
      "--xla_force_host_platform_device_count=4",
    ]
  assert re.fullmatch(r"127\.0\.0\.1:\d{5}", addresses.pop())
  assert not addresses


@pytest.mark.parametrize(
  ("failing", "deaf", "said"),
  [
    (0, {}, "Process 0 failed with status 7"),
    (1, {}, "Process 1 failed with status 7"),
    (0, {"deaf1": "yes"}, "Process 1 did not end within 1 s; killing it"),
  ],
)
def test_when_one_process_fails_the_other_is_stopped(
  fakes, failing, deaf, said
):
  fakes.add("python", PYTHON)
  statuses = {f"status{failing}": "7", f"status{1 - failing}": "wait"}
  fakes.plays(**statuses, **deaf)
  words = (*TRAINING, "--grace=1")
  assert said in fakes.run("two_processes.sh", *words, status=7)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_pass_a_signal_on(fakes, number):
  fakes.add("python", PYTHON)
  fakes.plays(status0="wait", status1="wait")
  process = fakes.start("two_processes.sh", *TRAINING)
  fakes.wait_for("started0", "started1")
  process.send_signal(number)
  stdout, _ = process.communicate(timeout=20)
  assert process.returncode == (130 if number == signal.SIGINT else 0)
  assert "[0] saved" in stdout
  assert "[1] saved" in stdout


# Preflight.


SLICE = ("--config=configs/imagenet.py:resnet50-gc", "--topology=v5e:4x4")


def test_preflight_has_an_environment_of_its_own(fakes):
  fakes.copy_source()
  fakes.add("python3", INTERPRETER)
  fakes.add("python")
  fakes.run("preflight.sh", *SLICE, "--fast")
  venv, *_ = fakes.calls("-m venv")
  assert venv[-1] == ".venv-tpu" and not (fakes.root / ".venv").exists()
  (pip,) = fakes.calls("-m pip")
  assert pip[-1] == "jax[tpu]"
  (ran,) = fakes.calls("-m gc_jax.preflight")
  assert ran[1:] == ["-m", "gc_jax.preflight", *SLICE, "--fast"]
  # It is made once; and nothing is installed to ask about this machine.
  fakes.run("preflight.sh", *SLICE)
  fakes.run("preflight.sh", SLICE[0], "--topology=local")
  assert len(fakes.calls("-m pip")) == 1
  assert fakes.calls("--topology=local")[0][0] == "python"


def test_preflight_says_what_it_would_run_and_what_is_missing(fakes):
  fakes.add("python3")
  said, _ = fakes.run("preflight.sh", "--help")
  assert said.startswith("Says whether a recipe fits") and "--dry-run" in said
  said, errors = fakes.run("preflight.sh", *SLICE, "--dry-run")
  assert said.split()[1:] == [
    *(".venv-tpu/bin/python", "-m", "gc_jax.preflight"),
    *SLICE,
  ]
  for missing in SLICE:
    (kept,) = {*SLICE} - {missing}
    _, error = fakes.run("preflight.sh", kept, status=2)
    assert f"preflight.sh: {missing.split('=')[0]}=" in error
  assert errors == "" and fakes.calls() == []


# One worker.


@pytest.mark.parametrize(
  ("workdir", "chosen", "expected"),
  [
    ("runs/gc", None, "runs/gc/compiled"),
    ("runs/gc", "/cache", "/cache"),
    ("~/runs/gc", None, "/somebody/runs/gc/compiled"),
    ("runs/~/gc", None, "runs/~/gc/compiled"),
    ("gs://bucket/~gc", None, "gs://bucket/~gc/compiled"),
  ],
)
def test_a_worker_keeps_what_it_compiled_beside_the_run(
  fakes, workdir, chosen, expected
):
  fakes.add("python", PYTHON)
  fakes.env["HOME"] = "/somebody"
  if chosen:
    fakes.env["JAX_COMPILATION_CACHE_DIR"] = chosen
  arguments = ["--config=configs/quickstart.py", f"--workdir={workdir}"]
  fakes.run("worker.sh", *arguments)
  env = fakes.environment()
  assert env["JAX_COMPILATION_CACHE_DIR"] == expected


def test_a_worker_that_was_stopped_is_told_from_one_that_ended(fakes):
  fakes.add("python", PYTHON)
  fakes.plays(status0="0, 1, 75, wait")
  for status in (0, 1, 75):
    fakes.run("worker.sh", *TRAINING, status=status)
  for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
    (fakes.folder / "started0").unlink()
    process = fakes.start("worker.sh", *TRAINING)
    fakes.wait_for("started0")
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=20)
    assert stdout == "training\nsaved\n"
    assert process.returncode == status


# GPUs of one node.

LIST = "print('GPU 0: a\\nGPU 1: b\\nGPU 2: c')"


@pytest.mark.parametrize(
  ("option", "visible", "expected"),
  [
    ((), None, None),
    (("--gpus=2",), None, "0,1"),
    (("--gpus=1",), "5,3", "5"),
  ],
)
def test_one_process_drives_the_gpus(fakes, option, visible, expected):
  fakes.add("nvidia-smi", LIST)
  fakes.add("python", PYTHON)
  if visible:
    fakes.env["CUDA_VISIBLE_DEVICES"] = visible
  fakes.run("gpus.sh", *TRAINING, *option)
  assert fakes.calls("python") == [["python", "-m", "gc_jax.main", *TRAINING]]
  env = fakes.environment()
  assert env.get("CUDA_VISIBLE_DEVICES") == expected
  assert env["JAX_PLATFORMS"].startswith("cuda")
  assert env["JAX_COMPILATION_CACHE_DIR"].endswith("/compiled")


def test_gpus_that_are_not_there_are_told(fakes):
  _, error = fakes.run("gpus.sh", *TRAINING, status=2)
  assert "An NVIDIA GPU is needed" in error
  fakes.add("nvidia-smi", LIST)
  _, error = fakes.run("gpus.sh", *TRAINING, "--gpus=4", status=2)
  assert "--gpus must be at most the 3 of this machine" in error


# SLURM.


def job(fakes, *arguments):
  """Returns the path of the job that was submitted."""
  body = '(here / "job").write_text(sys.stdin.read())'
  fakes.add("sbatch", body)
  fakes.run("slurm.sh", *COMPLETE["slurm.sh"], *arguments)
  assert fakes.calls() == [["sbatch"]]
  path = fakes.folder / "job"
  path.chmod(0o755)
  return path


def test_the_job_has_a_task_per_gpu_that_sees_all_gpus(fakes):
  text = job(fakes, "--nodes=2", "--partition=a100", "--time=1-0").read_text()
  settings = dict(
    re.match(r"#SBATCH --([a-z-]+)=?(.*)", line).groups()
    for line in text.splitlines()
    if line.startswith("#SBATCH")
  )
  assert settings == {
    "job-name": "gc_jax",
    "nodes": "2",
    "ntasks-per-node": "4",
    "gpus-per-node": "4",
    "cpus-per-task": "8",
    "time": "1-0",
    "partition": "a100",
    "output": "slurm-gc_jax-%j.log",
    "open-mode": "append",
    "requeue": "",
    "signal": "TERM@120",
  }
  # SLURM reads no settings after the first command.
  head = text.split("\nset -uo pipefail\n")[0]
  assert all(line.startswith("#") for line in head.splitlines())
  assert text.startswith("#!")


@pytest.mark.parametrize(
  ("status", "restarts", "requeued"),
  [(0, 0, False), (75, 0, True), (75, 3, False), (1, 0, False)],
)
def test_only_what_is_not_finished_is_queued_again(
  fakes, status, restarts, requeued
):
  path = job(fakes, "--max-restarts=3", "--config.data.path=/a b/it's")
  fakes.add("srun", f"sys.exit({status})")
  fakes.add("scontrol")
  fakes.env["SLURM_JOB_ID"] = "42"
  fakes.env["SLURM_RESTART_COUNT"] = f"{restarts}"
  _, error = fakes.run(path, status=0 if requeued else status)
  expected = [["scontrol", "requeue", "42"]] if requeued else []
  assert fakes.calls("scontrol") == expected
  (srun,) = fakes.calls("srun")
  at = srun.index("launch/worker.sh")
  assert srun[at + 1 :] == [*TRAINING, "--config.data.path=/a b/it's"]
  assert ("raise --max-restarts" in error) == (restarts == 3)


@pytest.mark.parametrize("pip", [0, 1])
def test_a_job_does_not_train_where_the_packages_could_not_be_installed(
  fakes, pip
):
  fakes.copy_source()
  del fakes.env["VIRTUAL_ENV"]
  path = job(fakes)
  fakes.add("python3", INTERPRETER)
  fakes.add("srun")
  fakes.plays(pip=str(pip))
  fakes.run(path, status=pip)
  assert len(fakes.calls("pip install")) == 1
  assert len(fakes.calls("srun")) == 1 - pip
  # A failed installation is not taken for one that is done.
  assert len(list(fakes.root.glob(".venv/.installed-*"))) == 1 - pip


def test_the_tasks_of_a_job_train_with_the_others(fakes):
  path = job(fakes)
  fakes.add("srun", "os.execv(call[3], call[3:])")
  fakes.add("python", PYTHON)
  fakes.run(path)
  (python,) = fakes.calls("gc_jax.main")
  assert python[1:] == ["-m", "gc_jax.main", *TRAINING, "--multihost"]
  env = fakes.environment()
  assert env["JAX_PLATFORMS"].startswith("cuda")
  assert env["JAX_COMPILATION_CACHE_DIR"].endswith("/compiled")


# GKE.


def manifest(fakes, *arguments):
  said, _ = fakes.run("gke.sh", *arguments, "--dry-run")
  filled = yaml.safe_load(said)
  jsonschema.validate(filled, SCHEMA)
  assert "${" not in re.sub(r"args: .*", "", said)
  return filled


def parts(filled):
  """Returns the specs of the job, of its pods and of their container."""
  (replicated,) = filled["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  return job, pod, pod["containers"][0]


@pytest.mark.parametrize(
  ("topology", "chips", "nodes"),
  [("4x4", 4, 4), ("2x4", 8, 1), ("2x2x4", 4, 4), ("16x16", 4, 64)],
)
def test_a_slice_has_a_pod_on_every_node(fakes, topology, chips, nodes):
  options = (f"--topology={topology}", f"--chips-per-node={chips}")
  job, pod, container = parts(manifest(fakes, *TPU, *CLOUD, *options))
  assert job["parallelism"] == job["completions"] == nodes
  assert container["resources"]["limits"] == {"google.com/tpu": chips}
  env = {e["name"]: e["value"] for e in container["env"]}
  assert env["JAX_PLATFORMS"].startswith("tpu")
  assert "JAX_COORDINATOR_ADDRESS" not in env  # jax finds it by itself
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": topology,
  }


def test_gpu_pods_know_one_another(fakes):
  filled = manifest(fakes, *GPU, *CLOUD, "--spot")
  job, pod, container = parts(filled)
  # The first pod has its name before it is ready, as the others look for it.
  assert all(filled["spec"]["network"].values())
  env = {e["name"]: e.get("value") for e in container["env"]}
  assert job["completions"] == 2
  assert env["JAX_NUM_PROCESSES"] == "2"
  # The port is one that the container names.
  host, port = env["JAX_COORDINATOR_ADDRESS"].split(":")
  assert host == "gc-worker-0-0.gc"
  assert {"containerPort": int(port)} in container["ports"]
  assert env["JAX_PROCESS_ID"] is None  # from the index of the pod
  assert env["JAX_PLATFORMS"].startswith("cuda")
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize("kind", [TPU, GPU], ids=["tpu", "gpu"])
def test_a_stopped_pod_restarts_the_set_without_counting(fakes, kind):
  options = ("--max-restarts=3", "--grace=60", "--name=on")
  filled = manifest(fakes, *kind, *CLOUD, *options)
  assert filled["metadata"]["name"] == "on"  # no truth value of YAML's
  assert filled["spec"]["failurePolicy"]["maxRestarts"] == 3
  (rule,) = filled["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  job, pod, container = parts(filled)
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  disrupted, stopped = job["podFailurePolicy"]["rules"]
  # The reason above is that of a job which its policy fails.
  assert disrupted["action"] == stopped["action"] == "FailJob"
  assert disrupted["onPodConditions"][0]["status"] == "True"
  assert stopped["onExitCodes"]["operator"] == "In"
  assert stopped["onExitCodes"]["values"] == [75]
  assert stopped["onExitCodes"]["containerName"] == container["name"]
  assert pod["terminationGracePeriodSeconds"] == 60
  assert container["command"] == ["launch/worker.sh"]
  volumes = [v["name"] for v in pod["volumes"]]
  assert [m["name"] for m in container["volumeMounts"]] == volumes


def test_arguments_reach_the_container_as_they_are(fakes):
  field = """--config.data.path=/a "b"\\c $(NAME) ${NAME} $$ it's, é & #"""
  _, _, container = parts(manifest(fakes, *TPU, *CLOUD, field))
  # Kubernetes makes one dollar of two, and expands $(NAME).
  assert container["args"][:-1] == [*CLOUD]
  assert "$(NAME)" not in container["args"][-1].replace("$$", "")
  assert container["args"][-1].replace("$$", "$") == field


def test_the_manifest_is_handed_to_kubectl(fakes):
  fakes.add("kubectl", '(here / "applied").write_text(sys.stdin.read())')
  fakes.run("gke.sh", *GPU, *CLOUD)
  assert fakes.calls() == [["kubectl", "create", "-f", "-"]]
  applied = yaml.safe_load((fakes.folder / "applied").read_text())
  assert applied == manifest(fakes, *GPU, *CLOUD)
  fakes.add("kubectl", "sys.exit(5)")
  fakes.run("gke.sh", *GPU, *CLOUD, status=5)


def test_the_image_holds_what_a_worker_needs():
  text = (ROOT / "launch/Dockerfile").read_text()
  assert "\nFROM python:3.11-slim\n" in text
  copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
  sent = (ROOT / "launch/Dockerfile.dockerignore").read_text().splitlines()
  for path in copied:
    assert (ROOT / path).exists()
    assert f"!{path.split('/')[0]}" in sent
  assert {"configs", "gc_jax", "launch", "requirements.txt"} <= set(copied)
  # Workdirs are in buckets.
  assert "ensure_environment launch/requirements.txt" in text


# TPU pods.


def verbs(fakes):
  """Returns what was done to the TPU, in order."""
  names = {
    "queued-resources create": "create",
    "queued-resources delete": "delete",
    "tpu-vm scp": "copy",
    "tpu_worker.sh install": "install",
    "tpu_worker.sh train": "train",
    "tpu_worker.sh stop": "stop",
  }
  lines = [" ".join(call) for call in fakes.calls("gcloud")]
  return [v for line in lines for k, v in names.items() if k in line]


def attempts(fakes):
  return [
    re.search(r"tpu_worker.sh train (\d+) ", " ".join(call))[1]
    for call in fakes.calls("tpu_worker.sh train")
  ]


def test_a_pod_is_asked_for_used_and_deleted(cloud):
  cloud.plays(states="-, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE")
  field = "--config.data.path=gs://b/a b/it's"
  cloud.run("tpu_pod.sh", *POD, *CLOUD, field, "--spot", "--project=p-1")
  assert verbs(cloud) == ["create", "copy", "install", "train", "delete"]
  (create,) = cloud.calls("queued-resources create")
  assert " ".join(create[1:6]) == "compute tpus queued-resources create gc"
  assert {
    *("--node-id=gc", "--accelerator-type=v5litepod-16", "--spot"),
    "--runtime-version=v2-alpha-tpuv5-lite",
  } <= set(create)
  # Each command of all workers, and the deletion of a TPU that still runs.
  for call in cloud.calls("tpu-vm"):
    assert "--worker=all" in call
  for call in cloud.calls("queued-resources delete"):
    assert {"--force", "--quiet"} <= set(call)
  for call in cloud.calls("gcloud"):
    assert {"--zone=us-west4-a", "--project=p-1"} <= set(call)
  (command,) = [
    word.removeprefix("--command=")
    for word in cloud.calls("tpu_worker.sh train")[0]
    if word.startswith("--command=")
  ]
  words = subprocess.run(
    ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True
  ).stdout.splitlines()
  assert words[:2] == ["gc_jax/launch/tpu_worker.sh", "train"]
  assert words[3:] == [*CLOUD, field]


def test_the_source_that_is_copied_is_all_a_worker_needs(cloud):
  root = cloud.copy_source()
  for path in (
    *("README.md", "runs/gc/config.json"),
    *("configs/quickstart.py", "gc_jax/main.py"),
    *("gc_jax/__pycache__/main.pyc", ".venv/bin/python"),
  ):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()
  cloud.run("tpu_pod.sh", *POD, *CLOUD)
  with tarfile.open(cloud.folder / "copied") as archive:
    names = {m.name for m in archive if m.isfile()}
  launch = {f"launch/{p.name}" for p in (ROOT / "launch").iterdir()}
  assert names == launch | {
    *("requirements.txt", "configs/quickstart.py", "gc_jax/main.py")
  }


ONCE = "create copy install train"
# What is played; options; the status; what is done to the pod; how many
# attempts workers are told of; what is said.
PODS = [
  # What workers say counts, and not the status of gcloud.
  (
    {"verdict": "0", "trainings": "0 75, lost lost, 0 0"},
    (0, "copy install train train train delete", 2, ""),
  ),
  # Preempted twice; the first deletion is refused.
  (
    {
      "states": "-, ACTIVE, SUSPENDED, -, ACTIVE, ACTIVE, -, ACTIVE",
      "nodes": "PREEMPTED, TERMINATED, READY",
      "trainings": "75 lost, 134 lost, 0 0",
      "deletions": "1, 0",
    },
    (
      0,
      f"{ONCE} delete delete {ONCE} delete {ONCE} delete",
      *(3, "Preempted (SUSPENDED, PREEMPTED)"),
    ),
  ),
  # A pod that was had is asked for again when that fails.
  (
    {
      "states": "-, ACTIVE, SUSPENDED, -, FAILED, PROVISIONING, ACTIVE",
      "nodes": "PREEMPTED, READY",
      "trainings": "lost lost, 0 0",
    },
    (0, f"{ONCE} delete create delete {ONCE} delete", 2, ""),
  ),
  (
    {"states": "-, ACTIVE", "trainings": "0 1"},
    (1, f"{ONCE} delete", 1, "failed with status 1 on a TPU that is sound"),
  ),
  # A lost connection is taken up in the same attempt.
  (
    {"states": "-, ACTIVE", "trainings": "lost 0, lost lost, 0 0"},
    (0, f"{ONCE} train train delete", 1, ""),
  ),
  # A training that was stopped starts again in place.
  (
    {"states": "-, ACTIVE", "trainings": "75 0, 0 0"},
    (0, f"{ONCE} train delete", 2, ""),
  ),
  ({"states": "-, CREATING, FAILED"}, (2, "create delete", 0, "cannot be had")),
]


@pytest.mark.parametrize(("plays", "expected"), PODS)
def test_a_pod_is_used_until_training_ends_or_cannot(cloud, plays, expected):
  cloud.plays(**plays)
  status, done_to_it, num_attempts, said = expected
  words = (*POD, *CLOUD, "--spot", "--max-restarts=2")
  _, errors = cloud.run("tpu_pod.sh", *words, status=status)
  assert " ".join(verbs(cloud)) == done_to_it
  assert len(set(attempts(cloud))) == num_attempts
  assert said in errors


def test_a_pod_of_that_name_is_taken_over_and_kept(cloud):
  _, said = cloud.run("tpu_pod.sh", *POD, *CLOUD, "--keep")
  assert verbs(cloud) == ["copy", "install", "train"]
  assert "queued-resources delete gc --zone=us-west4-a" in said


def test_restarts_end_at_the_maximum(cloud):
  cloud.plays(nodes="PREEMPTED", trainings="75 75")
  words = (*POD, *CLOUD, "--max-restarts=2")
  _, said = cloud.run("tpu_pod.sh", *words, status=75)
  assert attempts(cloud) == sorted(set(attempts(cloud)))
  assert len(attempts(cloud)) == 3
  assert verbs(cloud)[-1] == "delete"
  assert "--max-restarts=2" in said


def test_workers_that_let_nobody_in_yet_are_tried_again(cloud):
  cloud.plays(installations="255, 255, 0")
  cloud.run("tpu_pod.sh", *POD, *CLOUD)
  assert verbs(cloud).count("install") == 3
  cloud.plays(installations="255")
  _, error = cloud.run("tpu_pod.sh", *POD, *CLOUD, status=2)
  assert "failed 5 times" in error
  assert verbs(cloud).count("install") == 3 + 5


@pytest.mark.parametrize("keep", [(), ("--keep",)])
def test_on_interruption_training_is_saved_and_the_pod_deleted(cloud, keep):
  cloud.plays(trainings="wait")
  process = cloud.start(
    "tpu_pod.sh", *POD, *CLOUD, *keep, start_new_session=True
  )
  cloud.wait_for("training")
  process.send_signal(signal.SIGINT)
  # What shows the training ends too: it would hold the output open.
  process.communicate(timeout=20)
  assert process.returncode == 130
  end = [] if keep else ["stop", "delete"]
  assert verbs(cloud) == ["copy", "install", "train", *end]


# A worker of a TPU pod.


@pytest.fixture
def machine(fakes):
  """A worker with a copy of the source, where files of attempts may lie."""
  fakes.add("python", PYTHON)
  fakes.copy_source()
  yield fakes
  if (fakes.root / "attempt.group").exists():
    fakes.run("tpu_worker.sh", "stop")


def test_a_tpu_worker_shows_the_training_and_its_status(machine):
  machine.plays(status0="3, 0")
  for attempt, status in (("1", 3), ("2", 0), ("2", 0), ("1", 3)):
    words = ("train", attempt, *CLOUD)
    said, _ = machine.run("tpu_worker.sh", *words, status=status)
    assert said == f"training\nworker exited: {status}\n"
  assert len(machine.calls("gc_jax.main", "--multihost")) == 2
  env = machine.environment()
  assert env["JAX_PLATFORMS"].startswith("tpu")


def test_a_tpu_worker_trains_on_when_the_connection_breaks(machine):
  machine.plays(status0="wait")
  train = ("tpu_worker.sh", "train", "1", *CLOUD)
  # Under nohup these tests, and all that they start, would ignore it.
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  first = machine.start(*train, start_new_session=True)
  signal.signal(signal.SIGHUP, before)
  machine.wait_for("started0")
  os.killpg(first.pid, signal.SIGHUP)
  first.communicate(timeout=20)
  second = machine.start(*train)
  assert second.stdout.readline() == "training\n"
  machine.run("tpu_worker.sh", "stop")
  assert second.communicate(timeout=20)[0] == "saved\nworker exited: 75\n"
  assert len(machine.calls("gc_jax.main")) == 1


@pytest.mark.parametrize("old", [False, True])
def test_a_tpu_worker_installs_the_build_for_tpus(machine, old):
  machine.add("python3", INTERPRETER)
  (machine.folder / "uv").mkdir()
  newer = machine.folder / "uv" / "python3.12"
  newer.symlink_to(machine.bin / "python3")
  # The first is asked twice: whether it will do, and then to be chosen.
  machine.plays(version="1, 0" if old else "0")
  machine.run("tpu_worker.sh", "install")
  pips = machine.calls("pip install", "requirements.txt")
  files = ["requirements.txt", "launch/requirements.txt"]
  assert [pip[pip.index("-r") + 1] for pip in pips] == files
  assert {pip[-1] for pip in pips} == {"jax[tpu]"}
  assert "gcsfs" in (ROOT / "launch/requirements.txt").read_text()
  assert bool(machine.calls("uv python install")) == old
  venv, *_ = machine.calls("-m venv")
  assert venv[0] == ("python3.12" if old else "python3")
  machine.plays(pip="1")
  (machine.root / "requirements.txt").write_text("other")
  machine.run("tpu_worker.sh", "install", status=1)


def test_a_new_attempt_ends_what_the_last_one_left(machine):
  machine.plays(status0="wait, 0")
  train = ("tpu_worker.sh", "train")
  first = machine.start(*train, "1", *CLOUD)
  machine.wait_for("started0")
  said, _ = machine.run(*train, "2", *CLOUD)
  assert said == "training\nworker exited: 0\n"
  assert "worker exited: 75" in first.communicate(timeout=20)[0]
