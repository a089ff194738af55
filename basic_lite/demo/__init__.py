"""The embedded small world: pictures, questions, and the tiny checkpoints that the demo starts from."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
# transformers checkpoints, as AutoModel, AutoImageProcessor and AutoTokenizer read them.
VISION = ASSETS / "vision"
LLM = ASSETS / "llm"
