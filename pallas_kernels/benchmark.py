"""The command `python -m pallas_kernels.benchmark`. Its code is in `tools/benchmark.py`."""

from pallas_kernels.tools.benchmark import main

if __name__ == "__main__":
    main()
