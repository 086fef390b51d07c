"""The printed tables."""

from experiments import tables


def test_prints_ours_beside_the_papers(capsys):
    tables.main(["--ablations"])
    printed = capsys.readouterr().out
    assert "| lrnet50 | 23.336 | 4.031 | 23.3 | 4.3 |" in printed
    assert "| lrnet26 | channels_per_group -1, width 105 |" in printed
    header = printed.splitlines()[0]
    assert "MACs (G)" in header
    assert "paper: FLOPs (G)" in header
    assert len({line.count("|") for line in printed.split("\n\n")[0].splitlines()}) == 1
