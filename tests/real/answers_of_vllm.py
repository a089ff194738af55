"""vLLM answers the questions of a job, in float32, in its own environment: JOB OUT."""

import json
import os
import sys
import time

# One process: what its children would import has nothing to do with the answers.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING")

import torch
import transformers
import vllm
from PIL import Image
from vllm import LLM, SamplingParams


def main(job_path: str, out: str) -> None:
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    started = time.monotonic()
    llm = LLM(
        job["folder"],
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 1},
    )
    ready_s = time.monotonic() - started
    sampling = SamplingParams(temperature=0, max_tokens=job["max_tokens"], logprobs=1)
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_pil", "image_pil": Image.open(prompt["image"]).convert("RGB")},
                    {"type": "text", "text": prompt["question"]},
                ],
            }
        ]
        for prompt in job["prompts"]
    ]
    answers = []
    for reply in llm.chat(conversations, sampling, use_tqdm=False):
        made = reply.outputs[0]
        logprobs = [row[chosen].logprob for row, chosen in zip(made.logprobs, made.token_ids, strict=True)]
        answers.append({"text": made.text.strip(), "ids": list(made.token_ids), "logprobs": logprobs})
    versions = {module.__name__: module.__version__ for module in (vllm, torch, transformers)}
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"versions": versions, "ready_s": ready_s, "answers": answers}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
