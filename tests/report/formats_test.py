"""What a compilation found, as text."""

import pytest

from gc_jax.report import formats

GIB = 2**30
FITS = {
  "batch_size": 8_192,
  "per_device": 32,
  "fits": True,
  "memory_bytes": {
    "arguments": GIB,
    "outputs": GIB // 2,
    "aliased": GIB // 2,
    "temporaries": 3 * GIB,
    "code": 36 * 2**20,
    "next_batch": 1_536,
    "total": 4 * GIB,
    "total_with_next_batch": 4 * GIB,
  },
  "refused": None,
  "flops_per_device": 1.6e12,
  "flops_per_image": 5e10,
  "flops_per_step": 4.096e14,
  "collectives": {"all-reduce": {"count": 100, "bytes": 96 * 2**20}},
  "picture_sized": [],
  "compile_secs": 61.2,
}
REFUSED = {
  "batch_size": 65_536,
  "per_device": 256,
  "fits": False,
  "memory_bytes": None,
  "refused": {"needed": 20 * GIB, "limit": 16 * GIB},
  "flops_per_device": None,
  "flops_per_image": None,
  "flops_per_step": None,
  "collectives": {},
  "picture_sized": [],
  "compile_secs": 30.0,
}


def table(asked=FITS, **fields):
  found = {
    "model": "resnet50-gmp",
    "image_size": 224,
    "num_classes": 1_000,
    "compute_dtype": "bfloat16",
    "guidance": {"consistency": {"mode": "packed", "groups": 4}},
    "topology": "v5e:16x16",
    "device_kind": "TPU v5 lite",
    "num_devices": 256,
    "memory_limit_bytes": 16 * GIB,
    "fast": False,
    "compiler": "jax 1.2.3, libtpu 4.5.6",
    "batch_size": 256,
    "asked": asked,
  } | fields
  lines = formats.render("preflight.txt", **found).splitlines()
  assert all(len(line) <= 80 for line in lines)
  return [" ".join(line.split()) for line in lines]


def test_a_batch_that_fits_says_its_memory_flops_and_collectives():
  lines = table()
  for line in (
    "guidance: consistency, mode=packed groups=4",
    "v5e:16x16: 256 x TPU v5 lite",
    "Compiled, not executed (jax 1.2.3, libtpu 4.5.6).",
    "batch 8,192, 32 a device: FITS",
    "arguments (state, batch) 1.00 GiB",
    "temporaries 3.00 GiB",
    "program 36.0 MiB",
    "next batch, waiting 1.5 KiB",
    "total 4.00 GiB of 16.00 GiB: 25.0%",
    "FLOPs of an image 50.00 G",
    "FLOPs of a step, a device 1.60 T",
    "FLOPs of a step 409.60 T",
    "100 all-reduce 96.0 MiB",
    "pictures between devices none: nothing of their size but gradients",
  ):
    assert line in lines
  assert not any("auto" in line for line in lines)


def test_terms_without_settings_and_none_at_all_are_told():
  assert "guidance: energy" in table(guidance={"energy": {}})
  assert "no guidance" in table(guidance={})
  long = {"a": {"setting" + str(i): "x" * 20 for i in range(9)}}
  assert any(line.startswith("guidance: a,") for line in table(guidance=long))


def test_a_fast_compilation_says_that_memory_may_differ():
  fast = "Fast: with few optimizations; memory may differ."
  assert fast in table(fast=True)
  assert fast not in table()


def test_a_refused_batch_says_what_it_needs_and_what_to_do():
  lines = table(REFUSED)
  assert "batch 65,536, 256 a device: DOES NOT FIT" in lines
  assert "the compiler needs 20.00 GiB of 16.00 GiB a device, and gave up" in (
    lines
  )
  assert "--per_chip_batch=auto finds the largest that does." in lines


def test_the_largest_batch_is_told_with_its_own_table():
  tried = [{"per_device": 32, "fits": True}, {"per_device": 256, "fits": False}]
  lines = table(REFUSED, largest=FITS, tried=tried)
  assert "Tried, images a device: 32 fits, 256 does not." in lines
  assert (
    "Largest batch that fits: 32 a device, --config.batch_size=8192" in lines
  )
  assert "batch 8,192, 32 a device: FITS" in lines
  lines = table(None, largest=FITS, tried=tried)
  assert (
    "--config.batch_size=256 cannot be divided over 256 devices this way."
    in lines
  )
  lines = table(REFUSED, largest=None, tried=tried[1:])
  assert "No batch fits." in lines


def test_pictures_that_travel_are_listed():
  moved = {"kind": "all-gather", "shapes": [[4, 64, 64, 3]], "bytes": 49_152}
  lines = table(FITS | {"picture_sized": [moved]})
  assert "pictures between devices YES" in lines
  assert "all-gather 48.0 KiB [4, 64, 64, 3]" in lines


def test_without_a_limit_nothing_is_said_to_fit():
  lines = table(memory_limit_bytes=None)
  assert "batch 8,192, 32 a device: memory's limit is not known" in lines
  assert "total 4.00 GiB" in lines


@pytest.mark.parametrize(
  ("num_bytes", "text"),
  [(0, "0 B"), (1_023, "1023 B"), (2**20, "1.0 MiB"), (2**41, "2048.00 GiB")],
)
def test_bytes_are_in_binary_units(num_bytes, text):
  found = FITS["memory_bytes"] | {"code": num_bytes}
  assert f"program {text}" in table(FITS | {"memory_bytes": found})
