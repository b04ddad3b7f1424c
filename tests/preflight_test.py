"""python -m gc_jax.preflight, end to end."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
  "--config=configs/quickstart.py:gc",
  "--config.model.name=resnet8-small",
  "--config.data.image_size=16",
  "--config.data.crop_padding_px=0",
)


def preflight(*flags, env=None):
  return subprocess.run(
    [sys.executable, "-m", "gc_jax.preflight", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )


def test_the_devices_that_are_here_are_compiled_for(
  tmp_path, compilation_cache
):
  out = tmp_path / "new" / "found.json"
  flags = "--xla_force_host_platform_device_count=4"
  env = compilation_cache | {
    "XLA_FLAGS": f"{compilation_cache['XLA_FLAGS']} {flags}"
  }
  done = preflight(
    *SMALL, "--topology=local", "--per_chip_batch=8", f"--out={out}", env=env
  )
  assert done.returncode == 0, done.stderr
  assert "Compiled, not executed" in done.stdout
  assert f"wrote {out}" in done.stdout
  found = json.loads(out.read_text())
  assert found["num_devices"] == 4
  assert found["compute_dtype"] == "float32"  # "auto" on a CPU
  assert found["asked"]["batch_size"] == 32
  assert found["asked"]["collectives"].keys() == {"all-reduce"}
  assert found["asked"]["picture_sized"] == []
  for value in ("32, 8 a device", "mode=packed", "10 classes"):
    assert value in done.stdout


def test_help_says_what_can_be_compiled_for():
  done = preflight("--helpshort")
  for word in ("v5e:16x16", "--per_chip_batch", "--[no]fast", "--num_classes"):
    assert word in " ".join(done.stdout.split())


# A TPU's own compiler; no TPU is needed.

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU's compiler, is not installed: pip install jax[tpu]",
)


@pytest.mark.slow
@needs_libtpu
def test_a_slice_that_is_not_here_is_compiled_for(tmp_path):
  out = tmp_path / "found.json"
  flags = (*SMALL, "--topology=v5e:2x2", "--fast", f"--out={out}")
  # Nothing of the virtual devices of these tests.
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = preflight(*flags, "--per_chip_batch=8", env=env)
  assert done.returncode == 0, done.stderr
  found = json.loads(out.read_text())
  assert found["device_kind"] == "TPU v5 lite"
  assert found["num_devices"] == 4
  assert found["memory_limit_bytes"] == 15.75 * 2**30
  assert found["compute_dtype"] == "bfloat16"  # "auto" on what it is for
  asked = found["asked"]
  assert asked["fits"] and asked["picture_sized"] == []
  assert asked["collectives"].keys() == {"all-reduce"}
  # Every gradient of the 151,850 parameters, and little else.
  summed = asked["collectives"]["all-reduce"]["bytes"]
  assert 4 * 151_850 <= summed < 1.1 * 4 * 151_850

  done = preflight(*flags, "--per_chip_batch=4000000", env=env)
  assert done.returncode == 1, done.stderr
  assert "DOES NOT FIT" in done.stdout
  refused = json.loads(out.read_text())["asked"]["refused"]
  assert refused["limit"] == 15.75 * 2**30
  assert refused["needed"] > refused["limit"]
