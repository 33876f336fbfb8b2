"""Runs that diverge: the objective says how its learned learning rate has changed, and what to lower."""

import pytest
from made_up import make_spec
from tiny_runs import command

from dd_plugins.objectives.bptt import BPTT
from dd_plugins.objectives.haba import HaBaMatching
from dd_plugins.objectives.mtt import MTT

EXPERTS = ["objective.experts=2", "objective.training_epochs=2", "objective.expert_epochs=1"]
EXPERTS += ["objective.max_start_epoch=1", "objective.syn_steps=2"]
TINY = ["network.width=4", "protocol.network.width=4", "protocol.train.epochs=1", "protocol.trials=1"]


def told(tmp_path, capsys, *settings, method="mtt", code=1):
    """What a run that diverges says."""
    words = ["run", "--method", method, "--dataset", "digits", "--ipc", 5, "--steps", 20, "--out", tmp_path / "runs"]
    sets = [word for text in (*TINY, *EXPERTS, *settings) for word in ("--set", text)]
    assert command(*words, *sets, "--device", "cpu", "--checkpoint-seconds", 0) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_learned_rate_that_becomes_negative_stops_the_run(tmp_path, capsys):
    message = told(tmp_path, capsys, "objective.lr_lr=10")
    assert message.startswith("dd-bench: the learning rate of the SGD steps is negative; ")
    assert "the learned learning rate began at 0.01, its latest values are " in message
    latest = message.partition("latest values are ")[2].partition(";")[0].split(", ")
    assert float(latest[-1]) < 0
    assert "an objective.lr_lr below 10, or an objective.lr_floor, may help" in message
    (checkpoint,) = tmp_path.glob("runs/*/condense.safetensors")
    assert f"the last good checkpoint is {checkpoint}" in message


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("haba", ["objective.lr_lr=1e6"], "an objective.lr_lr below 1e+06 may help"),
        ("mtt", ["objective.start_lr=1e30"], "began at 1e+30, its latest values are 1e+30; a smaller optimizer.lr or"),
    ],
)
def test_a_loss_that_is_not_finite_says_what_the_rate_did(method, settings, expected, tmp_path, capsys):
    message = told(tmp_path, capsys, *settings, method=method)
    assert message.startswith("dd-bench: NaN or infinite loss at step ")
    assert expected in message


@pytest.mark.parametrize("objective", [MTT, HaBaMatching])
def test_the_latest_rates_are_those_of_sgd_with_momentum(objective):
    made = objective(make_spec(), {"start_lr": 0.5, "lr_lr": 0.1, "lr_momentum": 0.5, "lr_floor": None})
    rate, velocity, course = 0.5, 0.0, []
    for gradient in (1.0, -3.0, -40.0, -100.0, float("nan")):
        made._learn_lr(gradient)
        velocity = 0.5 * velocity + gradient
        rate -= 0.1 * velocity
        course.append(f"{rate:.4g}")
    assert f"began at 0.5, its latest values are {', '.join(course[1:4])}; " in made.diagnosis()
    assert "an objective.lr_lr below 0.1, or an objective.lr_floor, may help" in made.diagnosis()


def test_a_rate_that_stayed_points_elsewhere():
    assert "a smaller optimizer.lr or objective.start_lr may help" in MTT(make_spec()).diagnosis()
    assert "objective.network_lr below 0.01" in BPTT(make_spec()).diagnosis()
