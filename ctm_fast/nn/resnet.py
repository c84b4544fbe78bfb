"""ResNet feature extractors: the first stages of a ResNet with a small first convolution and no head.

Unlike the ImageNet network the first convolution is 3x3 with stride 1; 3x3 max-pooling with stride 2 follows.
``resnet34-2`` means ResNet-34 cut after its second stage.
"""

from __future__ import annotations

from itertools import product

from torch import Tensor, nn

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 4, 36, 3),
}
PLANES = (64, 128, 256, 512)
RESNETS = tuple(f"resnet{depth}-{stages}" for depth, stages in product(BLOCKS_PER_STAGE, (1, 2, 3, 4)))


def _conv(in_planes: int, out_planes: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(in_planes, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:  # (B, in_planes, H, W) -> (B, planes, H / stride, W / stride)
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + shortcut)
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut, ``4 * planes`` wide (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(in_planes, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:  # (B, in_planes, H, W) -> (B, 4 planes, H / stride, W / stride)
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.relu(self.bn3(self.conv3(y)) + shortcut)
        return y


class ResNet(nn.Module):
    """The first ``stages`` stages of ResNet-``depth``: RGB (B, 3, H, W) -> (B, width, H', W').

    H' and W' shrink by two, and by two more for every stage after the first, rounded up.
    Keys ``conv1``, ``bn1`` and ``layer{1..stages}``. :func:`resnet_width` gives the output channels.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stages: 1 to 4.
    """

    def __init__(self, depth: int, stages: int) -> None:
        super().__init__()
        self.block = BasicBlock if depth < 50 else Bottleneck
        self.stages = stages
        self.in_planes = PLANES[0]
        self.conv1 = _conv(3, PLANES[0], 3)
        self.bn1 = nn.BatchNorm2d(PLANES[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage in range(1, stages + 1):
            layer = self._stage(
                PLANES[stage - 1], BLOCKS_PER_STAGE[depth][stage - 1], stride=1 if stage == 1 else 2
            )
            self.add_module(f"layer{stage}", layer)

    def _stage(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        width = planes * self.block.expansion
        downsample = None
        if stride != 1 or self.in_planes != width:
            downsample = nn.Sequential(_conv(self.in_planes, width, 1, stride), nn.BatchNorm2d(width))
        layers = [self.block(self.in_planes, planes, stride, downsample)]
        layers += [self.block(width, planes, 1, None) for _ in range(blocks - 1)]
        self.in_planes = width
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


def _parse(name: str) -> tuple[int, int]:
    if name not in RESNETS:
        raise ValueError(f"backbone_type must be resnet{{18,34,50,101,152}}-{{1..4}}, got {name!r}")
    depth, stages = name.removeprefix("resnet").split("-")
    return int(depth), int(stages)


def resnet_width(name: str) -> int:
    """Output channels of the backbone ``name``, one of :data:`RESNETS`; ``ValueError`` for an unknown one."""
    depth, stages = _parse(name)
    return PLANES[stages - 1] * (BasicBlock if depth < 50 else Bottleneck).expansion


def build_resnet(name: str) -> ResNet:
    """The backbone ``name``, for instance ``"resnet34-2"``; ``ValueError`` for an unknown one."""
    return ResNet(*_parse(name))
