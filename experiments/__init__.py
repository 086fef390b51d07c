"""What a user runs: `python -m experiments` lists the commands."""
