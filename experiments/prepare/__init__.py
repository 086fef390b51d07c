"""Parts of the commands that prepare data sets."""
