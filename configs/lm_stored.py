"""A language model distilled from what its teacher said once: stored draws of each token.

    distill-jax precompute --config=configs/lm_stored.py --workdir=runs/answers \\
        --config.teacher.path=/models/Llama-3.1-8B --config.data.path=corpus.jsonl
    distill-jax train --config=configs/lm_stored.py --workdir=runs/lm \\
        --config.teacher.store=runs/answers --config.student.path=/models/Llama-3.2-1B \\
        --config.data.path=corpus.jsonl

50 draws a token from the teacher at T = 1 (Anshumann et al. 2025, RS-KD), whose mean gradient is
that of the whole forward KL: 250 bytes a token of 128,256 ids, against 257 kB of all of them in
float16. `store --answers=top_k:64` keeps the likeliest ids instead. The loss is that of
configs/lm_logits.py; runs with other seeds, students and learning rates read the same store, and no
teacher is in their memory. No figure of ours stands here yet: it has not been run at this size.
"""

import recipes


def get_config():
    config = recipes.fine_tuning(epochs=1.0, evaluations=10)
    config.teacher = dict(compute_dtype="bfloat16")
    config.method = dict(name="soft_target", temperature=1.0, hard_weight=0.1, soft_weight=0.9)
    return config
