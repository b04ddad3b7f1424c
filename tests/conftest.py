"""The strictness every test runs under, and the tiny nets they share.

Four virtual CPU devices, no silent broadcasting between ranks, and every array
of gc_jax held to the axes that its signature names. Settings of pytest itself,
warnings as errors among them, are in pytest.ini.
"""

# ruff: noqa: E402 (jax reads the environment when it is imported)

import os
import pathlib

# A count that the user gives wins.
_COUNT = "--xla_force_host_platform_device_count"
if _COUNT not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_COUNT}=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import hypothesis.configuration
import jax
import jaxtyping
import pytest

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


@pytest.fixture(scope="session")
def make_tiny():
  """Builds the smallest net with a stem, a block, a pooling and a head.

  Pictures of 16 pixels give 4x4 cells of 8 channels; composites 8x8.
  """
  from flax import nnx

  from gc_jax.models.resnet import BasicBlock, ResNet

  def make(pooling="average", num_classes=10, seed=0, **kwargs):
    kwargs = {"width": 8, "stem_kernel": 3, **kwargs}
    return ResNet(
      (1,),
      BasicBlock,
      num_classes,
      pooling=pooling,
      rngs=nnx.Rngs(seed),
      **kwargs,
    )

  return make
