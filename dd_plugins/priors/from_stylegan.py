"""From what a StyleGAN pickle held to a prior of ours: attributes of its layers become a checked configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dd_plugins.api import DataError, DDPluginsError, parse_config, read_tensors, temporary_folder
from dd_plugins.errors import is_out_of_memory
from dd_plugins.priors.base import check_contract
from dd_plugins.priors.convert import WEIGHTS, convert
from dd_plugins.priors.store import ABOUT, StoredPrior, load_prior, save_prior
from dd_plugins.priors.stylegan import StyleGan, StyleGanConfig

KIND = "stylegan-xl"
CLASSES = {  # what a generator is made of; anything else means that it is another network than ours
    *("Generator", "SuperresGenerator", "MappingNetwork", "SynthesisNetwork", "SynthesisInput", "SynthesisLayer"),
    *("FullyConnectedLayer", "Embedding"),
}
UNUSED = ("mapping.w_avg",)  # of truncation, which is not used


def convert_stylegan(source: Path, to: Path, key: str = "G_ema", licence: str = "") -> StoredPrior:
    """Converts a pickle, without running anything of it, to a prior that `load_prior` reads.

    Args:
        source: The pickle.
        to: The prior's folder, new or empty.
        key: Which of its networks.
        licence: Of the weights, for records.

    Raises:
        DataError: If the file is no such pickle, asks for anything that is not harmless, or holds another network; or
            if the folder is not empty.
    """
    if not source.is_file():
        raise DataError(f"{source} is {'a folder, not a pickle' if source.is_dir() else 'not there'}")
    if (to / ABOUT).exists():
        raise DataError(f"{to}: a prior is there already; choose another folder")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"{to} is {'not empty' if to.is_dir() else 'a file'}; choose another folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(to) as folder:
        about = convert(source, folder, key)
        tensors, _ = read_tensors(folder / WEIGHTS)
    tensors = {name: value.float() for name, value in tensors.items() if name not in UNUSED}
    try:
        config = config_of(about["classes"], tensors)
        generator = StyleGan(config)
        generator.load_state_dict({name.replace(".", "/"): value for name, value in tensors.items()})
        generator.eval()
        check_contract(generator)
    except DataError:
        raise
    except (DDPluginsError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:300]
        raise DataError(
            f"{source}: its network is not one that can be rebuilt ({type(error).__name__}: {why})"
        ) from None
    notes = {
        "source": {"file": source.name, "sha256": about["source_sha256"], "network": key},
        "licence": licence or "that of the source",
    }
    save_prior(to, generator, KIND, config, notes)
    return load_prior(to)


def config_of(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StyleGanConfig:
    """The configuration of a converted generator.

    Args:
        tree: Class, values and children of every module, as `convert` wrote them.
        tensors: All weights by dotted names.

    Raises:
        DataError: If it is made of other modules.
        ConfigError: If a value is missing or out of bounds.
    """
    _check_classes(tree, "")
    mapping, synthesis = tree["children"]["mapping"], tree["children"]["synthesis"]
    layers = {name: child for name, child in synthesis["children"].items() if name != "input"}
    entry = synthesis["children"]["input"]
    embedding = tensors.get("mapping.embed.weight")
    dense = {name: child for name, child in mapping["children"].items() if name.startswith("fc")}
    content = {
        "image_shape": (synthesis["values"].get("img_channels", 3), *[synthesis["values"]["img_resolution"]] * 2),
        "num_classes": 0 if embedding is None else len(embedding),
        "mapping": {
            "noise": mapping["values"]["z_dim"],
            "projection": _dense(mapping["children"]["embed_proj"]) if "embed_proj" in mapping["children"] else None,
            "layers": {name: _dense(child) for name, child in dense.items()},
        },
        "input": {
            "size": entry["values"]["size"],
            "sampling_rate": entry["values"]["sampling_rate"],
            "bandwidth": entry["values"]["bandwidth"],
            "affine": _dense(entry["children"]["affine"]),
        },
        "layers": {name: _layer(child) for name, child in layers.items()},
        "output_scale": synthesis["values"].get("output_scale", 0.25),
        "shapes": {name: tuple(value.shape) for name, value in tensors.items()},
    }
    return parse_config(StyleGanConfig, content, "prior")


def _check_classes(tree: Mapping[str, Any], where: str) -> None:
    if tree["class"] not in CLASSES:
        raise DataError(
            f"{where or 'the network'} is a {tree['class'] or 'nameless object'}, which is no part of StyleGAN"
        )
    for name, child in tree["children"].items():
        _check_classes(child, f"{where}.{name}" if where else name)


def _dense(node: Mapping[str, Any]) -> dict[str, Any]:
    values = node["values"]
    return {key: values[key] for key in ("weight_gain", "bias_gain", "activation") if key in values}


def _layer(node: Mapping[str, Any]) -> dict[str, Any]:
    values = node["values"]
    return {
        "up": values["up_factor"],
        "down": values["down_factor"],
        "padding": values["padding"],
        "kernel": values["conv_kernel"],
        "torgb": values["is_torgb"],
        "clamp": values.get("conv_clamp"),
        "affine": _dense(node["children"]["affine"]),
    }
