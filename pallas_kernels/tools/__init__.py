"""Tools around the operator: shapes, comparison, benchmark, tuning, inspection of kernels."""
