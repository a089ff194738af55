"""Plain transformers answers the questions of a job. Run it as `python -I -S answers_of_transformers.py JOB OUT PATH…`.

It must not find basic-lite, for an exported model is opened by people who don't have it. So only PATHs are searched.
"""

import json
import sys
from importlib.util import find_spec


def main(job_path: str, out_path: str, *paths: str) -> None:
    sys.path += paths
    # Found only now.
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(job["folder"])
    model = AutoModelForImageTextToText.from_pretrained(job["folder"], dtype=torch.float32).eval()
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
        best = torch.cat(out.logits).log_softmax(-1).topk(2).values  # [tokens, 2]
        answers.append(
            {
                "text": processor.decode(ids, skip_special_tokens=True).strip(),
                "ids": ids.tolist(),
                "logprobs": best[:, 0].tolist(),
                "margins": (best[:, 0] - best[:, 1]).tolist(),
            }
        )
    facts = {"version": transformers.__version__, "found_basic_lite": find_spec("basic_lite") is not None}
    with open(out_path, "w", encoding="utf-8") as file:
        json.dump({**facts, "answers": answers}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
