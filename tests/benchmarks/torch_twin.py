"""The train step in plain PyTorch, as most would write it.

Nothing in here is gc_jax's: eager mode, autograd, the paper's composites, one
for each image. `torch_step` holds it against ours, losses first.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-8


class Layout(NamedTuple):
  """Which images fill the four cells of each composite, row by row."""

  tiles: torch.Tensor  # [B 4], positions in the batch
  cell: torch.Tensor  # [B], where the explained image sits


class Trainer:
  """A model with `features` and `classify`, and its optimizer.

  `weight` is λ; 0 trains without composites. `compiles` sends the trunk through
  `torch.compile`; the head cannot be: it is differentiated twice.
  """

  def __init__(
    self,
    model: nn.Module,
    device: str,
    dtype: str,
    weight: float,
    compiles: bool = False,
  ):
    model = model.to(device, memory_format=torch.channels_last).train()
    features = model.features
    self._features = torch.compile(features) if compiles else features
    self._classify = model.classify
    self._model = model
    self._device = device
    self._autocasts = dtype == "bfloat16"
    self._weight = weight
    self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

  def step(
    self,
    images: torch.Tensor,
    label: torch.Tensor,
    layout: Layout | None = None,
  ) -> dict[str, torch.Tensor]:
    """Makes one update; returns the losses before it.

    `images` are normalised, `[B 3 H W]` in channels_last; without a `layout` of
    composites, one is drawn.
    """
    self._optimizer.zero_grad(set_to_none=True)
    with torch.autocast(self._device, torch.bfloat16, enabled=self._autocasts):
      features = self._features(images)
      logits = self._classify(features)
      classification = functional.cross_entropy(logits, label)
      losses = {"classification_loss": classification.detach()}
      loss = classification
      if self._weight:
        layout = draw_layout(label) if layout is None else layout
        composites = quadrants(images[layout.tiles]).contiguous(
          memory_format=torch.channels_last
        )
        cam = grad_cam(features, logits, label)
        composite_features = self._features(composites)
        composite_cam = grad_cam(
          composite_features, self._classify(composite_features), label
        )
        in_cell = functional.one_hot(layout.cell, 4)[..., None, None]
        expected = quadrants((cam[:, None] * in_cell)[:, :, None])[:, 0]
        consistency = functional.l1_loss(composite_cam, expected)
        losses["consistency_loss"] = consistency.detach()
        loss = loss + self._weight * consistency
    loss.backward()
    self._optimizer.step()
    return losses

  def grad_norm(self) -> torch.Tensor:
    """Returns the Euclidean norm of the last step's gradients."""
    grads = [p.grad.norm() for p in self._model.parameters()]
    return torch.stack(grads).norm()

  def repeat(
    self, images: torch.Tensor, label: torch.Tensor
  ) -> Callable[[int], None]:
    """Returns what makes a number of steps and waits for the last."""

    def run(count: int) -> None:
      for _ in range(count):
        self.step(images, label)
      if self._device == "cuda":
        torch.cuda.synchronize()

    return run


def draw_layout(label: torch.Tensor) -> Layout:
  """Draws three images of other classes for each, and the image's cell.

  For each image there must be three of other classes in the batch.
  """
  count = len(label)
  other = label[:, None] != label[None]
  order = torch.rand(count, count, device=label.device)
  distractors = order.masked_fill(~other, -1.0).topk(3).indices
  own = torch.arange(count, device=label.device)[:, None]
  cell = torch.randint(4, (count,), device=label.device)
  places = (torch.arange(4, device=label.device) - cell[:, None]) % 4
  return Layout(torch.cat([own, distractors], 1).gather(1, places), cell)


def quadrants(tiles: torch.Tensor) -> torch.Tensor:
  """Returns `[B C 2H 2W]` made of `[B 4 C H W]`."""
  top = torch.cat([tiles[:, 0], tiles[:, 1]], dim=-1)
  bottom = torch.cat([tiles[:, 2], tiles[:, 3]], dim=-1)
  return torch.cat([top, bottom], dim=-2)


def grad_cam(
  features: torch.Tensor, logits: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
  """Returns element-wise Grad-CAM as a distribution over cells, `[B h w]`.

  `features` are `[B D h w]`, and `logits` made of them.
  """
  scores = logits.gather(1, label[:, None]).sum()
  (gradients,) = torch.autograd.grad(scores, features, create_graph=True)
  cam = (gradients.float() * features.float()).sum(1).relu()
  return cam / (cam.sum((1, 2), keepdim=True) + EPSILON) + EPSILON
