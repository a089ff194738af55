"""Plain transformers answers the questions of a job. Run as `python -I -S … JOB OUT PATH…`: only PATHs are imported from.

It must not find basic-lite: an exported model is opened by people who don't have it.
"""

import json
import sys

JOB, OUT, *PATHS = sys.argv[1:]
sys.path += PATHS
try:
    import basic_lite  # noqa: F401
except ImportError:
    found = False
else:
    found = True

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

with open(JOB, encoding="utf-8") as file:
    job = json.load(file)
torch.set_num_threads(1)
processor = AutoProcessor.from_pretrained(job["model"]["folder"])
model = AutoModelForImageTextToText.from_pretrained(job["model"]["folder"], dtype=torch.float32).eval()
answers = []
for prompt in job["prompts"]:
    content = [{"type": "image", "path": prompt["image"]}, {"type": "text", "text": prompt["question"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(
        **inputs,
        max_new_tokens=job["max_tokens"],
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    logprobs = torch.cat(out.logits).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    text = processor.decode(ids, skip_special_tokens=True).strip()
    answers.append({"text": text, "ids": ids.tolist(), "logprobs": logprobs.tolist()})
with open(OUT, "w", encoding="utf-8") as file:
    json.dump({"found_basic_lite": found, "version": transformers.__version__, "answers": answers}, file)
