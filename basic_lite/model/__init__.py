"""Base weights → NF4 LLM with LoRA, float32 projector, frozen vision tower; audited part by part."""

import logging

# bitsandbytes 0.50 warns at import, on CPUs with AVX512-BF16, that an optional inference kernel isn't installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
