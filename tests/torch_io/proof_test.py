"""The proof that a file computes in PyTorch what our model does."""

import numpy as np
import pytest

from gc_jax import models, torch_io
from gc_jax.models.network import Network
from gc_jax.torch_io import proof


@pytest.mark.parametrize(
  "name",
  [
    *("alexnet", "squeezenet1_1-gmp", "resnet18", "resnet50-gmp", "vgg16"),
    *("vit_tiny", "convnext_tiny-gmp"),
  ],
)
def test_every_family_is_compared(name, tmp_path, small_models):
  """The functional passes against our models; float32 roundings."""
  model = models.create(name, 4, key=models.init_key(3))
  path = tmp_path / "a.safetensors"
  torch_io.save_model(path, model, torch_io.Metadata(name))
  size = 64 if name != "alexnet" else 96
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, size, size, 3), np.uint8)
  differences = proof.largest_differences(path, model, images)
  assert set(differences) == {"logits", "gradcam", "gradcam_elementwise"}
  assert max(differences.values()) < 1e-4


def test_a_network_that_states_no_pass_in_pytorch_is_refused_by_name():
  class Mine(Network):
    pass

  with pytest.raises(ValueError, match="Mine has no torch_features and torch_"):
    proof.check_verifiable(Mine())


def test_a_script_alone_gets_arrays_leaves_arrays_or_says_why_not(tmp_path):
  script = "import sys, numpy as np; given, result = sys.argv[1:]; "
  given = {"x": np.arange(3)}
  double = "np.savez(result, y=2 * np.load(given)['x'])"
  found = proof.run_alone(script + double, tmp_path, given)
  np.testing.assert_array_equal(found["y"], [0, 2, 4])
  missing = script + "print('no such library'); sys.exit(77)"
  assert proof.run_alone(missing, tmp_path, given) == "no such library"
  with pytest.raises(RuntimeError, match="ZeroDivisionError"):
    proof.run_alone("1 / 0", tmp_path, given)
  assert not list(tmp_path.iterdir())
