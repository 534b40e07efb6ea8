"""A language model distilled by its teacher's distributions over the vocabulary, token by token.

    distill-jax train --config=configs/lm_logits.py --workdir=runs/lm \\
        --config.teacher.path=/models/Llama-3.1-8B --config.student.path=/models/Llama-3.2-1B \\
        --config.data.path=corpus.jsonl

The paths are Hugging Face folders (config.json, safetensors, tokenizer.json); the text is .txt,
.jsonl or .parquet. KL(teacher || student) over the whole vocabulary at T = 1, and the cross-entropy
with the text, in bfloat16. No figure of ours stands here yet: it has not been run at this size.
"""

import recipes


def get_config():
    config = recipes.fine_tuning(epochs=1.0, evaluations=10)
    config.teacher = dict(compute_dtype="bfloat16")
    config.method = dict(name="soft_target", temperature=1.0, hard_weight=0.1, soft_weight=0.9)
    return config
