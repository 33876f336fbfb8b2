"""Pickles with code in them: nothing of it runs, and the tensors arrive."""

import io
import json
import pickle
import sys
import types
from collections import OrderedDict

import numpy
import pytest
import torch
from safetensors.torch import load_file

from dd_plugins.api import DataError
from dd_plugins.priors.convert import convert

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


def generator(modules, mark, tensors):
    def module(class_name, parameters=None, children=None, **values):
        state = {
            "_parameters": OrderedDict(parameters or {}),
            "_buffers": OrderedDict(),
            "_modules": OrderedDict(children or {}),
            "training": False,
            **values,
        }
        return Persistent(
            {"type": "class", "version": 6, "module_src": SOURCE.format(mark=str(mark)), "class_name": class_name,
             "state": state},
            modules,
        )  # fmt: skip

    layer = module("SynthesisLayer", {"weight": LegacyTensor(tensors["synthesis.L0.weight"])}, in_channels=4)
    synthesis = module("SynthesisNetwork", {}, {"L0": layer}, layer_names=["L0"])
    mapping = module("MappingNetwork", {"bias": LegacyTensor(tensors["mapping.bias"])}, w_dim=8)
    return module("Generator", {}, {"synthesis": synthesis, "mapping": mapping}, z_dim=64)


def tensors():
    drawn = torch.Generator().manual_seed(0)
    return {
        "synthesis.L0.weight": torch.randn(4, 4, 3, 3, generator=drawn),
        "mapping.bias": torch.randn(8, generator=drawn),
    }


def test_nothing_runs_and_the_tensors_arrive(modules, tmp_path):
    mark, expected = tmp_path / "ran", tensors()
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G": None, "G_ema": generator(modules, mark, expected)}))
    about = convert(file, tmp_path / "out")
    assert not mark.exists()
    found = load_file(tmp_path / "out" / "weights.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    assert about["classes"]["class"] == "Generator"
    assert about["classes"]["values"]["z_dim"] == 64
    assert about["classes"]["children"]["synthesis"]["values"]["layer_names"] == ["L0"]
    assert about["elements"] == 4 * 4 * 9 + 8
    assert json.loads((tmp_path / "out" / "weights.json").read_text())["sha256"] == about["sha256"]


class Payload:
    """Runs a command when it is unpickled the usual way."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def write(path):
    return path / "ran"


@pytest.mark.parametrize(
    "payload",
    [
        lambda mark: Payload(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Payload(exec, f"open({str(mark)!r}, 'w')"),
        lambda mark: Payload(__import__("os").system, f"touch {mark}"),
        lambda mark: Payload(__import__("subprocess").call, ["touch", str(mark)]),
        lambda mark: Payload(getattr, str(mark), "upper"),
        lambda mark: Payload(numpy.fromfile, str(mark)),
        lambda mark: Payload(torch.load, str(mark)),
        lambda mark: Payload(pickle.loads, pickle.dumps(Payload(eval, f"open({str(mark)!r}, 'w')"))),
    ],
)
def test_payloads_are_refused_by_name(payload, tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": payload(mark)}))
    with pytest.raises(DataError, match="not on the list of what is harmless") as caught:
        convert(file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_pickles_within_storages_are_refused_too(modules, tmp_path):
    mark = tmp_path / "ran"
    inner = io.BytesIO()
    torch.save({"x": Payload(eval, f"open({str(mark)!r}, 'w')")}, inner)
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": Payload(torch.storage._load_from_bytes, inner.getvalue())}))
    with pytest.raises(DataError):
        convert(file, tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no pickle of a generator"),
        (b"no pickle at all", "no pickle of a generator"),
        (pickle.dumps({"G": 1}), "no G_ema in it; there is G"),
        (pickle.dumps([1, 2]), "no G_ema in it; there is list"),
        (pickle.dumps({"G_ema": {}}), "holds no tensors"),
        (pickle.dumps({"G_ema": numpy.array(["x", "y"])}), "which is not one of numbers"),
    ],
)
def test_what_is_no_generator_is_told_in_one_line(content, told, tmp_path):
    file = tmp_path / "network.pkl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        convert(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_truncated_pickle_is_told(modules, tmp_path):
    whole = pickle.dumps({"G_ema": generator(modules, tmp_path / "ran", tensors())})
    file = tmp_path / "network.pkl"
    for length in (10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="no pickle of a generator"):
            convert(file, tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        convert(tmp_path / "nothing.pkl", tmp_path / "out")
