"""The synthesis network of StyleGAN3 and StyleGAN-XL, for weights that `convert` has read; a stage for each layer.

Source:
    Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021, arXiv 2106.12423 (Fourier features,
    filtered nonlinearities); Sauer et al., "StyleGAN-XL", SIGGRAPH 2022, arXiv 2202.00273 (class embeddings, sizes).
Deviations:
    Written from the papers' equations in plain torch, without custom kernels; float32 throughout. Scalars that cancel
    in demodulation are left out. It is tested against naive forms of its operations, not with published weights.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional

from dd_plugins.api import PluginConfig
from dd_plugins.api.prior import LayeredGenerator, Styles

EPSILON = 1e-8


class DenseConfig(PluginConfig):
    """A fully connected layer whose weights are stored without their gain."""

    weight_gain: float = Field(1.0, description="factor of the stored weights")
    bias_gain: float = Field(1.0, description="factor of the stored biases")
    activation: str = Field("linear", pattern="^(linear|lrelu)$", description="linear, or leaky ReLU times sqrt 2")


class MappingConfig(PluginConfig):
    """From noise and a class to a style."""

    noise: int = Field(64, ge=1, le=4096, description="numbers that are drawn for an image")
    projection: DenseConfig | None = Field(None, description="of the class embedding; None: used as it is")
    layers: dict[str, DenseConfig] = Field({}, max_length=64, description="in order")


class InputConfig(PluginConfig):
    """The Fourier features."""

    size: tuple[int, int] = Field((36, 36), description="width, height of the maps")
    sampling_rate: float = Field(16.0, gt=0, description="samples per unit length")
    bandwidth: float = Field(2.0, gt=0, description="highest frequency that passes unweakened")
    affine: DenseConfig = Field(DenseConfig(), description="from the style to rotation and translation")


class LayerConfig(PluginConfig):
    """One modulated convolution and its filtered nonlinearity."""

    up: int = Field(1, ge=1, le=64, description="factor of the upsampling")
    down: int = Field(1, ge=1, le=64, description="factor of the downsampling after the nonlinearity")
    padding: tuple[int, int, int, int] = Field((0, 0, 0, 0), description="left, right, top, bottom, when upsampled")
    kernel: int = Field(3, ge=1, le=15, description="side of the convolution")
    torgb: bool = Field(False, description="whether it makes colors: no demodulation, no nonlinearity")
    clamp: float | None = Field(256.0, gt=0, description="largest value")
    affine: DenseConfig = Field(DenseConfig(), description="from the style to the scales of the inputs")


class StyleGanConfig(PluginConfig):
    """Sizes and attributes of the network; shapes are those of the weights."""

    image_shape: tuple[int, int, int] = Field((3, 32, 32), description="C, H, W")
    num_classes: int = Field(10, ge=0, description="classes; 0: it knows none")
    mapping: MappingConfig = Field(MappingConfig(), description="from noise to styles")
    input: InputConfig = Field(InputConfig(), description="state 0")
    layers: dict[str, LayerConfig] = Field({}, max_length=64, description="in order, by the names of their weights")
    output_scale: float = Field(0.25, gt=0, description="factor of the last layer's output")
    shapes: dict[str, tuple[int, ...]] = Field({}, description="of all weights, by name")


class StyleGan(LayeredGenerator):
    """State 0 are Fourier features; every layer is a stage; a style goes to state 0 and to each layer.

    There are K layers and K + 1 styles in the papers; here the first style, which makes state 0, and the one of the
    first layer stand side by side in the first of K tensors: float, ``(N, 2, d)``, ``(N, d)``, ...
    """

    api_version = 2
    check_settings = None

    class Config(StyleGanConfig):
        """Sizes and attributes of the network."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape, self.num_classes, self.num_stages = config.image_shape, config.num_classes, len(config.layers)
        self.names = list(config.layers)
        for name, shape in config.shapes.items():  # flat, since layers are only arithmetic on them
            self.register_buffer(name.replace(".", "/"), torch.zeros(shape))

    def weight(self, name: str) -> Tensor:
        """Stored weights by their dotted name."""
        found: Tensor = self.get_buffer(name.replace(".", "/"))
        return found

    def sample_styles(self, labels: Tensor, generator: Generator) -> Styles:
        """Styles of fresh noise from N(0, 1), the same one for every layer."""
        mapping = self.config.mapping
        joined = _rms_normal(torch.randn(len(labels), mapping.noise, generator=generator).to(labels.device))
        if self.num_classes:
            known = self.weight("mapping.embed.weight")[labels]
            if mapping.projection is not None:
                known = self._dense("mapping.embed_proj", mapping.projection, known)
            joined = torch.cat([joined, _rms_normal(known)], dim=1)
        for name, layer in mapping.layers.items():
            joined = self._dense(f"mapping.{name}", layer, joined)
        return (torch.stack([joined, joined], dim=1), *[joined] * (self.num_stages - 1))

    def begin(self, styles: Styles) -> Tensor:
        """Fourier features, rotated and moved as the first style says: float, ``(N, channels, h, w)``."""
        config = self.config.input
        place = self._dense("synthesis.input.affine", config.affine, styles[0][:, 0])
        place = place / place[:, :2].norm(dim=1, keepdim=True)
        turn = torch.complex(place[:, 0], place[:, 1])  # cos + i sin
        waves = torch.complex(*self.weight("synthesis.input.freqs").unbind(1))
        user = self.weight("synthesis.input.transform")  # a rotation and a translation of the user's
        user_turn, user_shift = torch.complex(user[0, 0], user[1, 0]), torch.complex(user[0, 2], user[1, 2])
        shift = turn * (user_shift - torch.complex(place[:, 2], place[:, 3]))
        phases = self.weight("synthesis.input.phases") + _dot(waves[None], shift[:, None])
        turned = waves[None] * (turn * user_turn).conj()[:, None]  # f . (R p) = (R^T f) . p
        room = config.sampling_rate / 2 - config.bandwidth
        amplitudes = (1 - (turned.abs() - config.bandwidth) / room).clamp(0, 1)
        across, along = (
            ((torch.arange(side, device=place.device) + 0.5) / side - 0.5) * side / config.sampling_rate
            for side in config.size
        )
        points = torch.complex(*torch.broadcast_tensors(across[None, :], along[:, None]))
        angle = 2 * pi * (_dot(turned[:, :, None, None], points[None, None]) + phases[:, :, None, None])
        maps = angle.sin() * amplitudes[:, :, None, None]
        mix = self.weight("synthesis.input.weight")
        return torch.einsum("oc,nchw->nohw", mix / sqrt(mix.shape[1]), maps)

    def step(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """One layer: modulated convolution, then a leaky ReLU between an upsampling and a downsampling filter."""
        name, layer = self.names[stage], self.config.layers[self.names[stage]]
        style = styles[stage][:, 1] if stage == 0 else styles[stage]
        where = f"synthesis.{name}"
        kernels = self.weight(f"{where}.weight")
        scales = self._dense(f"{where}.affine", layer.affine, style)
        scaled = kernels[None] * scales[:, None, :, None, None]
        if layer.torgb:
            scaled = scaled / sqrt(kernels[0].numel())
        else:
            scaled = scaled * (scaled.square().sum((2, 3, 4), keepdim=True) + EPSILON).rsqrt()
        scaled = scaled * self.weight(f"{where}.magnitude_ema").rsqrt()
        count, outputs = len(state), kernels.shape[0]
        maps = functional.conv2d(
            state.reshape(1, -1, *state.shape[2:]),
            scaled.reshape(-1, *kernels.shape[1:]),
            padding=layer.kernel - 1,
            groups=count,
        ).view(count, outputs, *[side + layer.kernel - 1 for side in state.shape[2:]])
        maps = maps + self.weight(f"{where}.bias").view(1, -1, 1, 1)
        shapes = self.config.shapes
        up = self.weight(f"{where}.up_filter") if f"{where}.up_filter" in shapes else None
        down = self.weight(f"{where}.down_filter") if f"{where}.down_filter" in shapes else None
        maps = _upsample(maps, up, layer.up, layer.padding)
        if not layer.torgb:
            maps = functional.leaky_relu(maps, 0.2) * sqrt(2)
        if layer.clamp is not None:
            maps = maps.clamp(-layer.clamp, layer.clamp)
        return _filter(maps, down)[:, :, :: layer.down, :: layer.down]

    def to_pixels(self, state: Tensor) -> Tensor:
        """From about -1 to 1 to pixel values."""
        return (state * self.config.output_scale + 1) / 2

    def _dense(self, name: str, config: DenseConfig, values: Tensor) -> Tensor:
        found = values @ (self.weight(f"{name}.weight") * config.weight_gain).T
        if f"{name}.bias" in self.config.shapes:
            found = found + self.weight(f"{name}.bias") * config.bias_gain
        return functional.leaky_relu(found, 0.2) * sqrt(2) if config.activation == "lrelu" else found


def _upsample(maps: Tensor, taps: Tensor | None, factor: int, padding: tuple[int, int, int, int]) -> Tensor:
    """Zeros between the samples, zeros around, a filter over both; brightness stays."""
    if factor > 1:
        count, channels, height, width = maps.shape
        zeros = maps.new_zeros(count, channels, height, factor, width, factor)
        zeros[:, :, :, 0, :, 0] = maps
        maps = zeros.reshape(count, channels, height * factor, width * factor)
    return _filter(functional.pad(maps, padding), taps) * factor**2


def _filter(maps: Tensor, taps: Tensor | None) -> Tensor:
    """Convolution of every map with one filter: a vector is used along both axes; nothing is padded."""
    if taps is None:
        return maps
    channels = maps.shape[1]
    flipped = taps.flip(list(range(taps.ndim))).to(maps.dtype)
    if flipped.ndim == 2:
        return functional.conv2d(maps, flipped.expand(channels, 1, -1, -1), groups=channels)
    maps = functional.conv2d(maps, flipped.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return functional.conv2d(maps, flipped.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Scalar product of vectors of the plane, written as complex numbers."""
    return first.real * second.real + first.imag * second.imag


def _rms_normal(values: Tensor) -> Tensor:
    return values * (values.square().mean(1, keepdim=True) + EPSILON).rsqrt()
