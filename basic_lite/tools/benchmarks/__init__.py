"""The files of published benchmarks as questions, one benchmark a file; ``known.py`` tells which a file is."""
