"""Tables and curves find the runs below a folder, and say so where there is none."""

import json
import shutil

import pytest
from committed import committed_records
from tiny_runs import command

from benchmark_adapters.report.discovery import find_records
from benchmark_adapters.report.summary import rows
from dd_plugins.api import UsageError

RECORDS = [r for r in committed_records() if r["data"]["name"] == "digits" and r["config"]["ipc"] == 5][:3]


def _run(folder, record):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method: hmn\n")
    if record is not None:
        (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs, one below another folder, one that is not finished, and what else lies in a folder of runs."""
    out = tmp_path / "runs"
    made = [_run(out / "aa", RECORDS[0]), _run(out / "sweep" / "bb", RECORDS[1])]
    _run(out / "cc", None)
    _run(out / "aa" / "inner", RECORDS[2])
    _run(out / "1" / "2" / "deep", RECORDS[2])
    (out / "yardsticks" / "dd").mkdir(parents=True)
    (out / "yardsticks" / "dd" / "record.json").write_text("{}")
    (out / "notes.txt").write_text("")
    return out, made


def test_runs_below_a_folder_are_found_once(runs):
    out, made = runs
    assert find_records([out]) == (made, [out / "cc"])
    assert find_records([out, *made, out / "aa" / "record.json"])[0] == [*made, out / "aa" / "record.json"]
    assert find_records(sorted(path for path in out.iterdir() if path.is_dir()))[0] == [out / "1" / "2" / "deep", *made]


def test_a_table_of_a_folder_is_that_of_its_runs(runs, capsys):
    out, made = runs
    assert command("table", out) == 0
    found = capsys.readouterr()
    assert f"{out / 'cc'}: not finished, left out" in found.err
    assert command("table", *made) == 0
    assert capsys.readouterr().out == found.out
    assert found.out.count("\n") > 3


def test_a_curve_of_a_folder(runs, tmp_path, capsys):
    out, _ = runs
    shutil.rmtree(out / "sweep")
    assert command("plot", out, "--protocol", "quick", "--to", tmp_path / "curve.png") == 0
    assert (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("name", ["table", "plot"])
def test_what_holds_no_record_is_one_line(name, tmp_path, capsys):
    _run(tmp_path / "runs" / "cc", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for path, part in {
        "runs": f"not finished: {tmp_path / 'runs' / 'cc'}",
        "empty": "no record of a finished run",
        "text.json": "text.json",
        "list.json": "list.json",
        "binary": "binary",
        "missing": "missing",
    }.items():
        assert command(name, tmp_path / path) == 2
        error = capsys.readouterr().err
        assert error.startswith("dd-bench: ")
        assert error.count("\n") == 1
        assert part in error


def test_a_table_of_benchmarks_that_scored_nothing(runs, capsys):
    for record in runs[1]:
        content = json.loads((record / "record.json").read_text())
        content.pop("benchmarks", None)
        (record / "record.json").write_text(json.dumps(content))
    assert command("table", runs[0], "--benchmarks") == 2
    assert "none of these sets was scored by a benchmark" in capsys.readouterr().err


def _without_scores(record, **changes):
    return {**record, "scores": [], "benchmarks": [], **changes}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: _without_scores(r, storage={}),
        lambda r: _without_scores(r, condensation=3),
        lambda r: _without_scores({k: v for k, v in r.items() if k != "storage"}, condensation=3),
        lambda r: _without_scores(r, pruning={"images": [1]}),
        lambda r: {**r, "scores": [{**r["scores"][0], "trials": [1e308, 1e308]}]},
        lambda r: {**r, "storage": {**r["storage"], "elements": 10**99}},
        lambda r: {**r, "condensation": {**r["condensation"], "seconds": 1e308}},
    ],
    ids=["storage", "condensation", "of a reference", "pruning", "trials", "elements", "seconds"],
)
@pytest.mark.parametrize("name", ["show", "table"])
def test_a_record_that_does_not_hold_what_is_shown_is_one_line(name, change, tmp_path, capsys):
    (tmp_path / "record.json").write_text(json.dumps(change(RECORDS[0])))
    assert command(name, tmp_path / "record.json") == 2
    error = capsys.readouterr().err
    assert "is no record of a run" in error
    assert error.count("\n") == 1, error


def test_a_record_without_the_numbers_of_its_condensation_is_shown(tmp_path, capsys):
    (tmp_path / "record.json").write_text(json.dumps({**RECORDS[0], "condensation": {"steps": None}}))
    assert command("show", tmp_path / "record.json") == 0
    assert "condensed in" not in capsys.readouterr().out


def test_a_score_with_a_name_is_still_that_of_the_set():
    record = {**RECORDS[0], "yardsticks": []}
    named = {**record, "scores": [{**score, "name": "random real"} for score in record["scores"]]}
    assert rows([named]) == rows([record])


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no record of a finished run"):
        find_records([tmp_path])
