"""Whatever stands in a file: a value, or one error of this project, in one line that names the file."""

import json
import struct
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmark_adapters.report.summary import read_records, rows
from benchmark_adapters.runs.find import read_record
from benchmark_adapters.runs.store import CHECKPOINT, RunFolder
from dd_plugins import registry
from dd_plugins.api import DataError, DDPluginsError, read_stored, read_tensors, write_tensors
from dd_plugins.api.reading import dump_yaml, parse_json, parse_yaml, read_json, read_yaml
from dd_plugins.api.stored import KEY
from dd_plugins.engine.config import resolve

pytestmark = pytest.mark.fuzz

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(categories=("L", "N"))), inner),
    max_leaves=15,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _plugins_are_listed_once():
    """They are the same in all tests here, and reading the metadata of all distributions takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "list_plugins", cache(registry.list_plugins))
        yield


def attempt(act, *names):
    """Calls ``act``; what it raises must be an error of one line with all the names."""
    try:
        return act()
    except DDPluginsError as error:
        text = str(error)
        assert len(text.splitlines()) == 1, text
        assert len(text) < 5000
        assert all(name in text for name in names), text
    return None


# ---- bytes ----------------------------------------------------------------------------------------------------------

# Pieces that mean something to one of the readers, so that files get past the first byte.
PIECES = st.sampled_from([
    b"{", b"}", b"[", b"]", b'"a"', b":", b",", b"1", b"-", b" ", b"\n", b"a: ", b"- ", b"? ", b"&x ", b"*x",
    b"!!int ", b"<<: ", b"|\n", b">\n", b"'", b'"', b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"2020-13-45",
    b"9" * 5000, b"\xff", b"\xef\xbb\xbf", b"%YAML 1.2\n", b"---\n", b"...\n", b"#", b"\t", b"\x00", b"\x85",
    b"null", b"true", b"0x", b"[" * 3000, b"- " * 300,
])  # fmt: skip
BYTES = st.binary(max_size=200) | st.lists(PIECES, max_size=30).map(b"".join)


@pytest.mark.parametrize("read", [read_json, read_yaml])
@given(content=BYTES)
def test_any_bytes_as_json_or_yaml(read, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    path.write_bytes(content)
    attempt(lambda: read(path, DataError), str(path))


HEADERS = st.dictionaries(
    st.text(max_size=5) | st.just("__metadata__"),
    st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "F64", "I64", "BOOL", "F4", "F8_E5M2", "C64", "X"]) | SCALARS,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | st.lists(st.integers(0, 3), max_size=3) | SCALARS,
        "data_offsets": st.lists(st.integers(0, 70), min_size=2, max_size=2) | VALUES,
    }) | VALUES,
    max_size=4,
)  # fmt: skip
METADATA = st.fixed_dictionaries({"__metadata__": st.dictionaries(st.just(KEY), VALUES.map(json.dumps) | st.text())})


@given(header=HEADERS | METADATA, body=st.binary(max_size=64), length=st.none() | st.integers(0, 2**64 - 1))
@example(header={}, body=b"", length=2**63)
def test_any_safetensors_header(header, body, length, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    attempt(lambda: read_tensors(path), str(path))
    attempt(lambda: read_stored(path), str(path))


@given(content=BYTES)
def test_any_bytes_as_safetensors(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(content)
    attempt(lambda: read_stored(path), str(path))


# ---- values come back as they were ----------------------------------------------------------------------------------


@given(values=PLAIN)
def test_plain_values_come_back_from_json_and_from_yaml(values):
    assert parse_json(json.dumps(values), "x", DataError) == values
    assert parse_yaml(dump_yaml(values), "x", DataError) == values


# ---- files of a run -------------------------------------------------------------------------------------------------

SCORE = {"benchmark": "native", "protocol": "quick", "protocol_hash": "ab", "network": "convnet", "split": "test",
         "trials": [0.5, 0.25], "seconds": 1.5}  # fmt: skip
SIZES = {"elements": 640, "bytes": 2560, "images_per_class": [1] * 10}
STAGE = {
    "finished": "now", "sha256": "ab", "steps": 3, "seconds": 1.0, "cpu_seconds": 1.0, "prepare_seconds": 0.5,
    "peak_memory_mib": 8.5, "learned": {}, "losses": [1.0], "priors": [{"elements": 3, "sha256": "c", "seconds": 2.0}],
}  # fmt: skip
PRUNING = {"strategy": "aum", "settings": {"beta": 0.5}, "images": [12, 10], "kept": [1, 2], "prune_seconds": 2.0,
           "candidates": [{"settings": {}, "accuracy": 0.5, "trials": [0.5]}], "larger": "ef"}  # fmt: skip
RECORD = {
    "id": "ab12", "name": "pixel + dm", "status": "done",
    "config": {
        "method": "dm", "dataset": "digits", "ipc": 1, "seed": 0, "data": {}, "steps": 3,
        "parameterization": {"name": "pixel"}, "objective": {"name": "dm"}, "network": {"name": "convnet"},
        "protocol": {"name": "quick", "network": {"name": "convnet", "width": 8}, "train": {"epochs": 2}, "trials": 2},
    },
    "data": {"name": "digits", "origin": "scikit-learn", "fingerprint": "cd", "num_classes": 10},
    "plugins": {"objective": {"name": "dm", "version": "1"}}, "versions": {"torch": "2.6", "dd-plugins": "1"},
    "storage": {**SIZES, "budget": 640, "ledger": [
        {"name": "images", "shape": [10, 1, 8, 8], "dtype": "float32", "elements": 640, "nbytes": 2560}], "priors": []},
    "images_per_class": [1] * 10, "condensation": STAGE, "pruning": PRUNING, "scores": [SCORE],
    "yardsticks": [{**SCORE, **SIZES, "name": "random real", "seed": 0}],
    "benchmarks": [{**SCORE, "name": "native", "metric": "accuracy", "metrics": {"HLR": [0.5]}, "key": "x"}],
    "metrics": [{"metric": "crfd", "network": {"name": "convnet"}, "value": 1.0}],
}  # fmt: skip


def places(values, path=()):
    """The path of every key and item below ``values``."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(values):
    """Strategy: the values with one or two places replaced by anything, dropped, or nested."""

    @st.composite
    def draw_one(draw):
        found = json.loads(json.dumps(values))
        for _ in range(draw(st.integers(1, 2))):
            if not (there := list(places(found))):
                break
            *parents, last = draw(st.sampled_from(there))
            target = found
            for key in parents:
                target = target[key]
            how = draw(st.sampled_from(["drop", "replace", "nest"]))
            if how == "drop":
                del target[last]
            else:
                target[last] = {"a": [target[last]]} if how == "nest" else draw(VALUES)
        return found

    return draw_one()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("fuzz") / "run")
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text(resolve({"method": "dm"}).to_yaml())
    return folder


@given(record=changed(RECORD) | VALUES)
@example(record=RECORD)
def test_any_change_of_a_record(record, folder):
    folder.record.write_text(json.dumps(record))
    found = attempt(lambda: read_record(folder), str(folder.record))
    assert found == record or found is None
    if read := attempt(lambda: read_records([folder.path]), str(folder.record)):
        assert rows(read)
    if record is RECORD:
        assert found == record
        assert len(rows(read)) == 2


@given(stages=changed({"condense": STAGE, "prune": PRUNING}) | VALUES)
def test_any_change_of_the_stages(stages, folder):
    (folder.path / "stages.json").write_text(json.dumps(stages))
    try:
        assert isinstance(attempt(folder.stages, "stages.json") or {}, dict)
    finally:
        (folder.path / "stages.json").unlink()


TRIALS = [{"key": "a/convnet", "trial": 0, "score": 0.5}, {"key": "a/convnet", "trial": 1, "score": 0.25}]


@given(lines=changed(TRIALS), cut=st.integers(0, 200))
def test_any_change_of_the_trials(lines, cut, folder):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    folder.trials.write_text(text[: max(0, len(text) - cut)])
    for trial, score in (attempt(lambda: folder.known_trials("a/convnet"), str(folder.trials)) or {}).items():
        assert isinstance(trial, int)
        assert isinstance(score, float)


NOTES = {"run_id": "ab", "step": 3, "stage": "all", "seconds": 1.5, "cpu_seconds": 1.5, "prepare_seconds": 0.0}


@given(notes=changed(NOTES).map(json.dumps) | VALUES.map(json.dumps) | st.text())
def test_any_change_of_a_checkpoints_notes(notes, folder):
    write_tensors(folder.checkpoint, {}, {CHECKPOINT: notes.encode("utf-8", "replace").decode()})
    attempt(lambda: folder.checkpointer("ab").load(), str(folder.checkpoint))
    folder.checkpoint_notes()


# ---- configurations -------------------------------------------------------------------------------------------------

CONFIG = json.loads(json.dumps(resolve({"method": "hmn", "pruning": "aum"}).model_dump(mode="json")))


@given(values=changed(CONFIG) | VALUES)
@example(values={"parameterization.name.\x85": 1})
def test_any_configuration(values, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(json.dumps(values).encode())
    attempt(lambda: resolve({}, (), path))


@given(key=st.sampled_from(list(places(CONFIG))), text=st.text(max_size=30) | VALUES.map(json.dumps))
def test_any_assignment(key, text):
    attempt(lambda: resolve({}, [f"{'.'.join(map(str, key))}={text}"]))
