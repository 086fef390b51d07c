"""What a user runs: training, evaluation, tables and kernel comparison."""
