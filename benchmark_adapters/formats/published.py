"""Published sets as their authors ship them: of DC, DSA, DM and CAFE, of MTT, and as DD-Ranking takes them.

Source:
    What the released code of VICO-UoE/DatasetCondensation, GeorgeCazenavette/mtt-distillation and ddranking 0.2.0
    writes and reads: shapes, names, and the constants that pixels are normalised with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmark_adapters.formats.base import checked, load_tensors, rescaled
from dd_plugins.api import DataError, DataSpec, RealData
from dd_plugins.api.format import Format, Imported

Constants = tuple[tuple[float, ...], tuple[float, ...]]
CIFAR10: Constants = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100: Constants = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SVHN: Constants = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
MNIST: Constants = ((0.1307,), (0.3081,))
FASHION: Constants = ((0.2861,), (0.3530,))
OF_DC = {
    "mnist": MNIST, "fashion-mnist": FASHION, "svhn": SVHN, "cifar10": CIFAR10, "cifar100": CIFAR100,
    "tiny-imagenet": IMAGENET,
}  # fmt: skip
OF_MTT = {"cifar10": CIFAR10, "cifar100": CIFAR10, "tiny-imagenet": IMAGENET}  # CIFAR-100 with CIFAR-10's constants
OF_DDRANKING = OF_MTT  # the same ones


class DC(Format):
    """``res_METHOD_DATASET_NETWORK_Kipc.pt``: the last of its experiments."""

    api_version = 2
    import_only = True

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the file."""
        images, targets = last_experiment(path)
        return into_model_space(images, targets, OF_DC, real.spec, real.class_names, path, whitens=False)


class MTT(Format):
    """A folder with ``images_best.pt`` and ``labels_best.pt``, in whitened space where the data set is whitened."""

    api_version = 2
    import_only = True

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the folder."""
        images, targets = (load_tensors(path / f"{name}_best.pt") for name in ("images", "labels"))
        return into_model_space(images, targets, OF_MTT, real.spec, real.class_names, path)


class DDRanking(Format):
    """A folder with ``images.pt`` and ``labels.pt``, normalised with DD-Ranking's constants."""

    api_version = 2
    import_only = True

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the folder."""
        images, targets = (load_tensors(path / f"{name}.pt") for name in ("images", "labels"))
        return into_model_space(images, targets, OF_DDRANKING, real.spec, real.class_names, path)


def last_experiment(path: Path) -> tuple[Any, Any]:
    """Images and labels of the last experiment in a file of DC's.

    Raises:
        DataError: If it is no such file.
    """
    content = load_tensors(path)
    try:
        images, targets = content["data"][-1]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(f"{path}: expected a mapping whose data is a list of [images, labels]") from None
    return images, targets


def into_model_space(
    images: Tensor,
    targets: Tensor,
    known: dict[str, Constants],
    spec: DataSpec,
    class_names: Sequence[str],
    where: Path,
    whitens: bool = True,
) -> Imported:
    """Images that were normalised with published constants, or whitened, in the model space of a data set.

    Args:
        images: As they were published.
        targets: Their labels.
        known: For each data set mean and deviation.
        spec: The data set.
        class_names: One name a class, for messages.
        where: For messages.
        whitens: Whether sets of this kind come whitened too.

    Whitening is fitted on the training split here, published ones on all training images: nearly the same space.

    Raises:
        DataError: If nobody knows what they were normalised with.
    """
    found = checked(images, targets, spec, class_names, where)
    if spec.whitened and not whitens:
        raise DataError(f"{where}: sets of this kind are not whitened; import it without data.zca")
    if spec.whitened:  # the model space of a whitened data set is the whitened space
        return found
    name = spec.name
    if name not in known:
        raise DataError(
            f"{where}: what images of {name} were normalised with is not known; known are {', '.join(known)}"
        )
    return Imported(rescaled(found.images, *known[name], to=spec), found.targets)
