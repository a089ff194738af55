"""A model as GGUF files for llama.cpp and Ollama, written from a finished llava-hf folder."""

from basic_lite.tools.export.gguf.write import GgufFiles, check_gguf, write_gguf

__all__ = ["GgufFiles", "check_gguf", "write_gguf"]
