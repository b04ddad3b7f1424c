"""Excitation backprop in plain PyTorch, layer by layer, from its equations.

Nothing is shared with ours: the probability is carried down by hand, through
the activations of `torch_models`, in the order of METHOD B1's rules.
"""

import torch
from torch import nn
from torch.nn import functional

from tests.torch_io.torch_models import BasicBlock

EPSILON = 1e-20


def hand_down(positive, x, p):
  """Returns x * f^T(p / f(x)), of a layer f without its negative weights."""
  x = x.detach().requires_grad_()
  z = positive(x)
  (transposed,) = torch.autograd.grad(z, x, p / (z + EPSILON))
  return (x * transposed).detach()


def conv(layer, x, p):
  weight = layer.weight.clamp(min=0)
  positive = lambda x: functional.conv2d(
    x, weight, None, layer.stride, layer.padding
  )
  return hand_down(positive, x, p)


def linear(layer, x, p, sign=1):
  weight = (sign * layer.weight).clamp(min=0)
  return hand_down(lambda x: functional.linear(x, weight), x, p)


def share(term, total, p):
  return torch.where(total == 0, torch.zeros(()), p * term / total)


def block(module, x, p):
  """What arrives at a residual block's input."""
  numbers = (1, 2) if isinstance(module, BasicBlock) else (1, 2, 3)
  convs = [getattr(module, f"conv{i}") for i in numbers]
  norms = [getattr(module, f"bn{i}") for i in numbers]
  inputs, before = [], []
  out = x
  for layer, norm in zip(convs, norms, strict=True):
    inputs.append(out)
    before.append(norm(layer(out)))
    out = before[-1].relu()
  branch = before[-1]
  shortcut = x if module.downsample is None else module.downsample(x)
  total = branch + shortcut
  p = p * (total > 0)
  down, across = share(branch, total, p), share(shortcut, total, p)
  for i in reversed(range(len(convs))):
    if i < len(convs) - 1:
      down = down * (before[i] > 0)
    down = conv(convs[i], inputs[i], down)
  if module.downsample is not None:
    across = conv(module.downsample[0], x, across)
  return down + across


@torch.no_grad()
def resnet_inputs(model, x, stage):
  """Each block above a stage with its input, and the features."""
  x = model.maxpool(model.bn1(model.conv1(x)).relu())
  found = []
  for number in range(1, 5):
    for module in getattr(model, f"layer{number}"):
      if number > stage:
        found.append((module, x))
      x = module(x)
  return found, x


def resnet(model, images, target, stage, contrast):
  """Maps of a ResNet at the output of a stage: signed, per channel."""
  blocks, features = resnet_inputs(model, images, stage)
  pooled = torch.flatten(model.avgpool(features), 1).detach()
  p = _at_last_input(model.fc, pooled, target, contrast)
  p = hand_down(lambda x: torch.flatten(model.avgpool(x), 1), features, p)
  for module, x in reversed(blocks):
    with torch.enable_grad():
      p = block(module, x.detach(), p).detach()
  return p


def alexnet(model, images, target, number, contrast):
  """Maps of AlexNet at the output of `features[number]`."""
  x, steps = images, []
  with torch.no_grad():
    for i, layer in enumerate(model.features):
      if i > number:
        steps.append((layer, x))
      x = layer(x)
    features = x
    x = torch.flatten(model.avgpool(features), 1)
    head = []
    for layer in model.classifier:
      head.append((layer, x))
      x = layer(x)
  p = _at_last_input(head[-1][0], head[-1][1], target, contrast)
  for layer, x in reversed(head[:-1]):
    if isinstance(layer, nn.Linear):
      p = linear(layer, x, p)
    elif isinstance(layer, nn.ReLU):
      p = p * (x > 0)
  p = hand_down(lambda x: torch.flatten(model.avgpool(x), 1), features, p)
  for layer, x in reversed(steps):
    if isinstance(layer, nn.Conv2d):
      p = conv(layer, x, p)
    elif isinstance(layer, nn.ReLU):
      p = p * (x > 0)
    else:
      p = hand_down(layer, x, p)
  return p


def _at_last_input(layer, x, target, contrast):
  start = functional.one_hot(target, layer.out_features).float()
  p = linear(layer, x, start)
  return p - linear(layer, x, start, sign=-1) if contrast else p
