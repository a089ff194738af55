"""What a score is: one metric a file, each as its benchmark defines it; their names are in ``named.py``."""
