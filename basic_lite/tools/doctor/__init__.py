"""``basic-lite doctor``: what this machine has, what is missing or slow, and what mends it."""
