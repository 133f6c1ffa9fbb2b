"""``inventory demo``: the whole service in one process, with stock to look at."""
