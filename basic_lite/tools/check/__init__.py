"""``basic-lite check``: the doctor of data, before any training."""
