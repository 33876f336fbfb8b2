"""Pickles as StyleGAN's persistence writes them, with code in them that would leave a mark if it ran."""

import sys
import types
from collections import OrderedDict

import pytest
import torch

SOURCE = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\nclass Generator:\n    pass\n"


class EasyDict(dict):
    """As dnnlib's."""


@pytest.fixture
def modules(monkeypatch):
    """The modules that such pickles name; they exist while one is written, and nowhere else."""
    made = {
        name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }

    def reconstruct(meta):
        raise AssertionError("reconstructed")

    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    made["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    made["dnnlib.util"].EasyDict = EasyDict
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


class Persistent:
    """Pickles itself as an object of StyleGAN's persistence does."""

    def __init__(self, meta, modules):
        self.meta, self.reconstruct = meta, modules["torch_utils.persistence"]._reconstruct_persistent_obj

    def __reduce__(self):
        return self.reconstruct, (EasyDict(self.meta),)


class LegacyTensor:
    """Pickles a tensor through its storage's bytes, as pickles outside of torch.save do."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (
            torch.storage.TypedStorage(
                wrap_storage=self.tensor.untyped_storage(), dtype=self.tensor.dtype, _internal=True
            ),
            0, tuple(self.tensor.shape), self.tensor.stride(), False, OrderedDict(),
        )  # fmt: skip


def persistent(modules, mark, class_name, parameters=None, children=None, buffers=None, **values):
    """A module: tensors, children, and values of its own."""
    state = {
        "_parameters": OrderedDict({name: LegacyTensor(value) for name, value in (parameters or {}).items()}),
        "_buffers": OrderedDict(
            {name: None if value is None else LegacyTensor(value) for name, value in (buffers or {}).items()}
        ),
        "_modules": OrderedDict(children or {}),
        "training": False,
        **values,
    }
    meta = {"type": "class", "version": 6, "module_src": SOURCE.format(mark=str(mark)), "class_name": class_name}
    return Persistent({**meta, "state": state}, modules)
