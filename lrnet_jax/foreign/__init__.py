"""Weights in the form of other libraries: read `names.py` first, then `convert.py`, `files.py`."""
