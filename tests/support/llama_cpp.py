"""llama.cpp in this process, by the package `xllamacpp`: what a GGUF file means is what it computes from it."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its text, its tokens, and for each the log-probabilities of the likeliest in its place.

    The server holds tokens back while they are part of a character, and their probabilities then stand in another
    place. So where every probability counts, one plain token is forced (``say``): the probabilities are those before it
    was.
    """

    text: str
    ids: list[int]
    logprobs: list[dict[int, float]]
    prompt_tokens: int


class LlamaCpp:
    """A server over one folder of GGUF files; it ends with the object."""

    def __init__(self, folder: Path, *, vision: bool = True, context: int = 512) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(folder / "text.gguf")
        if vision:
            params.mmproj.path = str(folder / "mmproj.gguf")
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = 1
        params.warmup = False
        params.verbosity = 0
        # Flash attention and a cache of 16 bit round; a comparison wants neither.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(params)

    def after(self, ids: list[int], *, say: int, likeliest: int) -> dict[int, float]:
        """Log-probabilities of what follows a prompt of token ids; for a server without vision."""
        request = {"prompt": ids, "n_predict": 1, "n_probs": likeliest, "logit_bias": [[say, _FORCED]]}
        return _answer(self._server.handle_completions(request | _GREEDY)).logprobs[0]

    def asked(
        self, messages: list[dict[str, Any]], *, tokens: int = 12, likeliest: int = 5, say: int | None = None
    ) -> Answer:
        """The answer to a dialogue; a picture in it is a part `{"type": "image", "image": Image}`."""
        sent = [
            message | {"content": [_part(part) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ]
        request = {"messages": sent, "max_tokens": tokens, "logprobs": True, "top_logprobs": likeliest}
        if say is not None:
            request |= {"max_tokens": 1, "logit_bias": [[say, _FORCED]]}
        return _answer(self._server.handle_chat_completions(request | _GREEDY))

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text. ``special``: whether tokens are put around it, as around a prompt."""
        return list(self._post("/tokenize", content=text, add_special=special, parse_special=True)["tokens"])

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        return str(self._post("/apply-template", messages=messages)["prompt"])

    def _post(self, path: str, **content: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)


_FORCED = 1000.0
_GREEDY = {"temperature": 0, "cache_prompt": False}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    image: Image.Image = part["image"]
    file = io.BytesIO()
    image.save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": address}}


def _answer(reply: dict[str, Any]) -> Answer:
    assert "choices" in reply, reply
    choice = reply["choices"][0]
    said = choice["logprobs"]["content"]
    likely = [{one["id"]: one["logprob"] for one in token["top_logprobs"]} for token in said]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Answer(text, [token["id"] for token in said], likely, reply["usage"]["prompt_tokens"])
