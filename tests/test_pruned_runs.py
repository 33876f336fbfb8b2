"""Runs that condense too much and prune: what is stored, chosen, shared and resumed."""

import json

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import PROTOCOL, TINY, command, run

from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.store import RunFolder
from benchmark_adapters.runs.study import common, contenders
from dd_plugins.api import UsageError
from dd_plugins.engine import pruning
from dd_plugins.engine.config import resolve
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.pruning import choose

PRUNE = ["pruning.networks=1", "pruning.epochs=2", "pruning_trials=1", "pruning.grid=[0, 0.5, 1]"]
SMALL = [*TINY, *PRUNE]
OWN = {
    "hmn": [],
    "pixel": [],
    "idc": [],
    "rtp": ["parameterization.downsample=1"],
}


def pruned(out, container="hmn", prune="aum", assignments=(), **flags):
    plain = [text for text in SMALL if container == "hmn" or "warm_start" not in text]
    flags = {"method": "hmn", "parameterization": container, "pruning": prune, "ipc": 10, "steps": 2, **flags}
    return run(out, flags, [*plain, *OWN[container], *assignments])


@pytest.mark.parametrize("container", list(OWN))
def test_a_pruned_set_fits_and_its_images_are_those_of_the_larger_one(container, tmp_path):
    record = pruned(tmp_path, container)
    note = record["pruning"]
    stored = load_stored(RunFolder(tmp_path / record["id"]).synthetic)
    larger = load_stored(RunFolder(tmp_path / note["larger"]).synthetic)
    assert record["storage"]["elements"] <= record["storage"]["budget"] < larger.storage().elements
    assert stored.storage().elements == record["storage"]["elements"] == note["elements"][1]
    assert stored.budget.elements == record["storage"]["budget"]
    kept = torch.tensor(note["kept"])
    assert torch.equal(stored.labels, larger.labels[kept])
    assert torch.equal(stored.decode(), larger.decode(kept))
    assert len(set(record["images_per_class"])) == 1
    assert note["images"] == [len(larger.labels), len(kept)]
    assert record["name"].endswith(", aum")


def test_beta_is_the_best_on_validation_and_every_trial_is_kept(tmp_path):
    record = pruned(tmp_path)
    note = record["pruning"]
    tried = note["candidates"]
    assert [entry["settings"]["beta"] for entry in tried] == [0, 0.5, 1]
    assert all(len(entry["trials"]) == 1 for entry in tried)
    best = max(entry["accuracy"] for entry in tried)
    assert note["settings"]["beta"] == next(e["settings"]["beta"] for e in tried if e["accuracy"] == best)
    keys = [json.loads(line)["key"] for line in (tmp_path / record["id"] / "trials.jsonl").read_text().splitlines()]
    assert sum(key.startswith("candidate ") for key in keys) >= 1
    score = load_file(tmp_path / record["id"] / "scores.safetensors")["score"]
    assert score.shape == (note["images"][0],)


def test_the_first_of_equals_is_chosen():
    assert choose([0.1, 0.5, 0.5, 0.2]) == 1


def test_the_choice_never_sees_the_test_images(tmp_path, monkeypatch):
    seen = []
    whole = pruning.evaluate

    def recording(part, protocol, *rest):
        seen.append(protocol.split)
        return whole(part, protocol, *rest)

    monkeypatch.setattr(pruning, "evaluate", recording)
    pruned(tmp_path)
    assert set(seen) == {"validation"}


def test_prunings_share_one_larger_set_which_is_never_touched(tmp_path):
    first = pruned(tmp_path)
    larger = RunFolder(tmp_path / first["pruning"]["larger"])
    before, digest = larger.synthetic.stat().st_mtime_ns, larger.digest()
    second = pruned(tmp_path, prune="random")
    assert second["id"] != first["id"]
    assert second["pruning"]["larger"] == first["pruning"]["larger"]
    assert (larger.synthetic.stat().st_mtime_ns, larger.digest()) == (before, digest)
    assert second["pruning"]["candidates"] == []
    upper = run(tmp_path, {"method": "hmn", "parameterization": "hmn", "over_budget": 0.1, "ipc": 10, "steps": 2}, TINY)
    assert upper["id"] == first["pruning"]["larger"]
    assert upper["name"].endswith("10% over budget")
    assert upper["storage"]["elements"] > upper["storage"]["budget"]


def test_without_pruning_ids_are_what_they_were(tmp_path):
    plain = run(tmp_path, {"method": "hmn", "steps": 2}, TINY)
    again = run(tmp_path, {"method": "hmn", "steps": 2, "over_budget": 0.0}, TINY)
    assert plain["id"] == again["id"]
    assert "pruning" not in plain


def test_another_way_of_choosing_is_another_run_of_the_same_larger_set(tmp_path):
    first = pruned(tmp_path)
    second = pruned(tmp_path, assignments=["protocol.train.epochs=6"])
    assert first["id"] != second["id"]
    assert first["pruning"]["larger"] == second["pruning"]["larger"]


def test_an_interrupted_choice_goes_on(tmp_path, monkeypatch):
    whole, calls = pruning.evaluate, []

    def stopping(*arguments):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(arguments[1])
        return whole(*arguments)

    monkeypatch.setattr(pruning, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path)
    monkeypatch.setattr(pruning, "evaluate", whole)
    trained = []
    monkeypatch.setattr("dd_plugins.pruning.strategies.observe_training", lambda *a, **k: trained.append(1))
    record = pruned(tmp_path)
    assert not trained  # scores were there
    keys = [json.loads(line)["key"] for line in (tmp_path / record["id"] / "trials.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) + len([k for k in keys if not k.startswith("candidate ")]) - 1


# ---- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prune", "aum", "--over-budget", "-0.1"], "over_budget = -0.1"),
        (["--prune", "aum", "--over-budget", "30"], "over_budget = 30"),
        (["--prune", "nothing"], "nothing"),
        (["--prune", "aum", "--set", "pruning.beta=2"], "pruning.beta = 2"),
        (["--prune", "aum", "--set", "pruning.score=size"], "pruning.score = 'size'"),
        (["--prune", "aum", "--method", "haba", "--set", "data.zca=false"], "haba cannot be pruned"),
    ],
)
def test_mistakes_are_told_before_anything_is_condensed(words, told, tmp_path, capsys):
    sets = [word for text in PROTOCOL for word in ("--set", text)]
    given = ["run", *(["--param", "hmn"] if "--method" not in words else []), *words, *sets, "--ipc", "10"]
    assert command(*given, "--out", tmp_path / "runs", "--device", "cpu") == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_scores_that_are_no_numbers_keep_the_larger_set(tmp_path, monkeypatch):
    from dd_plugins.api import UsageError

    def broken(self, images, context):
        del self, context
        return torch.full(images.targets.shape, float("nan"), dtype=torch.float64)

    with monkeypatch.context() as patch:
        patch.setattr("dd_plugins.pruning.strategies.ScoreAndSelect.score", broken)
        with pytest.raises(UsageError, match="scores are NaN or infinite; the larger set is kept"):
            pruned(tmp_path)
    stored = [folder for folder in tmp_path.iterdir() if (folder / "synthetic.safetensors").exists()]
    assert len(stored) == 1
    before = (stored[0] / "synthetic.safetensors").stat().st_mtime_ns
    record = pruned(tmp_path)
    assert record["pruning"]["larger"] == stored[0].name
    assert (stored[0] / "synthetic.safetensors").stat().st_mtime_ns == before


def test_scores_of_another_set_are_made_anew(tmp_path):
    record = pruned(tmp_path)
    file = tmp_path / record["id"] / "scores.safetensors"
    score = load_file(file)["score"]
    save_file({"score": torch.zeros_like(score)}, file, {"larger": "another"})
    (tmp_path / record["id"] / "synthetic.safetensors").unlink()
    assert pruned(tmp_path)["pruning"]["kept"] == record["pruning"]["kept"]
    assert torch.equal(load_file(file)["score"], score)


# ---- coresets ------------------------------------------------------------------------------------------------------

CORESET = ["protocol.network.width=4", "protocol.train.epochs=2", "protocol.trials=1", "network.width=4", *PRUNE]


def coreset(out, *words):
    sets = [word for text in CORESET for word in ("--set", text)]
    return command("prune", *sets, *words, "--device", "cpu", "--out", out)


def records(out):
    found = [json.loads(file.read_text()) for file in out.glob("*/record.json")]
    return {record["id"]: record for record in found}


@pytest.mark.parametrize("strategy", ["aum", "ccs", "el2n", "k-center", "random"])
def test_a_coreset_is_those_training_images(strategy, tmp_path):
    from dd_plugins.datasets import load_dataset

    assert coreset(tmp_path, "--dataset", "digits", "--keep", "0.3", "--strategy", strategy) == 0
    (record,) = records(tmp_path).values()
    real = load_dataset("digits", None, torch.device("cpu"))
    kept = load_stored(tmp_path / record["id"] / "synthetic.safetensors")
    rows = torch.tensor(record["pruning"]["rows"])
    assert torch.equal(kept.pixels, real.train.pixels[rows])
    assert set(rows.tolist()) <= set(real.train.index.tolist())
    assert len(rows) == int(0.3 * len(real.train))
    counts = torch.bincount(real.train.labels)
    for have, left in zip(counts.tolist(), record["images_per_class"], strict=True):
        assert abs(left - 0.3 * have) < 1
    score = load_file(tmp_path / record["id"] / "scores.safetensors")["score"]
    assert len(score) == len(real.train)
    assert record["config"]["objective"] == {"name": "none"}
    assert len(record["scores"][0]["trials"]) == 1


def test_a_coreset_is_scored_again_and_not_selected_twice(tmp_path, monkeypatch):
    words = ["--dataset", "digits", "--keep", "0.1", "--strategy", "random"]
    assert coreset(tmp_path, *words) == 0
    (run_id,) = records(tmp_path)
    sets = ["--set", "protocol.network.width=5", "--set", "protocol.trials=1", "--set", "protocol.train.epochs=2"]
    assert command("eval", run_id, *sets, "--device", "cpu", "--out", tmp_path) == 0
    assert records(tmp_path)[run_id]["name"] == "real images, random, 10% kept"
    assert len(records(tmp_path)[run_id]["scores"]) == 2
    monkeypatch.setattr("dd_plugins.engine.pruning.Pruner.prune", lambda *_: pytest.fail("pruned again"))
    assert coreset(tmp_path, *words) == 0
    assert command("show", run_id, "--out", tmp_path) == 0


def test_a_stored_set_is_pruned_into_a_folder_of_its_own(tmp_path):
    plain = run(tmp_path, {"method": "hmn", "ipc": 10, "steps": 2}, TINY)
    before = RunFolder(tmp_path / plain["id"]).digest()
    assert coreset(tmp_path, plain["id"], "--keep", "0.8", "--strategy", "aum") == 0
    found = records(tmp_path)
    (made,) = (record for key, record in found.items() if key != plain["id"])
    stored = load_stored(tmp_path / made["id"] / "synthetic.safetensors")
    source = load_stored(tmp_path / plain["id"] / "synthetic.safetensors")
    assert torch.equal(stored.decode(), source.decode(torch.tensor(made["pruning"]["kept"])))
    assert len(stored.labels) == int(0.8 * len(source.labels))
    assert RunFolder(tmp_path / plain["id"]).digest() == before
    assert made["storage"]["elements"] < plain["storage"]["elements"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset", "digits", "--keep", "1.5"], "--keep 1.5"),
        (["--dataset", "digits", "--keep", "0"], "--keep 0"),
        (["--dataset", "digits", "--keep", "0.001", "--strategy", "random"], "with none"),
        (["nothing", "--keep", "0.5"], "no run 'nothing'"),
    ],
)
def test_what_cannot_be_kept_is_told(words, told, tmp_path, capsys):
    assert coreset(tmp_path, *words) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert len(printed.strip().splitlines()) == 1


# ---- studies -------------------------------------------------------------------------------------------------------


def test_a_study_has_all_controls_and_one_larger_set(tmp_path, capsys):
    plain = run(tmp_path, {"method": "hmn", "ipc": 10, "steps": 2}, TINY)
    sets = [word for text in ["pruning.networks=1", "pruning.epochs=2", "pruning_trials=2"] for word in ("--set", text)]
    words = ["prune-study", plain["id"], "--rates", "0.1,0.2", "--grid", "0,1", "--format", "csv", *sets]
    capsys.readouterr()
    assert command(*words, "--device", "cpu", "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(",")[0] if not line.startswith('"') else line.split('"')[1] for line in lines[1:]]
    assert names == [
        "random real", "no pruning", "aum", "hard only", "easy only", "random", "el2n, double-end",
        "forgetting, double-end", "ccs", "over budget by 10%, not pruned", "aum, 20% over",
    ]  # fmt: skip
    found = records(tmp_path)
    larger = {r["pruning"]["larger"] for r in found.values() if "pruning" in r and r["config"]["over_budget"] == 0.1}
    assert len(larger) == 1
    assert plain["id"] in found
    pictures = list(tmp_path.glob("*/study.png"))
    assert len(pictures) == 1
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--rates", "a"], ["--rates", "-1"], ["--grid", "2"], ["--grid", ""]])
def test_shares_of_a_study_are_checked(words, tmp_path, capsys):
    plain = run(tmp_path, {"method": "hmn", "ipc": 10, "steps": 2}, TINY)
    capsys.readouterr()
    assert command("prune-study", plain["id"], *words, "--out", tmp_path) == 2
    assert words[0] in capsys.readouterr().err


# ---- what a reader of the code found -------------------------------------------------------------------------------


def test_the_configuration_of_an_unpruned_run_is_pruned_as_any_other(tmp_path):
    plain = resolve({"method": "hmn", "ipc": 10})
    file = tmp_path / "plain.yaml"
    file.write_text(plain.to_yaml())
    assert resolve({"pruning": "aum"}, config_file=file).over_budget == 0.1
    pruned_file = tmp_path / "pruned.yaml"
    pruned_file.write_text(resolve({"pruning": "aum"}, config_file=file).to_yaml())
    assert resolve({}, ["pruning=null"], pruned_file) == plain


def test_a_larger_set_that_is_no_larger_is_refused(tmp_path, capsys):
    sets = [word for text in PROTOCOL for word in ("--set", text)]
    words = ["run", "--param", "pixel", "--prune", "aum", "--ipc", "1", *sets]
    assert command(*words, "--device", "cpu", "--out", tmp_path / "runs") == 2
    assert "is not one image of each class more" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_drawn_follows_the_seed_of_the_run(tmp_path):
    first, second = (pruned(tmp_path, prune="random", seed=seed) for seed in (0, 1))
    assert first["pruning"]["kept"] != second["pruning"]["kept"]
    assert (first["pruning"]["settings"]["seed"], second["pruning"]["settings"]["seed"]) == (0, 1)


def test_a_pruning_that_was_cut_off_between_its_marks_is_made_again(tmp_path):
    record = pruned(tmp_path)
    folder = RunFolder(tmp_path / record["id"])
    stages = folder.stages()
    for left in ("condense", "prune"):
        (folder.path / "stages.json").write_text(json.dumps({left: stages[left]}))
        folder.record.unlink()
        assert pruned(tmp_path)["pruning"]["kept"] == record["pruning"]["kept"]


def test_another_data_set_is_refused(tmp_path, capsys):
    plain = run(tmp_path, {"method": "hmn", "ipc": 10, "steps": 2}, TINY)
    rng = numpy.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=numpy.uint8))
                image.save(tmp_path / "data" / split / str(label) / f"{number}.png")
    capsys.readouterr()
    assert coreset(tmp_path, plain["id"], "--dataset", f"folder:{tmp_path / 'data'}", "--keep", "0.8") == 2
    assert "the set was made from digits" in capsys.readouterr().err


def test_what_cannot_be_selected_is_told_before_networks_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("dd_plugins.pruning.strategies.observe_training", lambda *_, **__: pytest.fail("trained"))
    assert coreset(tmp_path, "--dataset", "digits", "--keep", "0.002", "--strategy", "aum") == 2


@pytest.mark.parametrize("text", ["pruning.grid=[1.5]", "pruning.strategy=flipp"])
def test_settings_of_a_pruning_are_checked_early(text, tmp_path, capsys):
    assert coreset(tmp_path, "--dataset", "digits", "--keep", "0.5", "--set", text) == 2
    printed = capsys.readouterr().err
    assert any(word in printed for word in ("pruning.grid", "flipp"))


def test_too_little_pruned_of_a_set_over_its_budget_is_refused_and_more_is_not(tmp_path, capsys):
    flags = {"method": "hmn", "parameterization": "hmn", "over_budget": 0.3, "ipc": 10, "steps": 2}
    larger = run(tmp_path, flags, TINY)
    assert coreset(tmp_path, larger["id"], "--keep", "0.95", "--strategy", "random") == 1
    assert "but the budget is" in capsys.readouterr().err
    assert coreset(tmp_path, larger["id"], "--keep", "0.6", "--strategy", "random") == 0


def test_real_images_are_not_condensed(tmp_path, capsys):
    assert command("run", "--param", "real", "--device", "cpu", "--out", tmp_path / "runs") == 2
    assert "real images are not learned" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_protocol_counts_where_it_chooses_and_nowhere_else():
    def ids(prune, *assignments):
        configs = [
            resolve({"method": "hmn", "ipc": 10, "pruning": prune}, [*assignments, f"protocol.train.epochs={epochs}"])
            for epochs in (5, 6)
        ]
        return [compute_run_id(config, "x") for config in configs]

    assert len(set(ids("aum"))) == 2
    assert len(set(ids("ccs"))) == 2
    assert len(set(ids("random"))) == len(set(ids("el2n"))) == len(set(ids("aum", "pruning.beta=0.5"))) == 1


def test_rows_of_a_study_are_what_they_are_called():
    for text in ("pruning=random", "pruning.selector=top", "pruning.score=loss", "over_budget=0.2", "seed=3"):
        with pytest.raises(UsageError, match="differ in just that"):
            contenders([0.1], [0, 1], [text])
    names = [one.name for one in contenders([0.12, 0.125, 0.12], [0, 1], [])]
    assert len(names) == len(set(names))
    assert "aum, 12.5% over" in names


def test_a_study_keeps_what_was_set_to_nothing():
    config = resolve({"method": "rtp", "ipc": 10}, ["optimizer.clip_norm=null"])
    assert resolve({"seed": 0}, base=common(config)) == config


def test_the_record_tells_the_strategy_and_a_coreset_tells_no_method(tmp_path, capsys):
    record = pruned(tmp_path)
    assert record["plugins"]["pruning"]["distribution"] == "dd-plugins"
    assert coreset(tmp_path, "--dataset", "digits", "--keep", "0.2", "--strategy", "random") == 0
    (made,) = (r for r in records(tmp_path).values() if r["config"]["parameterization"]["name"] == "real")
    assert made["config"]["method"] == "none"
    assert "objective" not in made["plugins"]
    capsys.readouterr()
    assert command("show", made["id"], "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "None" not in printed
    assert "pruned by random" in printed
