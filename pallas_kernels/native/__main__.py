"""`python -m pallas_kernels.native` builds the library; see `build.py`."""

from pallas_kernels.native.build import main

if __name__ == "__main__":
    main()
