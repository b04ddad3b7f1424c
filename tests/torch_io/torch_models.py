"""torchvision's architectures in plain PyTorch, to hold ours against.

Written for the tests from the papers and torchvision's documented layer names:
torchvision itself does not import beside every build of PyTorch. The classes
offer what torchvision's do as far as model cards use it.
"""

import functools

import pytest
import torch
from torch import nn


class BasicBlock(nn.Module):
  expansion = 1

  def __init__(self, inplanes, planes, stride=1, downsample=None):
    super().__init__()
    self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(planes)
    self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(planes)
    self.downsample = downsample

  def forward(self, x):
    shortcut = x if self.downsample is None else self.downsample(x)
    out = self.bn1(self.conv1(x)).relu()
    return (self.bn2(self.conv2(out)) + shortcut).relu()


class Bottleneck(nn.Module):
  expansion = 4

  def __init__(self, inplanes, planes, stride=1, downsample=None):
    super().__init__()
    self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(planes)
    self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(planes)
    self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * planes)
    self.downsample = downsample

  def forward(self, x):
    shortcut = x if self.downsample is None else self.downsample(x)
    out = self.bn1(self.conv1(x)).relu()
    out = self.bn2(self.conv2(out)).relu()
    return (self.bn3(self.conv3(out)) + shortcut).relu()


class ResNet(nn.Module):
  def __init__(self, block, layers, num_classes=1000, width=64):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    inplanes = width
    for stage, blocks in enumerate(layers):
      planes, stride = width * 2**stage, 2 if stage else 1
      outplanes = planes * block.expansion
      downsample = None
      if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(
          nn.Conv2d(inplanes, outplanes, 1, stride, bias=False),
          nn.BatchNorm2d(outplanes),
        )
      first = block(inplanes, planes, stride, downsample)
      rest = [block(outplanes, planes) for _ in range(blocks - 1)]
      setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
      inplanes = outplanes
    self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
    self.fc = nn.Linear(inplanes, num_classes)

  def features(self, x):
    x = self.maxpool(self.bn1(self.conv1(x)).relu())
    return self.layer4(self.layer3(self.layer2(self.layer1(x))))

  def classify(self, features):
    return self.fc(torch.flatten(self.avgpool(features), 1))

  def forward(self, x):
    return self.classify(self.features(x))


def _chain(*convs_and_pools, pool):
  layers, channels = [], 3
  for layer in convs_and_pools:
    if layer is None:
      layers.append(nn.MaxPool2d(*pool))
      continue
    out_channels, kernel, stride, padding = layer
    layers.append(nn.Conv2d(channels, out_channels, kernel, stride, padding))
    layers.append(nn.ReLU())
    channels = out_channels
  return nn.Sequential(*layers)


class _Chain(nn.Module):
  """`features`, `avgpool`, `classifier`, as AlexNet and VGG have them."""

  def classify(self, features):
    return self.classifier(torch.flatten(self.avgpool(features), 1))

  def forward(self, x):
    return self.classify(self.features(x))


class AlexNet(_Chain):
  def __init__(self, num_classes=1000, dropout=0.5, hidden=4096):
    super().__init__()
    self.features = _chain(
      (64, 11, 4, 2),
      None,
      (192, 5, 1, 2),
      None,
      (384, 3, 1, 1),
      (256, 3, 1, 1),
      (256, 3, 1, 1),
      None,
      pool=(3, 2),
    )
    self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
    self.classifier = nn.Sequential(
      nn.Dropout(dropout),
      nn.Linear(256 * 6 * 6, hidden),
      nn.ReLU(),
      nn.Dropout(dropout),
      nn.Linear(hidden, hidden),
      nn.ReLU(),
      nn.Linear(hidden, num_classes),
    )


class VGG16(_Chain):
  def __init__(self, num_classes=1000, dropout=0.5, hidden=4096):
    super().__init__()
    stages = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
    convs = []
    for count, channels in stages:
      convs += [(channels, 3, 1, 1)] * count + [None]
    self.features = _chain(*convs, pool=(2, 2))
    self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
    self.classifier = nn.Sequential(
      nn.Linear(512 * 7 * 7, hidden),
      nn.ReLU(),
      nn.Dropout(dropout),
      nn.Linear(hidden, hidden),
      nn.ReLU(),
      nn.Dropout(dropout),
      nn.Linear(hidden, num_classes),
    )


class Fire(nn.Module):
  def __init__(self, inplanes, squeezed, expanded):
    super().__init__()
    self.squeeze = nn.Conv2d(inplanes, squeezed, 1)
    self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
    self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

  def forward(self, x):
    x = self.squeeze(x).relu()
    return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
  """Version 1.1."""

  def __init__(self, num_classes=1000, dropout=0.5):
    super().__init__()
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
    self.features = nn.Sequential(
      nn.Conv2d(3, 64, 3, 2),
      nn.ReLU(),
      pool(),
      Fire(64, 16, 64),
      Fire(128, 16, 64),
      pool(),
      Fire(128, 32, 128),
      Fire(256, 32, 128),
      pool(),
      Fire(256, 48, 192),
      Fire(384, 48, 192),
      Fire(384, 64, 256),
      Fire(512, 64, 256),
    )
    self.classifier = nn.Sequential(
      nn.Dropout(dropout),
      nn.Conv2d(512, num_classes, 1),
      nn.ReLU(),
      nn.AdaptiveAvgPool2d((1, 1)),
    )

  def classify(self, features):
    return torch.flatten(self.classifier(features), 1)

  def forward(self, x):
    return self.classify(self.features(x))


alexnet, vgg16, squeezenet1_1 = AlexNet, VGG16, SqueezeNet
resnet18 = functools.partial(ResNet, BasicBlock, [2, 2, 2, 2])
resnet34 = functools.partial(ResNet, BasicBlock, [3, 4, 6, 3])
resnet50 = functools.partial(ResNet, Bottleneck, [3, 4, 6, 3])
resnet101 = functools.partial(ResNet, Bottleneck, [3, 4, 23, 3])


def deepest_apart(names):
  """Returns the names as parameters of a test, ResNet101's only if asked."""
  return [
    pytest.param(name, marks=[pytest.mark.large] * name.startswith("resnet101"))
    for name in names
  ]


def create(name, num_classes, seed=0, **fields):
  """The PyTorch twin of one of our models, randomly initialised.

  Norms are random too, so that an exchange of two shows. Their biases keep most
  units away from 0, and residual branches are weak, as in a trained net:
  rounding then switches no ReLU and does not grow from block to block.
  """
  torch.manual_seed(seed)
  base = name.removesuffix("-gmp")
  model = globals()[base](num_classes=num_classes, **fields)
  if name.endswith("-gmp"):
    pool = nn.AdaptiveMaxPool2d((1, 1))
    if base.startswith("squeezenet"):
      model.classifier[-1] = pool
    else:
      model.avgpool = pool
  for block in model.modules():
    for key, module in block.named_children():
      if not isinstance(module, nn.BatchNorm2d):
        continue
      ends_branch = key == ("bn3" if isinstance(block, Bottleneck) else "bn2")
      strength = 0.2 if ends_branch else 1.0
      nn.init.uniform_(module.weight, 0.5 * strength, 1.5 * strength)
      on = torch.rand_like(module.bias) < 0.7
      module.bias.data = strength * torch.where(on, 3.0, -3.0)
      nn.init.normal_(module.running_mean, std=0.1)
      nn.init.uniform_(module.running_var, 0.5, 1.5)
      module.num_batches_tracked.fill_(7)
  return model
