"""Pickles with code in them: nothing of it runs, and the tensors arrive."""

import io
import json
import pickle

import numpy
import pytest
import torch
from persistence import modules, persistent
from safetensors.torch import load_file

from dd_plugins.api import DataError
from dd_plugins.priors.convert import convert

__all__ = ["modules"]


def generator(modules, mark, tensors):
    layer = persistent(modules, mark, "SynthesisLayer", {"weight": tensors["synthesis.L0.weight"]}, in_channels=4)
    synthesis = persistent(modules, mark, "SynthesisNetwork", {}, {"L0": layer}, layer_names=["L0"])
    mapping = persistent(modules, mark, "MappingNetwork", {"bias": tensors["mapping.bias"]}, w_dim=8)
    return persistent(modules, mark, "Generator", {}, {"synthesis": synthesis, "mapping": mapping}, z_dim=64)


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


def test_nothing_of_the_current_folder_is_imported(modules, tmp_path, monkeypatch):
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": generator(modules, tmp_path / "ran", tensors())}))
    here = tmp_path / "download"
    here.mkdir()
    for name in ("numpy", "safetensors", "collections"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('ran')\n")
    monkeypatch.chdir(here)
    assert convert(file, tmp_path / "out")["elements"] == 4 * 4 * 9 + 8
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("order", ["<f8", ">f8", "<i4", ">i2", "|u1", "?"])
def test_arrays_keep_their_values_whatever_their_byte_order(order, modules, tmp_path):
    values = numpy.array([1, 0, 1, 1], dtype=order)
    made = persistent(modules, tmp_path / "ran", "Generator", {"weight": torch.ones(1)}, {}, values=values)
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": made}))
    assert convert(file, tmp_path / "out")["classes"]["values"]["values"] == values.tolist()


class Forged:
    """An array whose dtype says that its items are longer than they are."""

    def __reduce__(self):
        return (
            numpy.core.multiarray._reconstruct,
            (numpy.ndarray, (0,), b"b"),
            (1, (40,), self.dtype, False, b"8 bytes."),
        )

    @property
    def dtype(self):
        return ForgedType()


class ForgedType:
    def __reduce__(self):
        return numpy.dtype, (">f8", False, True), (3, ">", (numpy.dtype("f8"), (40,)), None, None, -1, -1, 0)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_a_dtype_cannot_reach_beyond_its_bytes(modules, tmp_path):
    made = persistent(modules, tmp_path / "ran", "Generator", {"weight": torch.ones(1)}, {}, values=Forged())
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": made}))
    with pytest.raises(DataError, match="cannot reshape array of size 1"):
        convert(file, tmp_path / "out")


def test_a_tensor_that_is_larger_than_its_file_is_refused(modules, tmp_path):
    huge = torch.ones(1).expand(100_000, 1000)
    made = persistent(modules, tmp_path / "ran", "Generator", {"weight": huge}, {})
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": made}))
    with pytest.raises(DataError, match="larger than the file that holds them"):
        convert(file, tmp_path / "out")


def test_plain_layers_of_torch_have_their_names(modules, tmp_path):
    inner = torch.nn.Embedding(3, 2)
    made = persistent(modules, tmp_path / "ran", "Generator", {"weight": torch.ones(1)}, {"embed": inner})
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": made}))
    about = convert(file, tmp_path / "out")
    assert about["classes"]["children"]["embed"]["class"] == "Embedding"
    assert torch.equal(load_file(tmp_path / "out/weights.safetensors")["embed.weight"], inner.weight)
