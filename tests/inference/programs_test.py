"""A model as exported programs: any batch, any platform, no gc_jax."""

import jax
import jaxtyping
import numpy as np
import pytest
from jax import export

import gc_jax
from gc_jax import models
from gc_jax.attribution import METHODS
from gc_jax.inference import programs

SIZE = 16


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
  """Axes of a batch without a number break the tests' own check of them."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def called(tmp_path):
  """Returns a function that calls a program from its file."""

  def call(made, name, *arguments):
    made.save(tmp_path)
    with np.load(tmp_path / programs.WEIGHTS) as file:
      weights = dict(file)
    encoded = (tmp_path / programs.filename(name)).read_bytes()
    return jax.jit(export.deserialize(bytearray(encoded)).call)(
      weights, *arguments
    )

  return call


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_for_any_batch(
  method, make_for, images, called
):
  model = make_for(method)("max" if method == "gradcam" else "average")
  model.eval()
  made = programs.make(model, SIZE, method)
  assert made.one_by_one == ""
  for count in (1, 5):
    targets = np.arange(count, dtype=np.int32)
    logits, maps = called(made, "explain", images[:count], targets)
    expected = gc_jax.explain(
      model, images[:count], targets, method, normalize=False
    )
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
      logits, gc_jax.predict(model, images[:count]), rtol=1e-5, atol=1e-6
    )
  assert float(np.ptp(maps)) > 0


def test_a_target_of_minus_one_is_the_class_predicted(
  make_tiny, images, called
):
  model = make_tiny()
  model.eval()
  made = programs.make(model, SIZE, "gradcam")
  asked = np.array([-1, 3, -1, 3, -1], np.int32)
  logits, maps = called(made, "explain", images, asked)
  np.testing.assert_array_equal(logits, called(made, "predict", images))
  targets = np.where(asked < 0, np.argmax(logits, -1), asked)
  np.testing.assert_allclose(
    maps,
    gc_jax.explain(model, images, targets, "gradcam", normalize=False),
    rtol=1e-5,
    atol=1e-7,
  )


def test_perceptrons_take_any_batch(small_models):
  for name in ("alexnet", "vgg16"):
    model = models.create(name, 3)
    made = programs.make(model, 64, "gradcam_elementwise", ("cpu",))
    assert made.one_by_one == ""


def test_a_model_that_must_know_its_batch_takes_one_picture(
  make_tiny, images, called
):
  model = make_tiny()
  model.eval()
  classify = type(model).classify

  class Counting(type(model)):
    def classify(self, features, key=None):
      return classify(self, features[np.arange(len(features))], key)

  model.__class__ = Counting
  made = programs.make(model, SIZE, "gradcam")
  assert made.one_by_one.startswith("TypeError: '_DimExpr'")
  assert called(made, "predict", images[:1]).shape == (1, 10)


def test_what_is_fast_on_cpus_is_in_no_program_for_others(make_tiny):
  """Gradients at pixels go through every convolution and the max-pool.

  XLA's own gradient of a max-pool is a select-and-scatter; ours for CPUs is
  not. That of a kernel, on CPUs a product, nobody asks for.
  """
  model = make_tiny()
  model.eval()

  def text(*platforms):
    made = programs.make(model, SIZE, "input_gradients", platforms)
    return made.exported["explain"].mlir_module()

  on_cpu, on_tpu, on_both = text("cpu"), text("tpu"), text("cpu", "tpu")
  assert "select_and_scatter" not in on_cpu
  assert "select_and_scatter" in on_tpu
  products = on_tpu.count("stablehlo.dot_general")
  assert products == on_cpu.count("stablehlo.dot_general")
  # Which of the two is computed, the platform says where it runs.
  assert "_platform_index" in on_both and "select_and_scatter" in on_both
