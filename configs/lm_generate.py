"""A language model writes responses to prompts, for a student to be trained on.

    distill-jax generate --config=configs/lm_generate.py --workdir=runs/text \\
        --config.teacher.path=/models/Llama-3.1-8B-Instruct --config.prompts=prompts.jsonl

A line of the prompts has "prompt", or "messages" that the tokenizer's chat template turns into one.
The responses are in runs/text/responses.jsonl; configs/lm_sequence.py trains on them. What was
stopped goes on with the same command, to the same bytes. `generate.temperature=0` is greedy.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.teacher = dict(path="")
    config.prompts = ""
    config.generate = dict(
        temperature=1.0, top_k=0, top_p=0.95, max_new_tokens=512, batch_size=32, shard=1024,
        compute_dtype="bfloat16",
    )  # fmt: skip
    return config
