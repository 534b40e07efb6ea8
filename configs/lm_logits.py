"""A language model distilled by its teacher's distributions over the vocabulary, token by token.

    distill-jax train --config=configs/lm_logits.py --workdir=runs/lm \\
        --config.teacher.path=/models/Llama-3.1-8B --config.student.path=/models/Llama-3.2-1B \\
        --config.data.path=corpus.jsonl

The paths are Hugging Face folders (config.json, safetensors, tokenizer.json); the text is .txt,
.jsonl or .parquet. KL(teacher || student) over the whole vocabulary at T = 1, and the cross-entropy
with the text, in bfloat16. No figure of ours stands here yet: it has not been run at this size.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.data = dict(name="text", length=2048, validation=0.01)
    config.student = dict(name="decoder")
    config.method = dict(name="soft_target", temperature=1.0, hard_weight=0.1, soft_weight=0.9)
    config.teacher = dict(compute_dtype="bfloat16")
    config.optimizer = dict(
        name="adamw", learning_rate=2e-5, b2=0.95, weight_decay=0.1, clip_norm=1.0
    )
    config.schedule = dict(name="cosine", warmup_epochs=0.02, end_factor=0.1)
    config.training = dict(epochs=1.0, batch_size=32, compute_dtype="bfloat16", remat="full")
    config.evaluation = dict(every_epochs=0.1, batch_size=32, select="nll")
    config.checkpoint = dict(every_epochs=0.1)
    return config
