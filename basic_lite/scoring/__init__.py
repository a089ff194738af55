"""Questions, and how answers to them are scored. It knows nothing of training, and asks no model."""
