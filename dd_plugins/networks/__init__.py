"""Classifiers that matching objectives and benchmarks train: how they are built, and what their files share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from dd_plugins import registry
from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.memory import require_memory, shapes_only, tensor_bytes
from dd_plugins.api.network import Network
from dd_plugins.errors import DDPluginsError
from dd_plugins.seeds import seeded_layers

__all__ = [
    "build_network",
    "count_parameters",
    "instance_norm",
    "network_bytes",
    "plain_layers",
    "stem_map",
    "stem_padding",
]

GREY_28 = (1, 28, 28)  # MNIST and its kin: the field pads their first map to 32x32, so that one network fits all


def build_network(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    config: PluginConfig | Mapping[str, Any] | None = None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Network:
    """Builds a network whose initial weights depend on ``seed`` alone, not on the device.

    The weights are drawn on the CPU and then moved; the caller's generators, on every device, are left as they were.

    Args:
        name: The plugin: ``name``, ``distribution/name`` or ``module:Class``.
        image_shape: ``(C, H, W)``.
        num_classes: How many logits an image gets.
        config: The plugin's ``Config``, or a mapping of its settings; None for the defaults.
        seed: Seed of the initial weights.
        device: Where the network goes.

    Returns:
        The network in training mode; float32 parameters, all of which require gradients.

    Raises:
        UnknownPluginError: If no plugin has this name.
        ConfigError: If a setting is unknown, not allowed, or does not fit the images.
        NotEnoughMemory: If its parameters would not fit into memory; before any of them is allocated.

    Example:
        >>> import torch
        >>> from dd_plugins.networks import build_network
        >>> build_network("convnet", (3, 32, 32), 10, seed=0)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    require_memory(
        {f"network {name}": network_bytes(name, image_shape, num_classes, config)}, hint="a smaller network fits"
    )
    with seeded_layers(seed):
        network: Network = registry.create("network", name, image_shape, num_classes, config)
    return network.to(device)


def network_bytes(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    config: PluginConfig | Mapping[str, Any] | None = None,
) -> int:
    """Bytes of a network's parameters and buffers, by its shapes alone: nothing is allocated, nothing is drawn.

    Args:
        name: The plugin.
        image_shape: ``(C, H, W)``.
        num_classes: How many logits an image gets.
        config: Its settings.

    Returns:
        The number of bytes; 0 if the network cannot be built without contents, so that nothing is known ahead.

    Raises:
        NotEnoughMemory: If there are more than can be counted, or more layers than can be created.
    """
    network_class: Any = registry.load("network", name)
    settings = parse_config(network_class.Config, config, "network").model_dump_json()
    return _network_bytes(network_class, tuple(image_shape), num_classes, settings)


@lru_cache(maxsize=256)
def _network_bytes(
    network_class: type[Network], image_shape: tuple[int, int, int], num_classes: int, settings: str
) -> int:
    try:
        with seeded_layers(0), shapes_only(f"network {network_class.__name__}"):
            return tensor_bytes(network_class(image_shape, num_classes, json.loads(settings)))
    except DDPluginsError:
        raise
    except Exception:  # the code of a third party may need contents; building it tells what else is wrong
        return 0


def count_parameters(network: nn.Module) -> int:
    """The number of elements in all parameters of ``network``; buffers such as running means do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def stem_padding(image_shape: tuple[int, int, int], kernel_size: int) -> int:
    """Padding of a stride-1 first convolution: it keeps the image's size, and makes 28x28 grey images 32x32 maps."""
    return kernel_size // 2 + (2 if tuple(image_shape) == GREY_28 else 0)


def stem_map(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the map behind a first convolution with ``stem_padding``."""
    return (32, 32) if tuple(image_shape) == GREY_28 else (image_shape[1], image_shape[2])


def instance_norm(channels: int) -> nn.GroupNorm:
    """The field's "instance norm": one group a channel, affine, no running statistics, the same in train and eval."""
    return nn.GroupNorm(channels, channels)


def plain_layers(body: nn.Module, norm: str) -> None:
    """Gives a network of torchvision's the manners of all networks here, in place.

    Args:
        body: The network; its layers are changed.
        norm: ``"instance"`` puts ``instance_norm`` where batch norms are; ``"batch"`` leaves them.
    """
    for module in list(body.modules()):
        for name, child in module.named_children():
            if norm == "instance" and isinstance(child, nn.BatchNorm2d):
                setattr(module, name, instance_norm(child.num_features))
            elif isinstance(child, nn.ReLU):
                child.inplace = False  # a hook on the layer before it must see that layer's own output
            elif isinstance(child, nn.Conv2d | nn.Linear):
                child.reset_parameters()  # the field keeps the framework's initialisation; torchvision has its own
