"""SGD on synthetic images as a differentiable function of these images, in constant memory.

Source:
    Deng & Russakovsky, "Remember the Past", NeurIPS 2022, arXiv 2206.02916 (reverse pass through momentum).
    Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory" (TESLA), ICML 2023,
    arXiv 2211.10586 (truncated gradient).
Deviations:
    The exact gradient by default: the adjoint of the weights is carried through every step, whose graph alone is built
    again on the way back. Memory is that of one step and of the weights after each.

With ``v <- momentum v + g(theta)``, ``theta <- theta - lr v`` and the adjoint ``a`` of theta, a step back sums up
``c <- momentum c + a``; the images get ``-lr d<g, c>/d images``, the learning rate ``-<g, c>``, and
``a <- a - lr d<g, c>/d theta``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class FlatNetwork:
    """A network as a function of one vector of weights.

    Attributes:
        sizes: Elements of each parameter, in the order of ``named_parameters``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        named = dict(network.named_parameters())
        self.names = list(named)
        self.shapes = [parameter.shape for parameter in named.values()]
        self.sizes = [parameter.numel() for parameter in named.values()]

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """The logits (float, ``(N, classes)``) of ``images`` under the weights ``theta`` (float, ``(P,)``)."""
        parts = torch.split(theta, self.sizes)
        named = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        logits: Tensor = torch.func.functional_call(self.network, named, (images,))
        return logits

    def weights(self) -> Tensor:
        """The network's own weights as one vector (a copy, detached)."""
        return flat_weights(self.network)


def flat_weights(network: nn.Module) -> Tensor:
    """All parameters of a network as one vector: float, ``(P,)``, a detached copy."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        rows: int64, ``(B,)``: which images.
        targets: int64, ``(B,)``.
        augment: From images to images, differentiable, always with the same result.
    """

    rows: Tensor
    targets: Tensor
    augment: Callable[[Tensor], Tensor]

    def loss(self, network: FlatNetwork, theta: Tensor, images: Tensor) -> Tensor:
        """Cross entropy of ``images``, those of :attr:`rows`, under the weights."""
        return functional.cross_entropy(network(theta, self.augment(images)), self.targets)


@dataclass(frozen=True)
class Trajectory:
    """The weights after every step, the start included: T + 1 vectors."""

    thetas: list[Tensor]
    lr: float
    momentum: float

    @property
    def last(self) -> Tensor:
        """The weights after the last step."""
        return self.thetas[-1]


def train_on(
    network: FlatNetwork, start: Tensor, images: Tensor, batches: Sequence[Batch], lr: float, momentum: float = 0.0
) -> Trajectory:
    """Takes one SGD step on every batch, without a graph.

    Args:
        network: The network.
        start: Float, ``(P,)``: the weights to start from.
        images: Float, ``(N, C, H, W)``.
        batches: One for each step.
        lr: Learning rate.
        momentum: Of the SGD; no dampening, no Nesterov.
    """
    thetas, velocity = [start.detach()], torch.zeros_like(start)
    for batch in batches:
        theta = thetas[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(batch.loss(network, theta, images[batch.rows].detach()), theta)
        velocity = momentum * velocity + gradient
        thetas.append(thetas[-1] - lr * velocity)
    return Trajectory(thetas, lr, momentum)


def pull_back(
    network: FlatNetwork,
    trajectory: Trajectory,
    images: Tensor,
    batches: Sequence[Batch],
    last_grad: Tensor,
    *,
    truncated: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradient of a loss of the last weights with respect to the images and the learning rate.

    Args:
        network: The network.
        trajectory: What :func:`train_on` returned.
        images: As they were trained on.
        batches: Likewise.
        last_grad: Float, ``(P,)``: d loss / d last weights.
        truncated: TESLA's gradient: that one image changes the gradients of later steps is left out. Not exact; it
            saves one Hessian-vector product a step.

    Returns:
        d loss / d images (float, like ``images``) and d loss / d learning rate (float, scalar).
    """
    image_grad, lr_grad = torch.zeros_like(images), last_grad.new_zeros(())
    adjoint, summed = last_grad, torch.zeros_like(last_grad)
    for batch, theta in zip(reversed(batches), reversed(trajectory.thetas[:-1]), strict=True):
        weights = theta.detach().requires_grad_()
        leaf = images[batch.rows].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(batch.loss(network, weights, leaf), weights, create_graph=True)
        summed = trajectory.momentum * summed + adjoint
        lr_grad = lr_grad - gradient.detach() @ summed
        product = -trajectory.lr * (gradient @ summed)
        if truncated:
            (leaf_grad,) = torch.autograd.grad(product, leaf)
        else:
            leaf_grad, weight_grad = torch.autograd.grad(product, (leaf, weights))
            adjoint = adjoint + weight_grad
        image_grad = image_grad.index_add(0, batch.rows, leaf_grad)
    return image_grad, lr_grad
