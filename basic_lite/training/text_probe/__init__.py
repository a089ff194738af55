"""The text probe: what fine-tuning on pictures has cost the LLM of its own ability with text."""
