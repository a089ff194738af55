"""The training loop: forward with taps open → losses → backward → checkpoint."""
