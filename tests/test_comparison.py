"""Methods head to head: statistics, tables, what is reused, and what a failure leaves alone."""

import csv
import io
import json
import re

import pytest
from committed import FOLDER
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats
from tiny_runs import command

from benchmark_adapters.report import comparison
from benchmark_adapters.report.curves import front, save_curve
from benchmark_adapters.report.references import published
from benchmark_adapters.report.statistics import Difference, holm
from benchmark_adapters.report.summary import of_dataset
from benchmark_adapters.report.tables import fitting_table
from benchmark_adapters.runs.compare import contenders, matrix
from benchmark_adapters.signals import Interrupted
from dd_plugins.api import BudgetTooSmall, UsageError
from dd_plugins.engine.protocols import load_protocol

PROTOCOL = load_protocol("dsa")
TINY = ["network.width=4", "protocol.network.width=4", "protocol.train.epochs=2", "steps=2"]


def record(name, seed, trials, random=(0.2, 0.3), elements=100):
    score = {"protocol": "dsa", "protocol_hash": PROTOCOL.hash, "network": "convnet"}
    return {
        "name": name,
        "data": {"name": "cifar10", "origin": ""},
        "config": {
            "ipc": 1, "seed": seed, "parameterization": {"name": "pixel"}, "objective": {"name": "dm"},
            "protocol": {"network": {"name": "convnet"}},
        },
        "storage": {"elements": elements, "bytes": 4 * elements, "budget": 80},
        "images_per_class": [3] * 10,
        "condensation": {"seconds": 10.0 * (seed + 1), "peak_memory_mib": 1000.0 + seed, "steps": 5},
        "scores": [{**score, "trials": list(trials)}],
        "yardsticks": [
            {**score, "name": "random real", "elements": 80, "bytes": 320, "images_per_class": [1] * 10,
             "trials": list(random)}
        ],
    }  # fmt: skip


def table(records, baseline="random real"):
    found = comparison.rows(comparison.entries(records, PROTOCOL), PROTOCOL, baseline)
    return {row[0]: dict(zip(comparison.HEADER, row, strict=True)) for row in found}


# ---- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.01, 0.04, 0.03], [0.5], [0.2, 0.2, 0.001, 0.9], [0.04, 0.03, 0.02, 0.01]])
def test_holm_equals_its_definition(values):
    """Adjusted p of rank k: the largest of (m - j + 1) p_j over the ranks j up to k, at most 1."""
    ranked = sorted(values)
    expected = {
        p: min(1.0, max((len(values) - j) * q for j, q in enumerate(ranked) if j <= ranked.index(p))) for p in values
    }
    assert holm(values) == pytest.approx([expected[p] for p in values])


def test_paired_difference_equals_a_one_sample_test_of_the_gaps():
    ours, theirs = [0.5, 0.6, 0.55, 0.7], [0.45, 0.5, 0.56, 0.6]
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = Difference.of(ours, theirs)
    assert found.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    low, high = stats.t.interval(0.95, 3, loc=sum(gaps) / 4, scale=stats.sem(gaps))
    assert found.estimate.mean == pytest.approx((low + high) / 2)
    assert found.estimate.half_width == pytest.approx((high - low) / 2)


def test_no_test_without_spread():
    assert Difference.of([0.5, 0.6], [0.4, 0.5]).p is None
    assert Difference.of([0.5], [0.4]).p is None


# ---- the table -----------------------------------------------------------------------------------------------------


def test_rows_pair_by_seed_and_correct_over_all_methods():
    a = [record("a", seed, trials) for seed, trials in enumerate([(0.5, 0.6), (0.6, 0.8), (0.5, 0.5)])]
    b = [record("b", seed, trials) for seed, trials in enumerate([(0.3, 0.3), (0.3, 0.4), (0.2, 0.3)])]
    rows = table({"a": a, "b": b}, baseline="b")
    p = stats.ttest_rel([0.55, 0.7, 0.5], [0.3, 0.35, 0.25]).pvalue
    q = stats.ttest_rel([0.25] * 3, [0.3, 0.35, 0.25]).pvalue
    assert float(rows["a"]["p (Holm)"]) == pytest.approx(min(1, 2 * p), rel=1e-2)
    assert float(rows["random real"]["p (Holm)"]) == pytest.approx(max(2 * p, q), rel=1e-2)
    assert rows["a"]["difference"].startswith("+28.3")
    assert rows["b"]["difference"] == ""
    assert (rows["a"]["runs x trials"], rows["a"]["seconds"], rows["a"]["peak MiB"]) == ("3 x 2", "20", "1,002")


def test_one_run_each_is_paired_by_trial():
    rows = table({"a": [record("a", 0, (0.5, 0.7, 0.6), random=(0.1, 0.4, 0.3))]})
    assert float(rows["a"]["p (Holm)"]) == pytest.approx(
        stats.ttest_rel([0.5, 0.7, 0.6], [0.1, 0.4, 0.3]).pvalue, rel=1e-2
    )


def test_costs_and_published_numbers_stand_beside():
    rows = table({"dm": [record("dm", 0, (0.5, 0.6))]})
    assert rows["dm"]["x budget"] == "1.250"
    assert rows["dm"]["SGD steps"] == "1,001"  # 30 images are one batch
    assert rows["dm"]["published"].startswith("26.0 (")
    assert rows["random real"]["published"] == ""
    assert published("hmn", "cifar10", 10).percent == 73.7
    assert published("hmn", "digits", 1) is None


def test_formats():
    header, rows = ("a", "b %"), [("x_1", "1 +- 2"), ("y", "3,000")]
    assert comparison.markdown(header, rows).splitlines()[1] == "| --- | --- |"
    found = list(csv.reader(comparison.as_csv(header, rows).splitlines()))
    assert found == [["a", "b %", "b % +-"], ["x_1", "1", "2"], ["y", "3000", ""]]
    text = comparison.latex(header, rows)
    assert r"x\_1 & 1 $\pm$ 2 \\" in text
    assert r"b \%" in text


def test_csv_is_for_programs():
    header = ("elements", "difference", "accuracy %", "source")
    rows = [("1,536,000", "+1.3 +- 3.3", "84.7 +- 2.4 (trials)", "26.0 (PAD, Table 1)"), ("", "-0.5", "9.0", "1,2")]
    found = list(csv.DictReader(comparison.as_csv(header, rows).splitlines()))
    assert found[0]["elements"] == "1536000"
    assert [(row["difference"], row["difference +-"]) for row in found] == [("+1.3", "3.3"), ("-0.5", "")]
    assert [(row["accuracy %"], row["accuracy % +-"]) for row in found] == [("84.7", "2.4"), ("9.0", "")]
    assert found[0]["source"] == "26.0 (PAD, Table 1)"


@pytest.mark.parametrize("width", [40, 80, 100, 300])
def test_a_terminal_gets_the_columns_that_it_has_room_for(width):
    records = {name: [record(name, 0, (0.5, 0.6))] for name in ("dm", "a-method-of-a-long-name")}
    header, rows = comparison.table(comparison.entries(records, PROTOCOL), PROTOCOL)
    console = Console(width=width, file=io.StringIO())
    console.print(fitting_table(header, rows, "title", "caption", width))
    lines = console.file.getvalue().splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line.startswith(("│", "┃"))]
    body = [row for row in cells if row[0] in ("random real", "dm", "a-method-of-a-long-name")]
    assert len(body) == 3  # no cell is broken over lines
    by_name = {row[0]: row for row in rows}
    assert all(set(row[1:]) <= set(by_name[row[0]]) for row in body)
    assert ("no room for" in console.file.getvalue()) == (width < 300)
    if width >= 80:
        important = [header.index(name) for name in ("accuracy %", "difference")]
        assert all({by_name[row[0]][k] for k in important} <= set(row) for row in body)


# ---- contenders ----------------------------------------------------------------------------------------------------


def test_assignments_for_all_and_for_one():
    first, second = contenders(["dm", "mtt"], ["ipc=2", "mtt:objective.experts=3", "data.path=C:/x"])
    assert first.assignments == ("ipc=2", "data.path=C:/x")
    assert second.assignments == ("ipc=2", "data.path=C:/x", "objective.experts=3")
    with pytest.raises(UsageError, match="takes no part"):
        contenders(["dm"], ["mtt:objective.experts=3"])


def test_a_method_takes_part_twice_under_labels():
    found = contenders(["dm", "glad/0", "glad/3"], ["steps=3", "glad/3:parameterization.levels=[3]"])
    assert [one.name for one in found] == ["dm", "glad/0", "glad/3"]
    assert [one.flags["method"] for one in found] == ["dm", "glad", "glad"]
    assert [one.assignments for one in found][1:] == [("steps=3",), ("steps=3", "parameterization.levels=[3]")]
    with pytest.raises(UsageError, match="dm: takes part twice; METHOD/LABEL tells them apart"):
        contenders(["dm", "glad", "dm"], [])


def test_other_networks_have_their_mean_beside():
    records = {"a": [record("a", 0, (0.3, 0.5)), record("a", 1, (0.5, 0.5))]}
    for run in records["a"]:
        for name, trials in (("x", (0.1, 0.3)), ("y", (0.3, 0.4))):
            shift = 0.1 * run["config"]["seed"]
            score = {"protocol": "dsa", "protocol_hash": name, "network": name}
            run["scores"].append({**score, "trials": [t + shift for t in trials]})
            run["yardsticks"].append({**run["yardsticks"][0], **score, "trials": trials})
    found = comparison.entries(records, PROTOCOL, ("x", "y"))
    assert found[1].across == {0: pytest.approx((0.2, 0.35)), 1: pytest.approx((0.3, 0.45))}
    assert found[0].across == {seed: pytest.approx((0.2, 0.35)) for seed in (0, 1)}
    header, rows = comparison.with_across(comparison.HEADER, comparison.rows(found, PROTOCOL), found, 2)
    cells = dict(zip(header, rows[1], strict=True))
    half = stats.t.ppf(0.975, 1) * stats.sem([27.5, 37.5])
    assert cells["mean of 2 networks %"] == f"32.5 +- {half:.1f}"
    assert cells["accuracy %"].startswith("45.0 +- ")


def test_a_prior_has_a_column_of_its_own():
    records = {"a": [record("a", 0, (0.3, 0.5))], "b": [record("b", 0, (0.2, 0.4))]}
    found = comparison.entries(records, PROTOCOL)
    table = comparison.rows(found, PROTOCOL)
    assert comparison.with_priors(comparison.HEADER, table, found) == (comparison.HEADER, table)
    records["b"][0]["storage"]["priors"] = [
        {"elements": 95841, "seconds": 99.6, "sha256": "0123456789abcdef", "where": "x"}
    ]
    found = comparison.entries(records, PROTOCOL)
    header, rows = comparison.with_priors(comparison.HEADER, table, found)
    place = header.index("prior (elements, training, sha256)")
    assert [row[place] for row in rows] == ["", "", "95,841, 100 s, 01234567"]
    assert [[*row[:place], *row[place + 1 :]] for row in rows] == [list(row) for row in table]


def test_compare_scores_every_set_across_networks(tmp_path, capsys):
    words = ["compare", "--methods", "dm,dm/still", "--dataset", "digits", "--ipc", "1", "--format", "csv"]
    words += [word for text in (*TINY, "dm/still:steps=0", "protocol.trials=2") for word in ("--set", text)]
    words += ["--across", "convnet,alexnet", "--out", str(tmp_path)]
    for _ in range(2):  # the second time everything is there
        code = command(*words)
        out, err = capsys.readouterr()
        assert code == 0, err
        rows = list(csv.DictReader(out.splitlines()))
        assert [row["method"] for row in rows] == ["random real", "dm", "dm/still"]
        assert all(row["mean of 2 networks %"] for row in rows)
    assert "evaluate" not in err


def test_across_networks_the_protocol_is_that_of_the_comparison(tmp_path, capsys):
    """And not the one that a run was scored under first, in the same folder."""
    words = ["compare", "--methods", "dm", "--dataset", "digits", "--ipc", "1", "--out", str(tmp_path), "--trials", "1"]
    words += [word for text in TINY for word in ("--set", text)]
    assert command(*words) == 0
    assert command(*words, "--set", "protocol.train.lr=0.005", "--across", "lenet,mlp") == 0, capsys.readouterr().err
    (file,) = [file for file in tmp_path.glob("*/record.json") if "dm" in json.loads(file.read_text())["name"]]
    scored = [score["protocol"] for score in json.loads(file.read_text())["scores"] if score["network"] != "convnet"]
    assert len(scored) == 2
    assert all("lr=0.005" in protocol for protocol in scored)


def test_matrix_is_every_pair():
    assert [c.name for c in matrix(["a", "b"], ["x", "y"], [])] == ["a + x", "a + y", "b + x", "b + y"]


# ---- the command ---------------------------------------------------------------------------------------------------


def test_compare_carries_on_past_a_failure_and_reuses_what_is_there(tmp_path, capsys, monkeypatch):
    sets = [word for text in [*TINY, "dm:objective.batch_real=4", "rtp:parameterization.bases=900"]
            for word in ("--set", text)]  # fmt: skip
    words = ["compare", "--methods", "dm,rtp,pixel", "--set", "pixel:objective.max_updates=2", "--ipc", "2",
             "--trials", "2", "--device", "cpu", "--format", "csv", "--out", tmp_path, *sets]  # fmt: skip
    assert command(*words) == 1
    printed = capsys.readouterr()
    assert "rtp failed: RTP does not fit: 1 decoded image of each class take" in printed.err
    rows = list(csv.reader(printed.out.splitlines()))
    assert [row[0] for row in rows[1:]] == ["random real", "dm", "pixel"]

    def condense(config, *_):
        assert config.parameterization.name == "rtp", "condensed again"
        raise BudgetTooSmall("still too small")

    monkeypatch.setattr("benchmark_adapters.runs.pipeline._condense", condense)
    assert command(*words) == 1
    assert list(csv.reader(capsys.readouterr().out.splitlines())) == rows


def test_an_interrupted_comparison_ends_and_goes_on(tmp_path, capsys, monkeypatch):
    sets = [word for text in TINY for word in ("--set", text)]
    words = [
        "compare",
        "--methods",
        "dm,dc",
        "--ipc",
        "1",
        "--trials",
        "2",
        "--device",
        "cpu",
        "--format",
        "csv",
        *sets,
    ]
    begun = []

    def interrupted(config, *_):
        begun.append(config.method)
        raise Interrupted("interrupted at step 1 of 2; the same command continues")

    with monkeypatch.context() as patch:
        patch.setattr("benchmark_adapters.runs.compare.run", interrupted)
        assert command(*words, "--out", tmp_path) == 130
    assert "interrupted at step 1 of 2; the same command continues" in capsys.readouterr().err
    assert begun == ["dm"]  # the others are not begun
    assert command(*words, "--out", tmp_path) == 0
    assert [row["method"] for row in csv.DictReader(capsys.readouterr().out.splitlines())][1:] == ["dm", "dc"]


def test_a_matrix_says_which_pair_cannot_work(tmp_path, capsys):
    sets = [word for text in [*TINY, "minutes=5"] for word in ("--set", text)]
    words = ["compare", "--matrix", "--params", "pixel,rtp", "--objectives", "dm,haba", "--ipc", "2", "--trials", "2"]
    assert command(*words, "--device", "cpu", "--format", "csv", "--out", tmp_path, *sets) == 1
    printed = capsys.readouterr()
    assert "pixel + haba failed: objective haba needs a container with shared components" in printed.err
    rows = list(csv.reader(printed.out.splitlines()))
    assert rows[0] == ["container", "dm", "haba"]
    assert [(row[0], row[2]) for row in rows[1:]] == [("pixel", "failed"), ("rtp", "failed")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods", "dm,nothing"], "unknown method 'nothing'"),
        (["--methods", "dm", "--baseline", "hmn"], "--baseline 'hmn' takes no part"),
        (["--methods", "dm", "--set", "hmn:ipc=2"], "'hmn' takes no part"),
        (["--params", "pixel"], "--params and --objectives are for --matrix"),
        (["--matrix", "--methods", "dm"], "--params and --objectives are for --matrix"),
    ],
)
def test_mistakes_are_told_before_anything_runs(words, told, tmp_path, capsys):
    assert command("compare", *words, "--out", tmp_path / "runs") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_plan_shows_sizes_and_what_cannot_run_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "runs"
    words = ["compare", "--methods", "dm,haba,idc", "--ipc", "1", "--steps", "7", "--dry-run", "--format", "csv"]
    assert command(*words, "--out", out) == 1
    rows = {row["method"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert not out.exists()
    assert [rows[name]["elements"] for name in ("dm", "haba", "idc")] == ["640", "", "640"]
    assert rows["idc"]["images/class"] == "4"
    assert {row["steps"] for row in rows.values()} == {"7"}
    assert "HaBa does not fit" in rows["haba"]["cannot run"]
    assert not rows["dm"]["cannot run"]


def test_everything_that_compare_takes_by_default_can_run(tmp_path, capsys):
    assert command("compare", "--dry-run", "--format", "csv", "--out", tmp_path / "runs") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["method"] for row in rows] == ["dc", "dsa", "dm", "cafe", "mtt", "idc", "haba", "rtp", "hmn"]


# ---- experts and curves --------------------------------------------------------------------------------------------


def test_experts_ahead_of_a_run_are_found_by_it(tmp_path, capsys):
    sets = ["network.width=4", "objective.training_epochs=3", "objective.max_start_epoch=2", "objective.syn_steps=2"]
    words = ["--method", "mtt", "--device", "cpu", "--out", tmp_path]
    words += [word for text in [*sets, "objective.experts=2"] for word in ("--set", text)]
    assert command("prepare", *words, "--dry-run") == 0
    assert "missing: expert trajectories of digits, 0 of 2 experts" in capsys.readouterr().out
    assert command("prepare", *words) == 0
    assert "expert trajectories of digits" in capsys.readouterr().out
    (tmp_path / next(iter(tmp_path.glob("experts/*/expert-0001.safetensors")))).unlink()
    assert command("prepare", *words, "--dry-run") == 0
    assert "missing: expert trajectories of digits, 1 of 2 experts" in capsys.readouterr().out
    for done in ("made in", "exists: "):
        assert command("prepare", *words) == 0
        assert done in capsys.readouterr().out
    assert len(list(tmp_path.glob("experts/*/expert-*.safetensors"))) == 2


def test_the_front_is_what_no_other_point_beats():
    points = [(1.0, 0.5), (1.0, 0.6), (2.0, 0.6), (3.0, 0.7), (4.0, 0.65), (0.5, 0.4), (5.0, 0.9)]
    beaten = {(x, y) for x, y in points for other in points if other != (x, y) and other[0] <= x and other[1] >= y}
    assert front(points) == sorted(set(points) - beaten)


def test_a_curve_has_a_point_for_each_method_and_not_for_each_seed(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, **options: drawn.append((options["label"], x, y)))
    made = [record("a", 0, (0.5, 0.6)), record("a", 1, (0.6, 0.7)), record("b", 0, (0.9,))]
    longer = record("b", 0, (0.95,))
    longer["config"]["steps"], longer["condensation"]["seconds"] = 99, 70.0
    save_curve(tmp_path / "curve.png", [*made, longer])
    assert drawn == [("a", [15.0], pytest.approx([60.0])), ("b", [10.0, 70.0], pytest.approx([90.0, 95.0]))]


def test_a_prior_counts_in_a_curve_of_times(tmp_path, monkeypatch):
    drawn, lines, fronts = [], [], []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, **options: drawn.append((options["label"], x)))
    original = Axes.plot

    def noted(self, x, y, *form, **options):
        (lines if ":" in form else fronts).append(tuple(x))
        return original(self, x, y, *form, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    made = [record("a", 0, (0.9, 0.9)), record("b", 0, (0.5, 0.5))]
    made[0]["storage"] = {**made[0]["storage"], "priors": [{"seconds": 60.0, "elements": 9, "sha256": "0" * 64}]}
    for one in made:
        one["condensation"]["steps"] = 5
    save_curve(tmp_path / "curve.png", made)
    assert dict(drawn) == {"a": [70.0], "b": [10.0]}
    assert lines == [(10.0, 70.0)]
    assert fronts == [(10.0, 70.0)]  # the prior's minute does not pay before it is over
    save_curve(tmp_path / "curve.png", made, "steps")
    assert dict(drawn[2:]) == {"a": [5.0], "b": [5.0]}
    assert len(lines) == 1


def test_the_accuracy_axis_of_a_curve_stays_within_0_and_100(tmp_path, monkeypatch):
    limits = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: limits.append(self.axes[0].get_ylim()) or original(self, *a, **k)
    )
    save_curve(tmp_path / "curve.png", [record("a", 0, (0.05, 1.0)), record("b", 0, (0.99, 1.0))])  # wide intervals
    save_curve(tmp_path / "curve.png", [record("a", 0, (0.5, 0.5)), record("b", 0, (0.6, 0.6))])
    assert limits[0] == (0, 100)
    assert 0 < limits[1][0] < 50
    assert 60 < limits[1][1] < 100


def test_records_of_a_data_set_are_found_by_the_name_that_was_typed():
    made = [record("a", 0, (0.5, 0.6)), record("b", 0, (0.5, 0.6))]
    made[0]["data"], made[0]["config"] = {"name": "x"}, {"dataset": "folder:my/x"}
    made[1]["data"], made[1]["config"] = {"name": "digits"}, {"dataset": "digits"}
    for name in ("x", "folder:my/x", "folder:my/x/", "Folder:my/X"):
        assert of_dataset(made, name) == made[:1]
    with pytest.raises(UsageError, match=r"no record of the data set 'folder:x' \(there: digits, folder:my/x, x\)"):
        of_dataset(made, "folder:x")


def test_a_curve_is_drawn_from_records_of_one_cell(tmp_path):
    made = [record("a", 0, (0.5, 0.6)), record("a", 1, (0.6, 0.7))]
    save_curve(tmp_path / "curve.png", made)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    other = json.loads(json.dumps(made[0]))
    other["config"]["ipc"] = 10
    with pytest.raises(UsageError, match="one data set, IPC"):
        save_curve(tmp_path / "no.png", [*made, other])
    with pytest.raises(UsageError, match="there are: none"):
        save_curve(tmp_path / "no.png", made, "cpu_seconds")


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 2), (["--ipc", 1], 2), (["--ipc", 1, "--protocol", "quick"], 0), (["--ipc", 10], 0), (["--ipc", 3], 2)],
)
def test_the_shipped_records_of_digits_are_drawn_budget_by_budget(words, code, tmp_path, capsys):
    assert command("plot", FOLDER, "--dataset", "digits", *words, "--to", tmp_path / "curve.png") == code
    assert (tmp_path / "curve.png").exists() == (code == 0)
    assert capsys.readouterr().err.count("\n") == (code > 0)
