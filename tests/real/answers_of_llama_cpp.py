"""llama.cpp answers the questions of a job, in this process, through its server's chat completions: JOB OUT."""

import base64
import json
import sys

import xllamacpp

JOB, OUT = sys.argv[1:]
with open(JOB, encoding="utf-8") as file:
    job = json.load(file)
params = xllamacpp.CommonParams()
params.model.path = job["model"]["text"]
params.mmproj.path = job["model"]["mmproj"]
params.use_jinja = True
params.n_ctx = 1024
params.n_parallel = 1
params.warmup = False
params.verbosity = 0
params.cpuparams.n_threads = 1
# As exact as it can be: what is left are the file's types and llama.cpp's arithmetic.
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
answers = []
for prompt in job["prompts"]:
    with open(prompt["image"], "rb") as file:
        picture = base64.b64encode(file.read()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": prompt["question"]},
    ]
    reply = server.handle_chat_completions(
        {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": job["max_tokens"],
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 1,
            "cache_prompt": False,
        }
    )
    if "choices" not in reply:
        raise SystemExit(f"llama.cpp gave no answer: {reply}")
    choice = reply["choices"][0]
    tokens = choice["logprobs"]["content"]
    answers.append(
        {
            "text": choice["message"]["content"].strip(),
            "ids": [token["id"] for token in tokens],
            "logprobs": [token["logprob"] for token in tokens],
        }
    )
with open(OUT, "w", encoding="utf-8") as file:
    json.dump({"version": xllamacpp.__version__, "answers": answers}, file)
