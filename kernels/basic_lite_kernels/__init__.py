"""The four operations of BASIC: ``direction_loss``, ``row_scaling``, ``vocab_kl`` and ``attention_mass``."""
