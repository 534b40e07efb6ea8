"""A language model trained on what its teacher wrote: sequence-level distillation.

    distill-jax train --config=configs/lm_sequence.py --workdir=runs/sequence \\
        --config.student.path=/models/Llama-3.2-1B --config.data.path=runs/text/responses.jsonl

The cross-entropy with the responses alone, prompts are read but not learned (Kim and Rush, 2016,
"Sequence-level knowledge distillation", section 3.2). Teacher and student may have tokenizers of
their own. Responses that were written elsewhere are read as they are: JSONL with "prompt" and
"response". No figure of ours stands here yet: it has not been run at this size.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.data = dict(name="text", length=2048, validation=0.01)
    config.student = dict(name="decoder")
    config.method = dict(name="supervised")
    config.optimizer = dict(
        name="adamw", learning_rate=2e-5, b2=0.95, weight_decay=0.1, clip_norm=1.0
    )
    config.schedule = dict(name="cosine", warmup_epochs=0.02, end_factor=0.1)
    config.training = dict(epochs=2.0, batch_size=32, compute_dtype="bfloat16", remat="full")
    config.evaluation = dict(every_epochs=0.25, batch_size=32, select="nll")
    config.checkpoint = dict(every_epochs=0.25)
    return config
