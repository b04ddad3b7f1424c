"""The strictness every test runs under, and the tiny nets they share.

Four virtual CPU devices, no silent broadcasting between ranks, and every array
of gc_jax held to the axes that its signature names. Settings of pytest itself,
warnings as errors among them, are in pytest.ini.
"""

# ruff: noqa: E402 (flags are set before anything could start a device)

import functools
import gc
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import threading
import typing

# Compiling is what the tests wait for. The second is LLVM's level, not that of
# XLA's own passes: a normal draw alone takes 3 s at the default, 0.3 s at 0.
_FLAGS = {
  "--xla_force_host_platform_device_count": 4,
  "--xla_backend_optimization_level": 0,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # A train step compiles in 1.3 s instead of 4. Later jaxlibs have no such
  # flag, and end the process at one they do not know.
  _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
  # Both cores are busy: parts of a program made side by side are only overhead.
  _FLAGS["--xla_cpu_parallel_codegen_split_count"] = 1
# A flag that the user sets wins.
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    _flags = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}"
    os.environ["XLA_FLAGS"] = _flags.strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import filelock
import fsspec.implementations.memory
import hypothesis
import hypothesis.configuration
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

# Tracing makes millions of objects, and few circles: looking through all of
# them as often as Python would takes a twentieth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)
# The devices are made now: tests of subprocesses change the environment.
jax.devices()
jax.config.update("jax_numpy_rank_promotion", "raise")
# A cache could answer for the code of another day.
jax.config.update("jax_enable_compilation_cache", False)

# Before anything of gc_jax is imported: the hook rewrites it at import.
jaxtyping.install_import_hook("gc_jax", "beartype.beartype")

# The same examples every time; a compilation may take as long as it takes.
hypothesis.settings.register_profile(
  "gc_jax", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("gc_jax")
hypothesis.configuration.set_hypothesis_home_dir(
  pathlib.Path(__file__).parent / ".cache" / "hypothesis"
)


def pytest_collection_modifyitems(items):
  """Files with slow tests come first: else one process ends with them alone."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def make_tiny():
  """Builds the smallest net with a stem, a block, a pooling and a head.

  Pictures of 16 pixels give 4x4 cells of 8 channels; composites 8x8.
  """
  from flax import nnx

  from gc_jax.models import init_key
  from gc_jax.models.resnet import ResNet, basic_block

  @functools.cache
  def made(pooling, num_classes, seed, dtype):
    net = ResNet(
      (1,),
      basic_block,
      num_classes,
      width=8,
      stem_kernel=3,
      pooling=pooling,
      dtype=dtype,
      rngs=nnx.Rngs(init_key(seed)),
    )
    return nnx.split(net)

  def make(pooling="average", num_classes=10, seed=0, dtype=jnp.float32):
    # A copy: the running statistics of one test are not another's.
    return nnx.merge(*made(pooling, num_classes, seed, dtype), copy=True)

  return make


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
  """A folder of all processes of these tests, for what one makes for all."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent
  return folder


@pytest.fixture(scope="session")
def compilation_cache(shared_folder):
  """Environment of subprocesses that share what they compile.

  One device: the programs are smaller, and several devices are other tests'.
  """
  return {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(shared_folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    # A cache with a bound is locked: nobody reads what is half written.
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
    "XLA_FLAGS": " ".join(
      f"{flag}={value}"
      for flag, value in _FLAGS.items()
      if flag != "--xla_force_host_platform_device_count"
    ),
  }


@pytest.fixture(scope="session")
def smoke_run(shared_folder, compilation_cache):
  """The workdir of a finished run of tests/smoke.py; only to be read."""
  from tests import smoke

  workdir = shared_folder / "smoke"
  # The first process that comes here trains; the others wait for it.
  with filelock.FileLock(f"{workdir}.lock"):
    if not (workdir / "report.html").exists():
      done = subprocess.run(
        smoke.command(workdir),
        capture_output=True,
        text=True,
        cwd=smoke.ROOT,
        env=compilation_cache,
      )
      assert done.returncode == 0, done.stderr
  return workdir


# timm as its users have it, and the torchvision built for the tests' PyTorch.
_TIMM = ("timm==1.0.31", "torchvision==0.28.0")
# The index's torchvision is built with CUDA. Beside PyTorch's CPU build it does
# not load its operators, and stops as it describes these; networks need none.
_OPERATORS = """\
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
  library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")
"""


@pytest.fixture(scope="session")
def with_timm(shared_folder):
  """Environment of subprocesses that import timm and torchvision.

  Where they are not installed, they go into a folder of these tests: beside the
  tests' own packages, pip would exchange PyTorch for another build.
  """

  def fault(env):
    done = subprocess.run(
      [sys.executable, "-c", "import timm"],
      capture_output=True,
      text=True,
      env=env,
    )
    return "".join(done.stderr.strip().splitlines()[-1:])

  if not fault(dict(os.environ)):
    return dict(os.environ)
  folder = shared_folder / "timm"
  env = {**os.environ, "PYTHONPATH": str(folder)}
  with filelock.FileLock(f"{folder}.lock"):
    if not folder.exists():
      pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
      done = subprocess.run(
        [*pip, f"--target={folder}", *_TIMM], capture_output=True, text=True
      )
      if done.returncode:
        pytest.skip(f"timm is not installed, and pip: {done.stderr[-300:]}")
      if "does not exist" in fault(env):
        (folder / "sitecustomize.py").write_text(_OPERATORS)
  if why := fault(env):
    pytest.skip(f"timm is installed, and cannot be imported: {why}")
  return env


@pytest.fixture(scope="session")
def make_tiny_vit():
  """Builds a ViT of two blocks; pictures and cells as those of `make_tiny`."""
  from flax import nnx

  from gc_jax.models import init_key
  from gc_jax.models.vit import VisionTransformer

  def make(pooling="", num_classes=10, seed=0, dtype=jnp.float32):
    del pooling  # it has none
    return VisionTransformer(
      num_classes,
      num_layers=2,
      num_heads=2,
      channels=8,
      patch=4,
      grid=3,
      dtype=dtype,
      rngs=nnx.Rngs(init_key(seed)),
    )

  return make


@pytest.fixture(scope="session")
def make_for(make_tiny, make_tiny_vit):
  """Returns what builds a net that a method holds for."""
  return lambda method: (
    make_tiny_vit if method == "attention_rollout" else make_tiny
  )


@pytest.fixture(scope="module")
def hearing_ctrl_c():
  """What is started hears it, also if these tests run in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.fixture
def handlers(monkeypatch):
  """Signals and the wish to end as a command has them, then as they were."""
  from gc_jax.runtime import parallel, signals

  monkeypatch.setattr(parallel, "_stop", parallel._Stop())
  monkeypatch.setattr(signals, "_told", threading.Event())
  monkeypatch.setattr(signals, "leave_terminal", lambda: None)  # it is pytest's
  before = {number: signal.getsignal(number) for number in signals._STOPS}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  # A command that Ctrl-C ended still listens, until its process is gone.
  if (pipe := signal.set_wakeup_fd(-1)) != -1:
    os.close(pipe)
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.fixture(scope="session")
def photographs():
  """The folder of scikit-image's pictures, in its wheel."""
  import skimage

  return pathlib.Path(skimage.__file__).parent / "data"


class _Bucket(fsspec.implementations.memory.MemoryFileSystem):
  """What gs://... is in tests: in memory, and like there without appending."""

  protocol = ("gcs", "gs")
  store: typing.ClassVar = {}
  pseudo_dirs: typing.ClassVar = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(os.fspath(path).replace("gs://", "/", 1))

  def _open(self, path, mode="rb", **kwargs):
    assert mode in ("rb", "wb"), f"{path} opened to {mode}"
    return super()._open(path, mode, **kwargs)

  def mv(self, *args, **kwargs):
    raise AssertionError("a bucket renames nothing")


@pytest.fixture
def bucket(monkeypatch):
  """The path of a folder, empty and not yet there, in a bucket."""
  from etils import epath

  # The package hides this module of its own behind a name of the same.
  registry = importlib.import_module("fsspec.registry")
  monkeypatch.setitem(registry._registry, "gcs", _Bucket)
  _Bucket.store.clear()
  _Bucket.pseudo_dirs[:] = [""]
  return epath.Path("gs://bucket/run")


@pytest.fixture
def small_models(monkeypatch):
  """The large architectures with few blocks or channels."""
  from gc_jax import models
  from tests.torch_io import torch_models

  for name, known in models.MODELS.items():
    if fields := torch_models.small(name):
      monkeypatch.setitem(models.MODELS, name, known.changed(**fields))
