"""The recipe's data keys, and names in a run's data.json. Nothing heavy is imported here."""

TRAIN, EVAL = "data.train", "data.eval"
# Keys of the run folder's data.json: positions of records, from 0, in all sources of a data key.
BROKEN, HELD_OUT, HELD_OUT_PICTURES = "broken_pictures", "held_out", "held_out_pictures"
# What a bundle's manifest says of the data: hashes of what is trained on, and of what is held out.
FINGERPRINT, HELD_OUT_FINGERPRINT = "fingerprint", "eval_fingerprint"
# How much of the evaluation data is trained on, as ``training/trained_on.py`` counts it.
KNOWN_BEFORE = "trained_on"
