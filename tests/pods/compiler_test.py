"""Topologies by name; the reading of a compiler's text, as it writes it."""

import importlib.metadata
import math

import jax
import jax.numpy as jnp
import pytest

from gc_jax.pods import compiler
from gc_jax.pods.compiler import Exchange, OutOfMemory
from gc_jax.runtime import parallel

# One of each form, as libtpu 0.0.42 writes layouts, tiles, memory spaces and
# comments in tuples; some names only mention a collective.
HLO = """\
HloModule jit_train_step, is_scheduled=true

%body (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.1 = f32[] all-reduce(%sum), to_apply=%add, channel_id=1
}
  %all-reduce.2 = (f32[32]{0:T(128)}, \
/*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%a, %b), \
replica_groups=mesh['axis_0'=4], metadata={op_name="jit(f)/reduce"}
  %get-tuple-element.3 = f32[32]{0} get-tuple-element(%all-reduce.2), index=0
  %all-reduce-start.4 = f32[100]{0} all-reduce-start(%c), to_apply=%add
  %all-reduce-done.4 = f32[100]{0} all-reduce-done(%all-reduce-start.4)
  %all-gather-start.5 = (u8[1,64,64,3], u8[4,64,64,3]) all-gather-start(%d)
  %all-gather-done.5 = u8[4,64,64,3] all-gather-done(%all-gather-start.5)
  %collective-permute-start.6 = (pred[10]{0}, pred[10]{0}, u32[], u32[]) \
collective-permute-start(%e), source_target_pairs={{0,1}}
  %all-to-all.7 = (f32[2,3]{1,0}, f32[2,3]{1,0}) all-to-all(%f, %g)
  reduce-scatter.8 = s4[5]{0} reduce-scatter(h), dimensions={0}
  %fusion.9 = f32[9]{0} fusion(%all-reduce.1), calls=%all-reduce.fused
"""


def test_every_collective_is_found_once_with_its_bytes():
  assert compiler.exchanges(HLO) == [
    Exchange("all-reduce", ((),), 4),
    Exchange("all-reduce", ((32,), (4, 8)), 32 * 4 + 32 * 2),
    Exchange("all-reduce", ((100,),), 400),
    Exchange("all-gather", ((4, 64, 64, 3),), 4 * 64 * 64 * 3),
    Exchange("collective-permute", ((10,),), 10),
    Exchange("all-to-all", ((2, 3), (2, 3)), 48),
    Exchange("reduce-scatter", ((5,),), 3),  # 20 bits
  ]
  assert compiler.exchanges("%add.1 = f32[2]{0} add(%a, %b)") == []


def test_a_compiled_program_has_the_collectives_that_it_must_have():
  """A sum over four devices, and a copy of everything on each of them."""
  mesh = parallel.make_mesh()
  divided, everywhere = parallel.divided(mesh), parallel.replicated(mesh)
  x = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=divided)

  @jax.jit
  def program(x):
    return x.sum(0), jax.lax.with_sharding_constraint(x * 2, everywhere)

  found = compiler.exchanges(program.lower(x).compile().as_text())
  assert sorted((each.kind, each.num_bytes) for each in found) == [
    ("all-gather", 8 * 6 * 4),
    ("all-reduce", 6 * 4),
  ]


def test_pictures_are_told_from_gradients_by_their_size():
  picture = 64 * 64 * 3
  gradient = Exchange("all-reduce", ((3, 3, 64, 128), (64,)), 0)
  pictures = Exchange("all-gather", ((4, 64, 64, 3),), 0)
  masked = Exchange("all-reduce", ((64,), (1, 64, 64, 3)), 0)
  small = Exchange("all-to-all", ((64, 64, 2),), 0)
  found = compiler.picture_sized(
    [gradient, pictures, masked, small], picture, {3 * 3 * 64 * 128, 64}
  )
  assert found == [pictures, masked]


def test_a_sum_in_place_needs_its_arguments_and_no_more():
  mesh = parallel.make_mesh(jax.devices()[:1])
  x = jax.ShapeDtypeStruct(
    (1_000,), jnp.float32, sharding=parallel.replicated(mesh)
  )
  program = jax.jit(jnp.add, donate_argnums=0).lower(x, x).compile()
  memory = compiler.memory(program.memory_analysis())
  assert memory["arguments"] == 8_000
  assert memory["aliased"] == 4_000
  assert memory["total"] == pytest.approx(8_000, abs=100)  # pointers


GIB = 2**30


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (8.00T) exceeds available HBM (15.75G).",
      OutOfMemory(8 * 1024 * GIB, int(15.75 * GIB)),
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
      "in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity "
      "by 4.75G.",
      OutOfMemory(int(20.5 * GIB), int(15.75 * GIB)),
    ),
    ("RESOURCE_EXHAUSTED: the quota of something else", None),
    ("INVALID_ARGUMENT: exceeds available HBM (15.75G)", None),
  ],
)
def test_an_error_of_memory_is_told_from_others(message, expected):
  assert compiler.read_out_of_memory(message) == expected


# Devices.


def test_local_devices_are_those_here_and_a_cpu_has_no_known_limit():
  assert list(compiler.devices("local")) == jax.devices()
  assert compiler.memory_limit("local", jax.devices()) is None


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v9:2x2", "", "v5e:32x32"])
def test_an_unknown_topology_lists_the_known_ones(name):
  with pytest.raises(ValueError, match="Unknown --topology=") as raised:
    compiler.devices(name)
  message = str(raised.value)
  assert all(known in message for known in ("local", *compiler.TOPOLOGIES))


def test_slices_grow_and_each_is_named_once():
  assert len(set(compiler.TOPOLOGIES)) == len(compiler.TOPOLOGIES)
  for sizes in compiler.SLICES.values():
    chips = [math.prod(map(int, size.split("x"))) for size in sizes]
    assert chips == sorted(set(chips))


def test_without_libtpu_the_message_names_the_version_to_install(monkeypatch):
  monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError) as raised:
    compiler.devices("v5e:2x2")
  (named,) = (
    line.split(";")[0].strip()
    for line in importlib.metadata.requires("jax")
    if line.startswith("libtpu")
  )
  assert named.startswith("libtpu==")
  assert f"pip install '{named}'" in str(raised.value)
