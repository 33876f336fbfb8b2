"""The decoder of a diffusers ``AutoencoderKL`` as a prior, from a local folder; a stage for each of its blocks.

Source:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv 2112.10752. As a
    prior of dataset distillation: Moser et al., "Latent Dataset Distillation with Diffusion Models", arXiv 2403.03881.
Deviations:
    There is no diffusion here: latents are those of real images, or noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, Tensor

from dd_plugins.api import DataError, MissingExtraError
from dd_plugins.api.prior import LayeredGenerator, Styles
from dd_plugins.errors import is_out_of_memory

NAME = "AutoencoderKL"


class AutoencoderKLDecoder(LayeredGenerator):
    """A latent through the first convolution, the middle block and every block of the decoder. It knows no classes.

    The latent is the first of K "styles" (float, ``(N, c, h, w)``); the others are empty.

    Args:
        folder: As diffusers saves it, with safetensors.
        image_shape: Of the images, ``(3, H, W)``; sides that the encoder can halve.

    Raises:
        DataError: If the folder holds no such model, or the images do not fit it.
        MissingExtraError: If diffusers is not installed.
    """

    api_version = 2
    check_settings = None
    needs = "diffusers"
    marker = "config.json"
    weights_file = "diffusion_pytorch_model.safetensors"

    def __init__(self, folder: Path, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise MissingExtraError("an AutoencoderKL", "diffusers") from None
        try:
            model: Any
            model, notes = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # diffusers raises anything on sizes of a wrong type
            if is_out_of_memory(error):
                raise
            raise DataError(f"{folder}: no {NAME} there ({' '.join(str(error).split())[:200]})") from None
        if missing := sorted(notes.get("missing_keys", [])):  # diffusers would leave them as they were drawn
            raise DataError(f"{folder}: the weights lack {', '.join(missing[:3])} and {max(0, len(missing) - 3)} more")
        self.model = model.float().eval().requires_grad_(False)
        self.image_shape, self.num_classes = image_shape, 0
        halved = 2 ** (len(self.model.config.block_out_channels) - 1)
        channels, height, width = image_shape
        if channels != self.model.config.out_channels or height % halved or width % halved:
            raise DataError(
                f"{folder}: expected images of {self.model.config.out_channels} channels and sides that {halved} "
                f"divides, but got {image_shape}"
            )
        self.latent = (self.model.config.latent_channels, height // halved, width // halved)
        self.num_stages = 2 + len(self.model.decoder.up_blocks)

    @classmethod
    def from_folder(cls, folder: Path, image_shape: tuple[int, int, int]) -> Self:
        """Reads a folder of diffusers."""
        if list(folder.glob("*.index.json")):
            raise DataError(f"{folder}: weights in several files are not read, for one sha256 must stand for all")
        return cls(folder, image_shape)

    def sample_styles(self, labels: Tensor, generator: Generator) -> Styles:
        """Noise of the latents' scale; what it decodes to shows nothing."""
        noise = torch.randn(len(labels), *self.latent, generator=generator).to(labels.device)
        return self._styles(noise / float(self.model.config.scaling_factor))

    def encode(self, images: Tensor, labels: Tensor) -> Styles:
        """The latents of real images."""
        del labels
        with torch.no_grad():
            return self._styles(self.model.encode(2 * images - 1).latent_dist.mode())

    def begin(self, styles: Styles) -> Tensor:
        """The latent."""
        return styles[0]

    def step(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """One block."""
        decoder = self.model.decoder
        if stage == 0:
            before = self.model.post_quant_conv
            made: Tensor = decoder.conv_in(state if before is None else before(state))
        elif stage == 1:
            made = decoder.mid_block(state)
        else:
            made = decoder.up_blocks[stage - 2](state)
        return made

    def to_pixels(self, state: Tensor) -> Tensor:
        """Norm, activation and last convolution; from about -1 to 1 to pixel values."""
        decoder = self.model.decoder
        colors = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(state)))
        pixels: Tensor = (colors + 1) / 2
        return pixels

    def _styles(self, latent: Tensor) -> Styles:
        return (latent, *[latent.new_zeros(len(latent), 0)] * (self.num_stages - 1))
