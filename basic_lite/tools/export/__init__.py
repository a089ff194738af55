"""``basic-lite export``: a trained model as a folder that other programs open, with a proof that it answers alike."""
