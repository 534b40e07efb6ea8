"""A language model trained on what its teacher wrote: sequence-level distillation.

    distill-jax train --config=configs/lm_sequence.py --workdir=runs/sequence \\
        --config.student.path=/models/Llama-3.2-1B --config.data.path=runs/text/responses.jsonl

The cross-entropy with the responses alone, prompts are read but not learned (Kim and Rush, 2016,
"Sequence-level knowledge distillation", section 3.2). Teacher and student may have tokenizers of
their own. Responses that were written elsewhere are read as they are: JSONL with "prompt" and
"response". No figure of ours stands here yet: it has not been run at this size.
"""

import recipes


def get_config():
    config = recipes.fine_tuning(epochs=2.0, evaluations=8)
    config.method = dict(name="supervised")
    return config
