"""The three operations of BASIC: ``direction_loss``, ``vocab_kl`` and ``attention_mass``."""
