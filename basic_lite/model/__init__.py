"""Base weights → NF4 LLM with LoRA, float32 projector, frozen vision tower; audited part by part."""
