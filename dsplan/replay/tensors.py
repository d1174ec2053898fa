"""Models that dsplan has no programs for, as the sizes of their tensors: enough for what lives between steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensors:
    """Elements of every parameter, in ``nn.Module.parameters()`` order, and bytes of all fp32 buffers."""

    parameters: tuple[int, ...]
    buffer_bytes: int


def resnet18() -> Tensors:
    """torchvision.models.resnet18(num_classes=10): 62 parameters; running mean and variance of each batch norm."""
    parameters = [64 * 3 * 7 * 7, 64, 64]
    channels = [64]
    width_in = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            parameters += [width * width_in * 9, width, width, width * width * 9, width, width]
            channels += [width, width]
            if block == 0 and width_in != width:  # the shortcut's 1x1 convolution
                parameters += [width * width_in, width, width]
                channels.append(width)
            width_in = width
    parameters += [10 * 512, 10]
    counters = 8 * len(channels)  # num_batches_tracked, int64
    return Tensors(tuple(parameters), 2 * 4 * sum(channels) + counters)


def gpt_lite() -> Tensors:
    """The article's GPT-lite: 3 layers of 4 heads, width 768, block 2048, vocabulary 65; a mask in every head.

    Each head has key, query and value of its own, without bias; all else is as in minGPT.
    """
    layers, heads, h, length, vocabulary = 3, 4, 768, 2048, 65
    block = [*[h // heads * h] * 3 * heads, h * h, h, 4 * h * h, 4 * h, 4 * h * h, h, h, h, h, h]
    parameters = [vocabulary * h, length * h, *block * layers, h, h, vocabulary * h]
    return Tensors(tuple(parameters), 4 * length**2 * heads * layers)


TENSORS: dict[str, Callable[[], Tensors]] = {"resnet18": resnet18, "gpt-lite": gpt_lite}
