"""Llama 3.1 70B -> 8B, planned for 64 chips of TPU v5p.

    distill-jax plan  --config=configs/llama_70b_to_8b.py --target=tpu:v5p:4x4x4
    distill-jax train --config=configs/llama_70b_to_8b.py --workdir=runs/llama_70b_to_8b \\
        --config.teacher.path=/models/TEACHER --config.student.path=/models/STUDENT \\
        --config.data.path=corpus.jsonl

32 rows of 2,048 tokens a step, bfloat16, KL(teacher || student) over the whole vocabulary at T = 1.
The paths of this file hold shapes alone (shapes/README.md), enough to plan; what a plan said is in
docs/plan.md. It has not been run: no figure stands here.
"""

import recipes


def get_config():
    return recipes.from_shapes("llama-3.1-70b", "llama-3.1-8b", fsdp=16, tensor=4)
