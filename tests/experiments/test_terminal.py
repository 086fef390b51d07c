"""A run on a terminal: evaluated, stopped by Ctrl-C and resumed."""

from tests.experiments.killable_jobs import command, environment
from tests.experiments.on_terminal import watch

CHANGES = {
    "train.epochs": "0.08",  # 100 steps
    "train.eval_every_epochs": "0.04",
    "train.log_every": "10",
    "train.checkpoint_every": "1000",
}


def test_a_terminal_shows_one_bar(tmp_path):
    """No bar is left behind, nothing is glued to its end, and it is whole."""
    run = command(tmp_path / "run", CHANGES), environment(1, tmp_path / "cache")
    lines = watch(*run, columns=80, stop_at=b"evaluation at step 50")
    (bar,) = [line for line in lines if "|" in line]
    assert bar.startswith(" 5")
    assert len(bar) <= 77
    before, after = lines[lines.index(bar) - 1], lines[lines.index(bar) + 1 :]
    assert before == "SIGINT: saving after this step; Ctrl-C again stops at once"
    assert after[0].startswith("stopped by SIGINT after step 5")
    assert after[1].startswith("to resume: ")
    assert not [line for line in lines if "^C" in line]

    lines = watch(*run, columns=60)
    (bar,) = [line for line in lines if "|" in line]
    assert bar.startswith("100 % |███")
    assert "100/100  loss " in bar
    assert [line for line in lines if line.startswith("trained in ")]
