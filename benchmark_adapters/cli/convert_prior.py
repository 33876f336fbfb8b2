"""dd-bench convert-prior: published generators come as pickles that run code; this reads them without running any."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench convert-prior imagenet128.pkl --to priors/imagenet128`

`dd-bench run --method h-pd --dataset imagenet:imagenette --set parameterization.prior=priors/imagenet128
--set parameterization.classes=[0,217,482,491,497,566,569,571,574,701]`

Only a pickle of StyleGAN3 or StyleGAN-XL is understood. Nothing in it is executed, and nothing is downloaded.
"""


def convert_prior(
    source: Annotated[Path, typer.Argument(metavar="FILE.pkl", help="The pickle.")],
    to: Annotated[Path, typer.Option(help="Folder for the prior, new or empty.")],
    key: Annotated[str, typer.Option(help="Which of the networks in it.")] = "G_ema",
    licence: Annotated[str, typer.Option(help="Licence of the weights, for records.")] = "",
) -> None:
    """Convert StyleGAN weights to safetensors and JSON, in a process of its own, without executing the pickle."""
    from dd_plugins.priors.from_stylegan import convert_stylegan

    found = convert_stylegan(source, to, key, licence)
    generator, prior = found.generator, found.prior()
    say(
        f"{to}: {prior.elements:,} elements, {generator.num_stages} levels, {generator.num_classes} classes, images of "
        f"{tuple(generator.image_shape)}, sha256 {prior.sha256}"
    )
