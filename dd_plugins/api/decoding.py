"""Decoding and pulling gradients back, in chunks: a decoder's graph never spans more images than one chunk has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from dd_plugins.api.data import DataSpec
from dd_plugins.errors import PluginContractError

DECODE_CHUNK = 1024  # images decoded at once where no graph is needed and no chunk size is set


class Decoder(nn.Module, ABC):
    """A decoder from the number of an image to the image.

    Attributes:
        data: The data set's spec.
        labels: int64, ``(N,)``.
        chunk_size: Images decoded with a graph at once; None for all.
    """

    keeps_graph: ClassVar[bool] = True  # False: the graph is never held while images are matched

    data: DataSpec
    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.chunk_size: int | None = None
        self._graph: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def _decode(self, index: Tensor) -> Tensor:
        """Decodes images row by row: ``index`` (int64, ``(B,)``) to float ``(B, C, H, W)``, model space."""

    def regularize(self, images: Tensor, index: Tensor) -> Tensor | None:
        """An additive loss of the container's own on a chunk of decoded images; none by default."""
        del images, index
        return None

    @final
    def decode(self, index: Tensor | None = None, *, for_backward: bool = False) -> Tensor:
        """Decodes images without a graph, in chunks of ``chunk_size``.

        Args:
            index: int64, ``(B,)``; all images by default.
            for_backward: Whether :meth:`backward` follows for the same images: if all fit into one chunk, the graph is
                kept for it, and nothing is decoded twice.

        Returns:
            Float, ``(B, C, H, W)``, model space, detached.
        """
        index = self._all() if index is None else index
        whole = max(len(index), 1) if for_backward else DECODE_CHUNK
        chunks = torch.split(index, self.chunk_size or whole)
        self._graph = None
        if len(chunks) == 1 and for_backward and self.keeps_graph:
            images = self._checked_decode(index)
            self._graph = (index, images)
            return images.detach()
        with torch.no_grad():
            return torch.cat([self._checked_decode(chunk) for chunk in chunks])

    @final
    def backward(self, index: Tensor, image_grad: Tensor) -> None:
        """Pulls d loss / d images back into the stored tensors, chunk by chunk; adds to their ``grad``.

        Exact, since images are decoded row by row: the decoder's graph never spans more than one chunk.

        Args:
            index: int64, ``(B,)``, as it was decoded.
            image_grad: Float, ``(B, C, H, W)``.
        """
        graph, self._graph = self._graph, None
        if graph is not None and torch.equal(graph[0], index):
            self._pull(graph[1], index, image_grad)
            return
        size = self.chunk_size or max(len(index), 1)
        for chunk, grad in zip(torch.split(index, size), torch.split(image_grad, size), strict=True):
            self._pull(self._checked_decode(chunk), chunk, grad)

    def _all(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device)

    def _pull(self, images: Tensor, index: Tensor, image_grad: Tensor) -> None:
        penalty = self.regularize(images, index)
        if penalty is None:
            torch.autograd.backward([images], [image_grad])
        else:
            torch.autograd.backward([images, penalty], [image_grad, torch.ones_like(penalty)])

    def _checked_decode(self, index: Tensor) -> Tensor:
        images = self._decode(index)
        expected = (len(index), *self.data.image_shape)
        if tuple(images.shape) != expected or not images.is_floating_point():
            raise PluginContractError(
                f"{type(self).__name__}._decode: expected float images of shape {expected}, but got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        return images
