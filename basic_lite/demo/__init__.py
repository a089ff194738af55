"""The embedded small world: pictures, questions, and the tiny checkpoints that the demo starts from."""

from pathlib import Path

# `vision` and `llm` there are transformers checkpoints, as AutoModel, AutoImageProcessor and AutoTokenizer read them.
ASSETS = Path(__file__).parent / "assets"
