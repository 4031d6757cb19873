"""The built-in networks. Each takes the shape of one input and the number of outputs, and makes logits (B, outputs)."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class AtLeast:
    """The smallest allowed value of an option, as metadata of its annotation."""

    low: float


Width = Annotated[int, AtLeast(1)]
Activation = Literal["relu", "tanh", "gelu", "elu", "silu"]
Norm = Literal["none", "batch", "layer"]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}
_NORMS: dict[Norm, type[nn.Module]] = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Mlp(nn.Sequential):
    """Linear, norm, activation for each width; Linear. 400-400 with ReLU: van de Ven & Tolias 2019, split MNIST.

    Args:
        shape: of one input; it is flattened.
        outputs: number of logits.
        widths: of the hidden layers; none of them: softmax regression.
        activation: after each hidden layer.
        norm: before each activation.

    References:
        Three scenarios for continual learning, https://arxiv.org/abs/1904.07734.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        *,
        widths: tuple[Width, ...] = (400, 400),
        activation: Activation = "relu",
        norm: Norm = "none",
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        features = math.prod(shape)
        for i, width in enumerate(widths, start=1):
            layers[f"linear{i}"] = nn.Linear(features, width)
            layers[f"norm{i}"] = _NORMS[norm](width)
            layers[f"{activation}{i}"] = _ACTIVATIONS[activation]()
            features = width
        layers[f"linear{len(widths) + 1}"] = nn.Linear(features, outputs)
        super().__init__(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, outputs), of inputs, shape (B, *shape)."""
        x = x.flatten(1)
        for layer in self:
            x = layer(x)
        return x


class MlpBN(nn.Module):
    """Linear-256, BatchNorm, ReLU; Linear-128, BatchNorm, ReLU; Linear: the default.

    Args:
        shape: of one input; it is flattened.
        outputs: number of logits.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(math.prod(shape), 256)
        self.bn1 = nn.BatchNorm1d(256)
        self.linear2 = nn.Linear(256, 128)
        self.bn2 = nn.BatchNorm1d(128)
        self.linear3 = nn.Linear(128, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, outputs), of inputs, shape (B, *shape)."""
        x = self.bn1(self.linear1(x.flatten(1))).relu()
        x = self.bn2(self.linear2(x)).relu()
        logits: Tensor = self.linear3(x)
        return logits


class Cnn(nn.Module):
    """3x3 convolutions with ReLU, 2x2 max-pool after every second, Linear-512: as Zenke et al. 2017, without Dropout.

    Images keep their size but for pooling; the paper's unpadded convolutions would leave nothing of 8x8 images.

    Args:
        shape: (channels, height, width) of one image.
        outputs: number of logits.
        widths: channels of each convolution.
        hidden: width of the linear layer before the logits.

    References:
        Continual Learning Through Synaptic Intelligence, https://arxiv.org/abs/1703.04200, section 5.3.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        *,
        widths: tuple[Width, ...] = (32, 32, 64, 64),
        hidden: Width = 512,
    ) -> None:
        super().__init__()
        halved = len(widths) // 2
        channels, height, width = image_shape(shape, smallest=2**halved)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, filters in enumerate(widths, start=1):
            layers[f"conv{i}"] = nn.Conv2d(channels, filters, 3, padding=1)
            layers[f"relu{i}"] = nn.ReLU()
            if i % 2 == 0:
                layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
            channels = filters
        self.features = nn.Sequential(layers)
        self.linear1 = nn.Linear(channels * (height >> halved) * (width >> halved), hidden)
        self.linear2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, outputs), of images, shape (B, *shape)."""
        logits: Tensor = self.linear2(self.linear1(self.features(x).flatten(1)).relu())
        return logits


class ResNet18Small(nn.Module):
    """ResNet-18 with 3x3 stem, no max-pool, 20-40-80-160 channels, BatchNorm: as Lopez-Paz & Ranzato 2017 (GEM).

    The mean over all positions before the logits is GEM's 4x4 average pooling at 32x32, and takes any other size too.

    Args:
        shape: (channels, height, width) of one image.
        outputs: number of logits.
        width: channels of the first stage; each further stage has twice as many.

    References:
        Gradient Episodic Memory for Continual Learning, https://arxiv.org/abs/1706.08840; He et al. 2016,
        https://arxiv.org/abs/1512.03385.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, *, width: Width = 20) -> None:
        super().__init__()
        channels, _, _ = image_shape(shape)
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.linear = nn.Linear(8 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, outputs), of images, shape (B, *shape)."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the size changes."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, filters, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = _conv3x3(filters, filters)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != filters:
            projection = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)
        return y.relu()


def _conv3x3(channels: int, filters: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)


def _stage(channels: int, filters: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_BasicBlock(channels, filters, stride), _BasicBlock(filters, filters, 1))


def image_shape(shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """Channels, height and width, for networks that take nothing but images.

    Args:
        shape: of one input.
        smallest: height and width the network needs.

    Raises:
        ValueError: not the shape of an image, or too small.
    """
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(
            f"expected images of shape (channels, height, width), at least {smallest} by {smallest}, got {shape}"
        )
    channels, height, width = shape
    return channels, height, width
