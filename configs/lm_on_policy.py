"""A language model distilled on what it writes itself: on-policy, generalized distillation (GKD).

    distill-jax train --config=configs/lm_on_policy.py --workdir=runs/on_policy \\
        --config.teacher.path=/models/Llama-3.1-8B-Instruct \\
        --config.student.path=/models/Llama-3.2-1B-Instruct --config.data.path=instructions.jsonl

In half of the steps the student continues the prompts of its batch and the teacher judges every
token of that; in the others the text's own responses are read (Agarwal et al. 2024, algorithm 1,
lambda = 0.5). The divergence is the JSD with beta = 0.9, near the reverse KL: what the teacher
would never write costs most. No figure of ours stands here yet: it has not been run at this size.
"""

import recipes


def get_config():
    config = recipes.fine_tuning(epochs=1.0, evaluations=10)
    config.data.packing = "single"  # a row is a prompt and its response
    config.data.long = "cut"
    config.data.length = 1024
    config.rollout = dict(probability=0.5, max_new_tokens=256)
    config.teacher = dict(compute_dtype="bfloat16")
    config.method = dict(
        name="jensen_shannon", beta=0.9, temperature=1.0, hard_weight=0.0, soft_weight=1.0
    )
    return config
