"""The layout of a Hugging Face data set: parquet with pictures and labels, and a card; exact tensors in a column."""

from __future__ import annotations

import io
import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmark_adapters.escape import markdown
from benchmark_adapters.formats.base import checked
from benchmark_adapters.formats.imagefolder import pictures_of
from benchmark_adapters.formats.pt import ABOUT, same_spec, test_images, write_about
from dd_plugins.api import DataError, RealData, staged
from dd_plugins.api.faults import shortened
from dd_plugins.api.format import Exported, Format, Imported
from dd_plugins.api.memory import require_memory
from dd_plugins.api.reading import check_regular
from dd_plugins.engine.score import Estimate

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

FILE = "data/train-00000-of-00001.parquet"
COPIES = 4  # of the numbers in memory while they are read and checked
CARD = """---
license: other
task_categories:
- image-classification
size_categories:
- {size}
tags:
- dataset-distillation
- synthetic
---

# A distilled {name}

{count} synthetic images of {classes} classes, made from {name} by {method} within a budget of {ipc} image{s} per class.

- `image`: a picture of 8 bits, clipped to what can be shown
- `label`: the class
- `pixels`: the exact numbers, float32, {shape} (C x H x W), {space}: train on these

Test images need the same transform: {transform}.

```python
import numpy as np
from datasets import load_dataset

train = load_dataset("PATH or ORG/NAME", split="train")
images = np.array(train["pixels"][:], dtype="float32").reshape(-1, {sizes})
labels = np.array(train["label"][:])
```

{storage}{scores}
The licence is that of the data the set was made from. Written by dd-plugins; `about.json` says from which run.
"""


class ParquetFormat(Format):
    """``data/train-00000-of-00001.parquet`` as `datasets.load_dataset` reads it, and a ``README.md``."""

    api_version = 2

    holds_pictures = True

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes the folder ``root``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        pictures = []
        for picture in pictures_of(exported):
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            pictures.append({"bytes": buffer.getvalue(), "path": None})
        flat = exported.images.flatten(1).cpu().numpy().astype(np.float32)
        table = pa.table(
            {
                "image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "label": pa.array(exported.targets.tolist(), pa.int64()),
                "pixels": pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1]),
            }
        )
        features = {
            "image": {"_type": "Image"},
            "label": {"_type": "ClassLabel", "names": list(exported.class_names)},
            "pixels": {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "float32"}, "length": flat.shape[1]},
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        with staged(root) as folder:
            (folder / FILE).parent.mkdir()
            pq.write_table(table, folder / FILE)
            (folder / "README.md").write_text(_card(exported), encoding="utf-8")
            write_about(exported, folder, test_images=test_images(exported))
        return [root / FILE, root / "README.md", root / ABOUT]

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the exact tensors of the folder, and none of its pictures."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        same_spec(path, real)
        file = path / FILE
        check_regular(file, DataError)
        try:
            _check_size(pq.read_metadata(file), real, file)
            table = pq.read_table(file, columns=["pixels", "label"])
            flat = table["pixels"].combine_chunks().flatten().to_numpy()
            labels = table["label"].to_numpy().astype(np.int64)
        except (pa.ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise DataError(f"{file}: damaged, or without a column pixels of exact numbers ({error})") from None
        try:
            images = torch.from_numpy(np.array(flat)).view(len(labels), *real.spec.image_shape)
        except RuntimeError:
            raise DataError(
                f"{file}: {len(flat)} numbers are not {len(labels)} images {real.spec.image_shape}"
            ) from None
        return checked(images, torch.from_numpy(np.array(labels)), real.spec, real.class_names, file)


def _check_size(about: FileMetaData, real: RealData, file: Path) -> None:
    """Refuses what does not fit into memory before it is decoded: equal values take next to nothing in a file.

    Args:
        about: The metadata of the file.
        real: The data set.
        file: Its name, for messages.

    Raises:
        DataError: If it does not fit, or a row does not have as many numbers as an image.
    """
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    chunks = [group.column(column) for group in groups for column in range(group.num_columns)]
    held = sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.partition(".")[0] == "pixels")
    if held != about.num_rows * prod(real.spec.image_shape):
        raise DataError(f"{file}: {held:,} numbers are not {about.num_rows:,} images {real.spec.image_shape}")
    require_memory({f"{about.num_rows:,} images": COPIES * 4 * held}, error=DataError)


def _card(exported: Exported) -> str:
    count = len(exported.targets)
    size = next(name for most, name in ((1000, "n<1K"), (10_000, "1K<n<10K"), (10**9, "10K<n<100K")) if count < most)
    data = exported.data
    return CARD.format(
        size=size,
        name=markdown(shortened(data.name)),
        count=f"{count:,}",
        classes=data.num_classes,
        method=markdown(shortened(str(exported.notes.get("name", "an unknown method")))),
        ipc=exported.ipc,
        s="" if exported.ipc == 1 else "s",
        shape=" x ".join(map(str, data.image_shape)),
        space="ZCA-whitened" if data.whitened else "normalised per channel",
        transform=test_images(exported),
        sizes=", ".join(map(str, data.image_shape)),
        storage=_storage(exported),
        scores=_scores(exported),
    )


def _storage(exported: Exported) -> str:
    """What the set took where it was condensed; empty if nobody noted it."""
    storage = exported.notes.get("storage")
    if not storage:
        return ""
    bits = 8 * storage["bytes"] / exported.data.num_classes
    return (
        f"The set was stored as {storage['elements']:,} numbers in {storage['bytes']:,} bytes ({bits:,.0f} bits per "
        f"class); decoded as here it takes more, unless it was stored as pixels.\n\n"
    )


def _scores(exported: Exported) -> str:
    """A table of the scores that the set has."""
    scores = exported.notes.get("scores")
    if not scores:
        return ""
    lines = ["| accuracy % (95 % t-interval) | protocol | network |", "| --- | --- | --- |"]
    for score in scores:
        accuracy = Estimate.of(score["trials"]).percent()
        lines.append(f"| {accuracy} | {markdown(score['protocol'])} | {markdown(score['network'])} |")
    return "Networks trained on it reach, on real test images:\n\n" + "\n".join(lines) + "\n\n"
