"""The proof that a file computes in PyTorch what our model does.

What each network states of its pass in PyTorch: names_test.py.
"""

import numpy as np
import pytest

from gc_jax.models.network import Network
from gc_jax.torch_io import proof


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
