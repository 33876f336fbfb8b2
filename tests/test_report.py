"""Tables and pictures made of records."""

import json
from io import StringIO
from pathlib import Path

import pytest
from committed import FOLDER, committed_records
from rich.console import Console
from scipy import stats
from tiny_runs import command

from benchmark_adapters.report import benchmarks
from benchmark_adapters.report.comparison import markdown
from benchmark_adapters.report.summary import HEADER, read_records, rows
from benchmark_adapters.report.tables import benchmarks_rows, ledger_table, score_table
from dd_plugins.api import UsageError
from dd_plugins.engine.score import Estimate


def record(seed, trials, method="hmn", protocol="dsa"):
    score = {"protocol": protocol, "protocol_hash": f"h-{protocol}", "network": "convnet", "trials": trials}
    counts = {"images_per_class": [1, 1], "elements": 128, "bytes": 512}
    return {
        "id": f"id{seed}",
        "name": method,
        "data": {"name": "example", "origin": "made"},
        "config": {
            "ipc": 1,
            "seed": seed,
            "method": method,
            "protocol": {"network": {"name": "convnet"}},
            "parameterization": {"name": method},
        },
        "storage": {"elements": 100, "bytes": 400, "budget": 128},
        "images_per_class": [3, 4],
        "condensation": {"seconds": 10.0 * seed},
        "scores": [score],
        "yardsticks": [{**score, "name": "random real", **counts, "trials": [0.5, 0.6]}],
    }


def cells(table):
    return {row[4]: dict(zip(HEADER, row, strict=True)) for row in table}


def test_repetitions_are_one_row_with_an_interval_over_condensations():
    made = [record(1, [0.8, 0.9]), record(2, [0.6, 0.8]), record(3, [0.9, 0.9])]
    row = cells(rows(made))["hmn"]
    means = [0.85, 0.7, 0.9]
    low, high = stats.t.interval(0.95, 2, loc=sum(means) / 3, scale=stats.sem(means))
    assert row["accuracy %"] == f"{100 * (low + high) / 2:.1f} +- {100 * (high - low) / 2:.1f}"
    assert (row["condensations"], row["trials"], row["seconds"], row["images/class"]) == ("3", "2", "20", "3-4")


def test_a_prior_stands_beside_the_elements_and_once_for_all_seeds():
    made = [record(1, [0.8]), record(2, [0.6]), record(3, [0.9], method="pixel")]
    for one in made[:2]:
        one["storage"]["priors"] = [{"elements": 95841, "seconds": 51.6, "sha256": "0123456789abcdef", "where": "x"}]
    found = cells(rows(made))
    told = {name: row["prior (elements, training, sha256)"] for name, row in found.items()}
    assert told == {"hmn": "95,841, 52 s, 01234567", "pixel": "", "random real": ""}


def test_one_condensation_has_an_interval_over_trials_and_says_so():
    row = cells(rows([record(1, [0.8, 0.9, 0.7])]))["hmn"]
    assert row["accuracy %"].endswith("(trials)")
    assert row["condensations"] == "1"


def test_the_same_cached_yardstick_counts_once():
    assert cells(rows([record(1, [0.8]), record(2, [0.9])]))["random real"]["condensations"] == "1"


@pytest.mark.parametrize(("seeds", "counted"), [((0, 0), "1"), ((0, 1), "2")])
def test_subsets_are_told_apart_by_their_seed_and_not_by_rounding(seeds, counted):
    """Another machine scores the same subset a little differently."""
    made = [record(1, [0.8]), record(2, [0.9])]
    for single, seed, trials in zip(made, seeds, ([0.5, 0.6], [0.5, 0.61]), strict=True):
        single["yardsticks"][0] |= {"seed": seed, "trials": trials}
    assert cells(rows(made))["random real"]["condensations"] == counted


def test_other_methods_and_protocols_stay_apart():
    made = [record(1, [0.8]), record(1, [0.8], protocol="idc"), record(1, [0.7], method="pixel")]
    assert len(rows(made)) == 5


def test_scores_on_other_networks_are_one_row_with_their_mean():
    made = []
    for seed, shift in ((1, 0.0), (2, 0.1)):
        single = record(seed, [0.8], protocol="dsa[epochs=2]")
        for network, accuracy in (("vit", 0.2), ("alexnet", 0.4), ("resnet18", 0.6)):
            protocol = {"protocol": f"dsa[network.name={network},epochs=2]", "protocol_hash": network}
            score = {**protocol, "network": network, "trials": [accuracy + shift]}
            single["scores"].append(score)
            single["yardsticks"].append({**single["yardsticks"][0], **score, "trials": [0.1], "seed": seed})
        made.append(single)
    found = {(row[3], row[4]): dict(zip(HEADER, row, strict=True)) for row in rows(made)}
    mean = "mean of alexnet, resnet18, vit"
    assert set(found) == {(network, name) for network in ("convnet", mean) for name in ("hmn", "random real")}
    row = found[mean, "hmn"]
    assert (row["protocol"], row["condensations"]) == ("dsa[epochs=2]", "2")
    low, high = stats.t.interval(0.95, 1, loc=0.45, scale=stats.sem([0.4, 0.5]))
    assert row["accuracy %"] == f"45.0 +- {100 * (high - low) / 2:.1f}"
    assert found[mean, "random real"]["accuracy %"] == "10.0 +- 0.0"


def test_one_other_network_keeps_its_row():
    made = record(1, [0.8])
    made["scores"].append(
        {"protocol": "dsa[network.name=vit]", "protocol_hash": "v", "network": "vit", "trials": [0.2]}
    )
    assert sorted(row[2:4] for row in rows([made]) if row[4] == "hmn") == [
        ("dsa", "convnet"),
        ("dsa[network.name=vit]", "vit"),
    ]


def test_rows_that_look_alike_tell_the_settings_that_differ():
    made = [record(seed, [0.8]) for seed in (1, 2, 3)]
    for single, level, steps in zip(made, (0, 0, 3), (10, 20, 10), strict=True):
        single["config"]["parameterization"] |= {"levels": [level], "lr": 0.03}
        single["config"]["steps"] = steps  # these have a column of their own
    made[2]["config"]["parameterization"]["new_setting"] = 1  # of a later release
    names = [row[4] for row in rows(made) if row[4].startswith("hmn")]
    assert sorted(names) == ["hmn (levels [0])", "hmn (levels [0])", "hmn (levels [3])"]
    assert [row[4] for row in rows(made[:2]) if row[4].startswith("hmn")] == ["hmn", "hmn"]


def test_markdown_has_one_line_a_row_and_a_rule():
    text = markdown(HEADER, rows([record(1, [0.8])])).splitlines()
    assert len(text) == 4
    assert {line.count("|") for line in text} == {len(HEADER) + 1}


def test_a_folder_of_record_files_is_read_and_none_is_chosen_without_one(tmp_path, monkeypatch, capsys):
    assert command("table", FOLDER) == 0
    assert markdown(HEADER, rows(committed_records())).splitlines()[0] in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for name in ("table", "plot"):
        assert command(name) == 2
        assert "no folder runs here; name run folders" in capsys.readouterr().err


def test_priors_of_the_records_are_described():
    folder = FOLDER / "priors"
    described = {about["sha256"]: about for about in (json.loads(file.read_text()) for file in folder.iterdir())}
    used = {
        prior["sha256"]: prior
        for record in committed_records()
        for prior in record.get("storage", {}).get("priors", ())
        if record["data"]["name"] in ("digits", "cifar10")
    }
    assert set(used) == set(described)
    for sha256, prior in used.items():
        assert prior["seconds"] == pytest.approx(described[sha256]["seconds"], abs=0.01)
        assert described[sha256]["gates"]["accuracy"] > 0


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"id": 1}))
    with pytest.raises(UsageError, match=r"a\.json is no record"):
        read_records([tmp_path / "a.json"])
    with pytest.raises(UsageError, match="no record"):
        read_records([tmp_path / "missing"])


def test_estimate_of_one_value_has_no_interval():
    assert Estimate.of([0.5]).percent() == "50.00 (n=1)"


def printed(table):
    console = Console(width=150, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


def test_score_table_names_the_protocol_and_both_yardstick_and_method():
    made = record(1, [0.8, 0.9])
    text = printed(score_table(made, made["scores"][0], 1))
    assert "protocol dsa" in text
    changed = {**made["scores"][0], "protocol": "dsa[epochs=3,width=8]"}
    assert "dsa[epochs=3,width=8]" in printed(score_table(made, changed, 1))
    assert "random real" in text
    assert "85.00 +-" in text
    assert "3-4" in text


def test_ledger_table_sums_up():
    entries = [
        {"name": "a", "shape": (2, 3), "dtype": "float32", "elements": 6, "nbytes": 24},
        {"name": "b", "shape": (4,), "dtype": "float32", "elements": 4, "nbytes": 16},
    ]
    text = printed(ledger_table(entries, 12))
    assert "2 x 3" in text
    assert any(line.split("│")[4:6] and "10" in line and "40" in line for line in text.splitlines())


def test_the_readme_shows_the_committed_records():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert markdown(HEADER, rows(committed_records())) in readme
    assert markdown(benchmarks.HEADER, benchmarks.rows(committed_records())) in readme


def scored_by(benchmark, metric, trials, **metrics):
    about = {"benchmark": benchmark, "protocol": "p", "protocol_hash": f"h-{benchmark}", "network": "n"}
    return {**about, "metric": metric, "trials": trials, "metrics": metrics}


def test_benchmarks_stand_side_by_side_with_what_each_has():
    made = record(1, [0.8])
    made["benchmarks"] = [
        scored_by("native", "accuracy", [0.5, 0.7], HLR=[0.2, 0.4], ARS=[0.3, 0.3]),
        scored_by("dd-ranking", "LRS", [0.25], accuracy=[0.4]),
    ]
    one, other = (dict(zip(benchmarks.HEADER, row, strict=True)) for row in benchmarks.rows([made, record(2, [0.9])]))
    assert (one["benchmark"], one["n"], one["accuracy"], one["LRS"], one["HLR"]) == (
        "dd-ranking", "1", "0.400", "0.250", "",
    )  # fmt: skip
    low, high = stats.t.interval(0.95, 1, loc=0.6, scale=stats.sem([0.5, 0.7]))
    assert other["accuracy"] == f"0.600 +- {(high - low) / 2:.3f}"
    assert (other["ARS"], other["LRS"], other["method"]) == ("0.300 +- 0.000", "", "hmn")


def test_a_score_that_a_benchmark_gives_too_stands_once():
    made = record(1, [0.8])
    made["scores"][0]["benchmark"] = "native"
    assert [row[0] for row in benchmarks_rows(made)] == ["native"]
    twin = {**scored_by("native", "accuracy", [0.8], HLR=[0.1]), "protocol_hash": "h-dsa"}
    made["benchmarks"] = [twin]
    assert [row[3] for row in benchmarks_rows(made)] == ["accuracy", "HLR"]


def test_a_narrow_terminal_keeps_names_and_accuracies():
    made = record(1, [0.05, 0.09])
    made["storage"] = {"elements": 122_880_000, "bytes": 491_520_000, "budget": 122_880_000}
    console = Console(width=80, record=True, file=StringIO())
    console.print(score_table(made, made["scores"][0], 1))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("hmn", "random", "real", "7.00 +- 25.41 (n=2)", "55.00 +- 63.53 (n=2)"):
        assert part in text, text
