"""Small prepared sets, made once for all tests of the data layer; no locks."""

import errno
import fcntl

import pytest

from gc_jax.data.sets import context
from gc_jax.data.sets.context_sets import ContextDigits

# (train, validation, test): the last is no multiple of any batch size used.
NUM_EXAMPLES = (40, 20, 23)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def load_small(data_dir):
  """Loads a split of a small variant."""

  def load(split, **config):
    return context.load(
      ContextDigits,
      split,
      data_dir=data_dir,
      num_examples=NUM_EXAMPLES,
      **config,
    )

  return load


@pytest.fixture
def no_locks(monkeypatch):
  """Makes every file system one without locks."""

  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
