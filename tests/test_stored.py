"""What a stored set says about the data it was made from."""

import json

import pytest
import torch
from made_up import make_real

from dd_plugins.api import DataSource, StorageBudget, SyntheticFileError, UsageError, read_stored, read_tensors
from dd_plugins.api.files import write_tensors
from dd_plugins.engine.distilled import load_stored
from dd_plugins.parameterizations.pixel import Pixel


@pytest.fixture
def container():
    real = make_real(classes=2, shape=(1, 4, 4))
    made = Pixel(real.spec, StorageBudget.ipc(real.spec, 1))
    made.data_source = DataSource("folder:my", {"size": 4}, ("ant", "bee"))
    return made


def test_a_set_keeps_its_data_source_when_it_is_loaded_pruned_and_saved_again(container, tmp_path):
    for number in range(2):
        container.save(tmp_path / f"{number}", "pixel")
        assert read_stored(tmp_path / f"{number}")[0].source == container.data_source
        container = load_stored(tmp_path / f"{number}")
        container.keep(torch.arange(2))


@pytest.mark.parametrize("name", ["", "two\nlines", '"quoted"', "日本", "\x01\x1b[31m", "a/../b"])
def test_names_of_any_kind_come_back(container, tmp_path, name):
    container.data_source = DataSource("x", {}, (name, "bee"))
    container.save(tmp_path / "set", "pixel")
    assert load_stored(tmp_path / "set").data_source.class_names == (name, "bee")


def test_long_names_are_cut_and_broken_text_is_replaced(container, tmp_path):
    container.data_source = DataSource("x\udcff", {}, ("a" * 2_000_000, "b\udcff\0"))  # file names in Latin-1
    container.save(tmp_path / "set", "pixel")
    assert load_stored(tmp_path / "set").data_source == DataSource("x?", {}, ("a" * 200, "b??"))
    assert (tmp_path / "set").stat().st_size < 3000


def test_settings_are_no_place_for_images(container, tmp_path):
    container.data_source = DataSource("folder:my", {"mean": list(range(5000))})
    with pytest.raises(UsageError, match=r"folder:my: its configuration takes \d+ bytes, more than 4096"):
        container.save(tmp_path / "set", "pixel")


def test_files_of_earlier_releases_are_read(container, tmp_path):
    container.save(tmp_path / "set", "pixel")
    tensors, metadata = read_tensors(tmp_path / "set")
    header = json.loads(metadata["dd_plugins"])
    assert header["format"] == 1
    del header["source"]
    write_tensors(tmp_path / "old", tensors, {"dd_plugins": json.dumps(header)})
    found = load_stored(tmp_path / "old")
    assert found.data_source == DataSource()
    assert found.data_source.names(2) == ("0", "1")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": {"class_names": ["ant"]}}, "1 names for 2 classes"),
        ({"source": {"class_names": ["ant", "b" * 201]}}, "at most 200 characters"),
        ({"source": {"class_names": ["ant", 3]}}, "valid string"),
        ({"source": {"dataset": "x" * 5000}}, "at most 4096 characters"),
        ({"source": {"settings": []}}, "source.settings"),
        ({"source": 3}, "source"),
        ({"counts": [1]}, "1 counts"),
        ({"counts": [1, True]}, "counts.1"),
        ({"counts": [1, 1.0]}, "counts.1"),
        ({"budget": {"elements": "32"}}, "budget.elements"),
        ({"plugin": 3}, "plugin"),
    ],
)
def test_headers_of_other_types_are_one_line(container, tmp_path, change, told):
    container.save(tmp_path / "set", "pixel")
    tensors, metadata = read_tensors(tmp_path / "set")
    header = {**json.loads(metadata["dd_plugins"]), **change}
    write_tensors(tmp_path / "wrong", tensors, {"dd_plugins": json.dumps(header)})
    with pytest.raises(SyntheticFileError, match="wrong: its header") as caught:
        read_stored(tmp_path / "wrong")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bytes_of_a_set_are_those_of_its_file_and_load_as_the_file_does(container, tmp_path):
    container.save(tmp_path / "set", "pixel")
    content = container.to_bytes("pixel")
    assert content == (tmp_path / "set").read_bytes()
    assert torch.equal(load_stored(content).decode(), load_stored(tmp_path / "set").decode())


@pytest.mark.parametrize("change", [lambda c: c[:100], lambda c: b"", lambda c: c[:-1], lambda c: b"\xff" * 8 + c[8:]])
def test_damaged_bytes_are_refused_in_one_line(container, change):
    content = change(container.to_bytes("pixel"))
    with pytest.raises(SyntheticFileError, match=f"^{len(content):,} bytes: ") as error:
        load_stored(content)
    assert "\n" not in str(error.value)
