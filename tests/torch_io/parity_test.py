"""A step of training is PyTorch's: losses, gradients, statistics, parameters.

The PyTorch side computes the loss the release's way: both forwards in train
mode, originals first, no stop-gradient, the epsilons, L1 averaged over cells.
"""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

from gc_jax import compose, losses, models
from gc_jax import state as states
from gc_jax import step as steps
from gc_jax.models.layers import RGB_MEAN, RGB_STD
from gc_jax.torch_io import names
from tests.torch_io import torch_models

NUM_CLASSES = 10
LABEL = np.array([3, 1, 4, 5])
WEIGHT = 25.0  # λ
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
NUM_STEPS = 5

# Image i sits in cell i, among the other three in turn.
LAYOUT = compose.Layout(
  tiles=np.array([[0, 1, 2, 3], [2, 1, 3, 0], [3, 0, 2, 1], [1, 2, 0, 3]]),
  cell=np.arange(4)[:, None],
  mask=np.ones((4, 1), np.float32),
)

# Sides at which AlexNet's grids are 2x2 and 5x5: not one the double of the
# other, so that both maps are enlarged.
SIZES = {"alexnet": 96}
# The loss falls at each step: where it leaps about, so do rounding errors.
LR = {
  "alexnet": 1e-2,
  "resnet18": 1e-3,
  "resnet18-gmp": 1e-3,
  "resnet50": 1e-4,
  "resnet50-gmp": 1e-4,
}
ALEXNET_HIDDEN = 128  # of 4096: the same code, a thirtieth of the parameters


class Step(NamedTuple):
  """What one step computed, under PyTorch's keys."""

  classification: float
  consistency: float
  gradients: dict[str, np.ndarray]
  state: dict[str, np.ndarray]  # after it


def pixels(name):
  """Other colours in each image, and noise."""
  size = SIZES.get(name, 64)
  rng = np.random.default_rng(0)
  base = rng.integers(0, 256, (4, 4, 4, 3)).repeat(size // 4, 1)
  base = base.repeat(size // 4, 2)
  return np.clip(base + rng.normal(0, 20, base.shape), 0, 255).astype(np.uint8)


def torch_cam(model, features, target):
  logits = model.classify(features)
  score = logits[torch.arange(len(target)), target].sum()
  (gradient,) = torch.autograd.grad(score, features, create_graph=True)
  cam = (gradient * features).sum(1).relu()
  cam = cam / (cam.sum((1, 2), keepdim=True) + 1e-8) + 1e-8
  return logits, cam


def torch_losses(model, images, label):
  size = images.shape[-1]
  logits, cam = torch_cam(model, model.features(images), label)
  beside = lambda tiles: torch.cat(tuple(images[tiles]), dim=2)
  composites = torch.stack(
    [
      torch.cat([beside(tiles[:2]), beside(tiles[2:])], dim=1)
      for tiles in LAYOUT.tiles
    ]
  )
  _, composite_cam = torch_cam(model, model.features(composites), label)
  if composite_cam.shape[-1] != 2 * cam.shape[-1]:
    enlarge = lambda x, side: functional.interpolate(
      x[:, None], (side, side), mode="bilinear", align_corners=False
    )[:, 0]
    cam = enlarge(cam, size)
    composite_cam = enlarge(composite_cam, 2 * size)
  expected = torch.zeros_like(composite_cam)
  side = cam.shape[-1]
  for i in range(4):
    y, x = i // 2 * side, i % 2 * side
    expected[i, y : y + side, x : x + side] = cam[i]
  return functional.cross_entropy(logits, label), functional.l1_loss(
    expected, composite_cam
  )


def trained_by_torch(name):
  """Everything PyTorch computes on the way, step by step."""
  # Dropout is another test's: its masks are no other generator's.
  alexnet = {"dropout": 0.0, "hidden": ALEXNET_HIDDEN}
  fields = alexnet if name == "alexnet" else {}
  model = torch_models.create(name, NUM_CLASSES, **fields)
  images = torch.from_numpy(pixels(name)).permute(0, 3, 1, 2) / 255
  mean, std = torch.tensor(RGB_MEAN), torch.tensor(RGB_STD)
  images = (images - mean[:, None, None]) / std[:, None, None]
  model.train()
  norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
  for norm in norms:  # running statistics near the batch's, as in a run
    norm.reset_running_stats()
    norm.momentum = None
  with torch.no_grad():
    model(images)
  for norm in norms:
    norm.momentum = 0.1
  start = {k: v.clone().numpy() for k, v in model.state_dict().items()}
  optimizer = torch.optim.SGD(
    model.parameters(), LR[name], MOMENTUM, weight_decay=WEIGHT_DECAY
  )
  seen = []
  for _ in range(NUM_STEPS):
    classification, consistency = torch_losses(
      model, images, torch.from_numpy(LABEL)
    )
    optimizer.zero_grad()
    (classification + WEIGHT * consistency).backward()
    grads = {k: p.grad.clone().numpy() for k, p in model.named_parameters()}
    optimizer.step()
    after = {k: v.clone().numpy() for k, v in model.state_dict().items()}
    seen.append(Step(classification.item(), consistency.item(), grads, after))
  return start, seen


def remembering_gradients():
  """Lets gradients pass, and keeps them in its state."""
  return optax.GradientTransformation(
    lambda params: params, lambda grads, state, params: (grads, grads)
  )


def trained_by_us(name, start):
  with pytest.MonkeyPatch.context() as patch:
    small = functools.partial(
      models.MODELS["alexnet"], hidden=ALEXNET_HIDDEN, dropout_rate=0.0
    )
    patch.setitem(models.MODELS, "alexnet", small)
    model = names.from_torch(name, start, "PyTorch")
  graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
  tx = optax.chain(
    remembering_gradients(),
    optax.add_decayed_weights(WEIGHT_DECAY),
    optax.sgd(LR[name], MOMENTUM),
  )
  goal = steps.Objective(
    NUM_CLASSES, consistency=True, compose_mode="independent"
  )
  step = steps.make_train_step(
    graphdef, tx, goal, lambda _: jnp.float32(WEIGHT), jax.random.key(0)
  )
  state = states.TrainState(
    jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params)
  )
  batch = {
    "image": jnp.asarray(pixels(name)),
    "label": jnp.asarray(LABEL, jnp.int32),
    "mask": jnp.ones(4),
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(
      compose.MODES,
      "independent",
      lambda *_: jax.tree.map(jnp.asarray, LAYOUT),
    )
    step = jax.jit(step).lower(state, batch).compile()
  seen = []
  for _ in range(NUM_STEPS):
    state, metrics = step(state, batch)
    losses_now = [
      float(metrics[f"train/{kind}_loss"][0]) / len(LABEL)
      for kind in ("classification", "consistency")
    ]
    grads = names.to_torch(nnx.merge(graphdef, state.opt_state[0], batch_stats))
    after = names.to_torch(nnx.merge(graphdef, state.params, state.batch_stats))
    seen.append(Step(*losses_now, grads, after))
  return seen


@pytest.fixture(scope="module", params=LR)
def case(request):
  start, theirs = trained_by_torch(request.param)
  ours = trained_by_us(request.param, start)
  return types.SimpleNamespace(start=start, theirs=theirs, ours=ours)


def distance(ours, theirs):
  """Of two tensors, relative to the second's norm."""
  return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_losses_are_pytorchs(case):
  for ours, theirs in zip(case.ours, case.theirs, strict=True):
    assert ours.classification == pytest.approx(theirs.classification, rel=1e-5)
    assert ours.consistency == pytest.approx(theirs.consistency, rel=1e-5)
  # Steps that go nowhere would agree, too.
  losses = [step.classification for step in case.theirs]
  assert losses[-1] < losses[0] - 0.05


def test_the_gradient_of_every_parameter_is_pytorchs(case):
  """float32 rounding through up to 50 layers, there and back."""
  for ours, theirs in zip(case.ours, case.theirs, strict=True):
    for key, gradient in theirs.gradients.items():
      assert distance(ours.gradients[key], gradient) < 1e-4, key


def test_statistics_and_parameters_stay_pytorchs(case):
  for ours, theirs in zip(case.ours, case.theirs, strict=True):
    assert ours.state.keys() == theirs.state.keys()
    for key, values in theirs.state.items():
      assert distance(ours.state[key], values) < 1e-4, key
  for key, values in case.theirs[-1].state.items():
    if key.endswith("num_batches_tracked"):  # originals and composites
      assert case.ours[-1].state[key] == values
      assert values == case.start[key] + 2 * NUM_STEPS


@pytest.mark.parametrize("seed", range(3))
def test_the_multi_label_loss_is_pytorchs(seed):
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 10, (6, 80)).astype(np.float32)
  counts = rng.integers(0, 3, (6, 80))
  theirs = functional.binary_cross_entropy_with_logits(
    torch.from_numpy(logits), torch.from_numpy(np.float32(counts > 0))
  )
  ours = losses.binary_cross_entropy(jnp.asarray(logits), jnp.asarray(counts))
  np.testing.assert_allclose(ours.mean(), theirs, rtol=1e-5)
