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


class VisionTransformer(nn.Module):
  """Takes any size, unlike torchvision's: positions are enlarged within.

  Its features are ours: the patches behind the last block's first norm, and
  before that block the class token, repeated in further channels.
  """

  def __init__(
    self,
    image_size=224,
    patch_size=16,
    num_layers=12,
    num_heads=3,
    hidden_dim=192,
    mlp_dim=None,
    num_classes=1000,
  ):
    super().__init__()
    grid = image_size // patch_size
    self.conv_proj = nn.Conv2d(3, hidden_dim, patch_size, patch_size)
    self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_dim))
    self.encoder = nn.Module()
    self.encoder.pos_embedding = nn.Parameter(
      torch.randn(1, 1 + grid**2, hidden_dim)
    )
    self.encoder.layers = nn.Sequential()
    for i in range(num_layers):
      block = nn.Module()
      block.ln_1 = nn.LayerNorm(hidden_dim, eps=1e-6)
      block.self_attention = nn.MultiheadAttention(
        hidden_dim, num_heads, batch_first=True
      )
      block.ln_2 = nn.LayerNorm(hidden_dim, eps=1e-6)
      mlp_dim = mlp_dim or 4 * hidden_dim
      up, down = (
        nn.Linear(hidden_dim, mlp_dim),
        nn.Linear(mlp_dim, hidden_dim),
      )
      block.mlp = nn.Sequential(up, nn.GELU(), nn.Dropout(0.0), down)
      self.encoder.layers.add_module(f"encoder_layer_{i}", block)
    self.encoder.ln = nn.LayerNorm(hidden_dim, eps=1e-6)
    self.heads = nn.Sequential()
    self.heads.add_module("head", nn.Linear(hidden_dim, num_classes))

  def features(self, x):
    patches = self.conv_proj(x)
    positions = resized(self.encoder.pos_embedding, patches.shape[2:])
    token = self.class_token.expand(len(x), -1, -1)
    x = torch.cat([token, patches.flatten(2).mT], 1) + positions
    *blocks, last = self.encoder.layers
    for block in blocks:
      x = through(block, x, block.ln_1(x))
    cells = last.ln_1(x)[:, 1:].mT.reshape(patches.shape)
    return torch.cat([cells, x[:, 0, :, None, None].expand(cells.shape)], 1)

  def classify(self, features):
    last = self.encoder.layers[-1]
    cells, token = features.chunk(2, 1)
    token = token[:, None, :, 0, 0]
    normed = torch.cat([last.ln_1(token), cells.flatten(2).mT], 1)
    return self.heads(self.encoder.ln(through(last, token, normed))[:, 0])

  def forward(self, x):
    return self.classify(self.features(x))


def through(block, x, normed):
  queries = normed[:, : x.shape[1]]
  x = x + block.self_attention(queries, normed, normed)[0]
  return x + block.mlp(block.ln_2(x))


def resized(positions, grid):
  token, cells = positions[:, :1], positions[:, 1:]
  side = round(cells.shape[1] ** 0.5)
  cells = nn.functional.interpolate(
    cells.mT.reshape(1, -1, side, side),
    tuple(grid),
    mode="bicubic",
    align_corners=True,
  )
  return torch.cat([token, cells.flatten(2).mT], 1)


def interpolate_embeddings(image_size, patch_size, model_state):
  key, side = "encoder.pos_embedding", image_size // patch_size
  return {**model_state, key: resized(model_state[key], (side, side))}


class ConvBlock(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.block = nn.Sequential(
      nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
      nn.Identity(),
      nn.LayerNorm(channels, eps=1e-6),
      nn.Linear(channels, 4 * channels),
      nn.GELU(),
      nn.Linear(4 * channels, channels),
    )
    self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

  def forward(self, x):
    convolve, _, *others = self.block
    out = nn.Sequential(*others)(convolve(x).movedim(1, -1))
    return x + self.layer_scale * out.movedim(-1, 1)


class ChannelNorm(nn.LayerNorm):
  def forward(self, x):
    return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXt(nn.Module):
  def __init__(
    self,
    num_classes=1000,
    stage_sizes=(3, 3, 9, 3),
    widths=(96, 192, 384, 768),
  ):
    super().__init__()
    parts, before = [], 3
    for count, channels in zip(stage_sizes, widths, strict=True):
      side = 2 if parts else 4
      layers = [nn.Conv2d(before, channels, side, side)]
      normed = before if parts else channels
      layers.insert(0 if parts else 1, ChannelNorm(normed, eps=1e-6))
      parts.append(nn.Sequential(*layers))
      parts.append(nn.Sequential(*(ConvBlock(channels) for _ in range(count))))
      before = channels
    self.features = nn.Sequential(*parts)
    self.avgpool = nn.AdaptiveAvgPool2d(1)
    norm, last = ChannelNorm(before, eps=1e-6), nn.Linear(before, num_classes)
    self.classifier = nn.Sequential(norm, nn.Flatten(1), last)

  def classify(self, features):
    return self.classifier(self.avgpool(features))

  def forward(self, x):
    return self.classify(self.features(x))


vit_tiny = VisionTransformer
convnext_tiny = ConvNeXt
alexnet, vgg16, squeezenet1_1 = AlexNet, VGG16, SqueezeNet
resnet18 = functools.partial(ResNet, BasicBlock, [2, 2, 2, 2])
resnet34 = functools.partial(ResNet, BasicBlock, [3, 4, 6, 3])
resnet50 = functools.partial(ResNet, Bottleneck, [3, 4, 6, 3])
resnet101 = functools.partial(ResNet, Bottleneck, [3, 4, 23, 3])


# Fields that make ours and these small, without losing a kind of layer.
SMALL = {
  "alexnet": {"hidden": 64},
  "vgg16": {"hidden": 64},
  "vit_tiny": {"num_layers": 2},
  "convnext_tiny": {"stage_sizes": (1, 1, 2, 1), "widths": (8, 16, 32, 64)},
}


def small(name):
  """The fields of `SMALL` for a model, whatever its pooling."""
  return SMALL.get(name.removesuffix("-gmp"), {})


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
  for key, parameter in model.named_parameters():
    if key.endswith(("layer_scale", "class_token")):
      nn.init.uniform_(parameter, 0.2, 0.8)
  for module in model.modules():
    if isinstance(module, nn.LayerNorm):
      nn.init.uniform_(module.weight, 0.5, 1.5)
      nn.init.normal_(module.bias, std=0.5)
  return model
