"""What a compilation found, as text."""

import pytest

from gc_jax.report import formats

GIB = 2**30
FITS = {
  "batch_size": 8_192,
  "per_device": 32,
  "fits": True,
  "memory_bytes": dict(
    arguments=GIB,
    outputs=GIB // 2,
    aliased=GIB // 2,
    temporaries=3 * GIB,
    code=1_023,
    next_batch=1_536,
    total=4 * GIB,
    total_with_next_batch=4 * GIB,
  ),
  "refused": None,
  "flops_per_device": 1.6e12,
  "flops_per_image": 5e10,
  "flops_per_step": 4.096e14,
  "collectives": {"all-reduce": {"count": 100, "bytes": 96 * 2**20}},
  "picture_sized": [],
  "compile_secs": 61.2,
}
REFUSED = FITS | {
  "batch_size": 65_536,
  "per_device": 256,
  "fits": False,
  "memory_bytes": None,
  "refused": {"needed": 20 * GIB, "limit": 16 * GIB},
  "collectives": {},
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
    "program 1023 B",
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


MOVED = {"kind": "all-gather", "shapes": [[4, 64, 64, 3]], "bytes": 49_152}
TRIED = [{"per_device": 32, "fits": True}, {"per_device": 256, "fits": False}]


@pytest.mark.parametrize(
  "fields, wanted",
  [
    ({"guidance": {"energy": {}}}, ["guidance: energy"]),
    ({"guidance": {}}, ["no guidance"]),
    (
      {"guidance": {"a": {f"setting{i}": "x" * 20 for i in range(9)}}},
      [f"guidance: a, setting0={'x' * 20} setting1={'x' * 20}"],
    ),
    ({"fast": True}, ["Fast: with few optimizations; memory may differ."]),
    (
      {"asked": REFUSED},
      [
        "batch 65,536, 256 a device: DOES NOT FIT",
        "the compiler needs 20.00 GiB of 16.00 GiB a device, and gave up",
        "--per_chip_batch=auto finds the largest that does.",
      ],
    ),
    (
      {"asked": REFUSED, "largest": FITS, "tried": TRIED},
      [
        "Tried, images a device: 32 fits, 256 does not.",
        "Largest batch that fits: 32 a device, --config.batch_size=8192",
        "batch 8,192, 32 a device: FITS",
      ],
    ),
    (
      {"asked": None, "largest": FITS, "tried": TRIED},
      ["--config.batch_size=256 cannot be divided over 256 devices this way."],
    ),
    (
      {"asked": REFUSED, "largest": None, "tried": TRIED[1:]},
      ["No batch fits."],
    ),
    (
      {"asked": FITS | {"picture_sized": [MOVED]}},
      ["pictures between devices YES", "all-gather 48.0 KiB [4, 64, 64, 3]"],
    ),
    (
      {"memory_limit_bytes": None},
      [
        "batch 8,192, 32 a device: memory's limit is not known",
        "total 4.00 GiB",
      ],
    ),
  ],
)
def test_what_differs_is_said(fields, wanted):
  lines = set(table(**fields))
  assert set(wanted) <= lines and not set(wanted) <= set(table())
