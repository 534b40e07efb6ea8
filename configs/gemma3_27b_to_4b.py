"""Gemma 3 27B -> 4B, the text parts, planned for 64 chips of TPU v5e.

    distill-jax plan  --config=configs/gemma3_27b_to_4b.py --target=tpu:v5e:8x8
    distill-jax train --config=configs/gemma3_27b_to_4b.py --workdir=runs/gemma3_27b_to_4b \\
        --config.teacher.path=/models/TEACHER --config.student.path=/models/STUDENT \\
        --config.data.path=corpus.jsonl

32 rows of 2,048 tokens a step, bfloat16, KL(teacher || student) over the whole vocabulary at T = 1.
The paths of this file hold shapes alone (shapes/README.md), enough to plan; what a plan said is in
docs/plan.md. It has not been run: no figure stands here.
"""

import recipes


def get_config():
    return recipes.from_shapes("gemma-3-27b", "gemma-3-4b", fsdp=16, tensor=4)
