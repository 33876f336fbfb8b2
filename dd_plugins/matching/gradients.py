"""Gradient matching, the tool that DC, DSA and IDC share: class-wise gradients, distances, and image gradients.

Independent classes make the loss a sum, so one class at a time is exact; on a GPU, where small steps are bound by
launches, all classes go through ``torch.func.vmap`` at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Metric = Literal["dc", "mse", "l1", "cosine"]
Strategy = Literal["auto", "loop", "vmap"]
Gradients = Sequence[Tensor]
CPU_IMAGES = 32  # of real ones at once: their maps stay near the cache, and memory small
EPSILON = 1e-6  # added to the product of norms, as DC's code does; it damps the cosine of small gradients


def compared(metric: Metric, parameter: Tensor) -> bool:
    """Whether a parameter counts: convolution weights alone for IDC's metrics; everything but vectors for DC's."""
    return parameter.ndim > 1 if metric == "dc" else parameter.ndim == 4


def gradient_distance(real: Gradients, synthetic: Gradients, metric: Metric) -> Tensor:
    """The distance between two lists of gradients, one tensor a parameter.

    ``dc``: sum over layers and output rows of ``1 - cosine``, vectors count zero (DC, Eq. 6 and its code).
    ``mse``, ``l1``: sum over all entries of convolution weights of the squared or absolute difference (IDC's code).
    ``cosine``: sum over convolution layers of ``1 - cosine`` of the whole layer; ours, free of the gradients' scale.

    Returns:
        Float, scalar.
    """
    pairs = [(r, s) for r, s in zip(real, synthetic, strict=True) if compared(metric, s)]
    return torch.stack([_DISTANCES[metric](r, s) for r, s in pairs]).sum()


def _rows(real: Tensor, synthetic: Tensor) -> Tensor:
    real, synthetic = real.flatten(1), synthetic.flatten(1)
    norms = real.norm(dim=1) * synthetic.norm(dim=1)
    return (1 - (real * synthetic).sum(1) / (norms + EPSILON)).sum()


def _layer_cosine(real: Tensor, synthetic: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(real.flatten(), synthetic.flatten(), dim=0)


_DISTANCES: dict[Metric, Callable[[Tensor, Tensor], Tensor]] = {
    "dc": _rows,
    "mse": lambda real, synthetic: (real - synthetic).square().sum(),
    "l1": lambda real, synthetic: (real - synthetic).abs().sum(),
    "cosine": _layer_cosine,
}


def class_gradients(
    network: nn.Module, labels: Sequence[int], images: Sequence[Tensor], metric: Metric, strategy: Strategy = "auto"
) -> list[Gradients]:
    """The gradient of the cross entropy of each class's images, without a graph.

    Args:
        network: Classifier.
        labels: The classes.
        images: For each of them float ``(n, C, H, W)``.
        metric: Decides which parameters count.
        strategy: ``vmap`` takes all classes at once and needs equal counts; networks with BatchNorm in training mode
            always take ``loop``.

    Returns:
        For each class a list of gradients.
    """
    names, parameters = _counted(network, metric)
    if _resolve(strategy, network, images) == "vmap":
        with torch.no_grad():  # or the weights would hold the graph of all images; torch.func.grad works within
            stacked = torch.func.vmap(_gradient(network, names), in_dims=(None, 0, 0))(
                parameters, torch.stack(list(images)), torch.tensor(labels, device=images[0].device)
            )
        return [[gradient[k] for gradient in stacked] for k in range(len(labels))]
    return [_class_gradient(network, label, batch, parameters) for label, batch in zip(labels, images, strict=True)]


def match_classes(
    network: nn.Module,
    labels: Sequence[int],
    real: Sequence[Gradients],
    images: Sequence[Tensor],
    augment: Callable[[Tensor, Tensor], Tensor],
    metric: Metric,
    strategy: Strategy = "auto",
) -> tuple[Tensor, list[Tensor]]:
    """The summed distance of all classes, and its gradient with respect to the images.

    Args:
        network: Classifier whose gradients are compared.
        labels: The classes.
        real: For each of them the gradients to match, detached.
        images: For each class float ``(n, C, H, W)``, detached.
        augment: ``(images, labels)`` to images, differentiable; ``labels`` (int64, ``(B,)``) are on the CPU.
        metric: See :func:`gradient_distance`.
        strategy: ``loop`` holds one class's graph at a time; ``vmap`` all of them.

    Returns:
        The loss (scalar, detached) and for each class d loss / d images.
    """
    names, parameters = _counted(network, metric)
    leaves = [batch.detach().requires_grad_() for batch in images]
    if _resolve(strategy, network, images) == "vmap":
        count = len(leaves[0])
        classes = torch.tensor(labels)
        augmented = augment(torch.cat(leaves), classes.repeat_interleave(count)).view(
            len(leaves), count, *leaves[0].shape[1:]
        )
        gradients = torch.func.vmap(_gradient(network, names), in_dims=(None, 0, 0))(
            parameters, augmented, classes.to(augmented.device)
        )
        losses = [gradient_distance(r, [g[k] for g in gradients], metric) for k, r in enumerate(real)]
        loss = torch.stack(losses).sum()
        return loss.detach(), list(torch.autograd.grad(loss, leaves))
    total, image_gradients = torch.zeros((), device=leaves[0].device), []
    for label, expected, leaf in zip(labels, real, leaves, strict=True):
        loss = _loss(network(augment(leaf, torch.full((len(leaf),), label))), label)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        distance = gradient_distance(expected, gradient, metric)
        image_gradients.append(torch.autograd.grad(distance, leaf)[0])
        total = total + distance.detach()
    return total, image_gradients


def _counted(network: nn.Module, metric: Metric) -> tuple[list[str], tuple[Tensor, ...]]:
    pairs = [(name, p) for name, p in network.named_parameters() if compared(metric, p)]
    return [name for name, _ in pairs], tuple(p for _, p in pairs)


def _loss(logits: Tensor, label: int) -> Tensor:
    targets = torch.full((len(logits),), label, dtype=torch.int64, device=logits.device)
    return functional.cross_entropy(logits, targets)


def _gradient(network: nn.Module, names: list[str]) -> Callable[..., tuple[Tensor, ...]]:
    def loss(parameters: tuple[Tensor, ...], batch: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (batch,))
        return functional.cross_entropy(logits, label.expand(len(batch)))

    gradient: Callable[..., tuple[Tensor, ...]] = torch.func.grad(loss)
    return gradient


def _class_gradient(network: nn.Module, label: int, images: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """The gradient of the mean loss; on the CPU summed over parts of the images, unless BatchNorm binds them."""
    size = len(images) if images.is_cuda or trains_batch_norm(network) else CPU_IMAGES
    total: Gradients = []
    for part in torch.split(images, size):
        loss = _loss(network(part), label) * (len(part) / len(images))
        own = torch.autograd.grad(loss, parameters)
        total = own if not total else [a + b for a, b in zip(total, own, strict=True)]
    return total


def trains_batch_norm(network: nn.Module) -> bool:
    """Whether a forward pass updates running statistics in place."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in network.modules())


def _resolve(strategy: Strategy, network: nn.Module, images: Sequence[Tensor]) -> str:
    if trains_batch_norm(network):
        return "loop"  # running statistics are updated in place, which vmap cannot do
    if len({len(batch) for batch in images}) > 1:
        return "loop"
    if strategy != "auto":
        return strategy
    return "vmap" if images[0].is_cuda else "loop"
