"""Runs a command as most have it installed: without PyTorch.

  python -m tests.without_torch gc_jax.main --config=...

The tests have PyTorch, which TensorBoard's writer then imports, for seconds.
"""

import importlib.abc
import runpy
import sys


class _Absent(importlib.abc.MetaPathFinder):
  def find_spec(self, fullname, path=None, target=None):
    if fullname == "torch":
      raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return None


if __name__ == "__main__":
  sys.meta_path.insert(0, _Absent())
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
