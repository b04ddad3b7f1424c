"""A step of training is PyTorch's: losses, gradients, statistics, parameters.

The PyTorch side computes the loss the release's way: both forwards in train
mode, originals first, no stop-gradient, the epsilons, L1 averaged over cells.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

from gc_jax import models
from gc_jax.method import compose
from gc_jax.models.pixels import RGB_MEAN, RGB_STD
from gc_jax.runtime.config import get_config
from gc_jax.torch_io import names
from gc_jax.training.step import TrainState, make_train_step
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

# At this side AlexNet's grids are 2x2 and 5x5: as one is not double the other,
# both maps are enlarged.
SIZES = {"alexnet": 96}
# Small: rounding errors grow with the steps.
LR = {"alexnet": 1e-3, "resnet18": 1e-4, "resnet18-gmp": 1e-4}
# Ours and PyTorch's alike: every layer of the architecture, fewer channels.
NARROW = {
  "alexnet": {"hidden": 128},  # of 4096
  "resnet18": {"width": 16},  # of 64
}


class Step(NamedTuple):
  """What one step computed, under PyTorch's keys."""

  classification: float
  consistency: float
  gradients: dict[str, np.ndarray]
  state: dict[str, np.ndarray]  # after it


def pixels(name, seed):
  """Noise: in smooth pictures the maxima of a window are a rounding apart."""
  size = SIZES.get(name, 64)
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (4, size, size, 3), np.uint8)


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


def trained_by_torch(name, seed, num_steps):
  """Everything PyTorch computes on the way, step by step."""
  fields = dict(NARROW[name.removesuffix("-gmp")])
  if name == "alexnet":
    fields["dropout"] = 0.0  # its masks are no two generators' alike
  model = torch_models.create(name, NUM_CLASSES, seed, **fields)
  images = torch.from_numpy(pixels(name, seed)).permute(0, 3, 1, 2) / 255
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
  for _ in range(num_steps):
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


class Ours:
  """The same training by gc_jax, compiled once for every start."""

  def __init__(self, name):
    self.name = name
    self.step = None
    self.tx = optax.chain(
      remembering_gradients(),
      optax.add_decayed_weights(WEIGHT_DECAY),
      optax.sgd(LR[name], MOMENTUM),
    )

  def train(self, start, seed, num_steps):
    with pytest.MonkeyPatch.context() as patch:
      fields = dict(NARROW[self.name.removesuffix("-gmp")])
      if self.name == "alexnet":
        fields["dropout_rate"] = 0.0
      narrow = models.MODELS[self.name].changed(**fields)
      patch.setitem(models.MODELS, self.name, narrow)
      model = names.from_torch(self.name, start, "PyTorch")
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    state = TrainState(
      jnp.zeros((), jnp.int32), params, batch_stats, self.tx.init(params)
    )
    batch = {
      "image": jnp.asarray(pixels(self.name, seed)),
      "label": jnp.asarray(LABEL, jnp.int32),
      "mask": jnp.ones(4),
    }
    self.step = self.step or self._compiled(graphdef, state, batch)
    seen = []
    for _ in range(num_steps):
      state, metrics = self.step(state, batch)
      losses = [
        float(metrics[f"train/{kind}_loss"][0]) / len(LABEL)
        for kind in ("classification", "consistency")
      ]
      gradients = nnx.merge(graphdef, state.opt_state[0], batch_stats)
      after = nnx.merge(graphdef, state.params, state.batch_stats)
      seen.append(
        Step(*losses, names.to_torch(gradients), names.to_torch(after))
      )
    return seen

  def _compiled(self, graphdef, state, batch):
    config = get_config()
    config.compose.mode = "independent"
    config.loss.consistency_weight = WEIGHT
    step = make_train_step(
      config,
      graphdef,
      self.tx,
      num_classes=NUM_CLASSES,
      num_devices=1,
      steps_per_epoch=1,
    )
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(
        compose.MODES,
        "independent",
        compose.Mode(
          lambda *_: jax.tree.map(jnp.asarray, LAYOUT), 1, "fixed", ""
        ),
      )
      return jax.jit(step).lower(state, batch).compile()


@pytest.fixture(
  scope="module",
  params=[
    # Its layers and pooling are compared every day, in names_test.py.
    pytest.param("alexnet", marks=pytest.mark.large),
    *("resnet18", "resnet18-gmp"),
  ],
)
def case(request):
  """One model on both sides: `train(seed, num_steps)` on each."""
  ours = Ours(request.param)

  @functools.cache
  def train(seed, num_steps):
    start, theirs = trained_by_torch(request.param, seed, num_steps)
    return start, theirs, ours.train(start, seed, num_steps)

  return train


def distance(ours, theirs):
  """Of two tensors, relative to the second's norm."""
  return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_losses_are_pytorchs(case):
  _, all_theirs, all_ours = case(0, NUM_STEPS)
  for ours, theirs in zip(all_ours, all_theirs, strict=True):
    assert ours.classification == pytest.approx(theirs.classification, rel=1e-5)
    assert ours.consistency == pytest.approx(theirs.consistency, rel=1e-5)


def test_statistics_and_parameters_stay_pytorchs(case):
  start, all_theirs, all_ours = case(0, NUM_STEPS)
  for ours, theirs in zip(all_ours, all_theirs, strict=True):
    assert ours.state.keys() == theirs.state.keys()
    for key, values in theirs.state.items():
      assert distance(ours.state[key], values) < 1e-4, key
  # Steps without effect would agree, too.
  ours, theirs = all_ours[-1].state, all_theirs[-1].state
  moved = [distance(theirs[key], start[key]) for key in all_theirs[0].gradients]
  assert max(moved) > 1e-3
  for key, values in theirs.items():
    if key.endswith("num_batches_tracked"):  # originals and composites
      assert ours[key] == values == start[key] + 2 * NUM_STEPS


def test_the_gradient_of_every_parameter_is_pytorchs(case):
  """Float32 rounding may switch one ReLU or maximum among a million on one side
  alone, which moves gradients by a thousandth: in one draw of weights and
  pictures, but not in all three, as an error would.
  """
  worst = []
  for seed in range(3):
    _, theirs, ours = case(seed, NUM_STEPS if seed == 0 else 1)
    distances = {
      key: distance(ours[0].gradients[key], gradient)
      for key, gradient in theirs[0].gradients.items()
    }
    assert np.isfinite(list(distances.values())).all()
    worst.append(max((value, key) for key, value in distances.items()))
    if worst[-1][0] < 1e-4:
      return
  pytest.fail(f"largest relative distances: {worst}")
