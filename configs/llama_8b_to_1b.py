"""Llama 3.1 8B -> Llama 3.2 1B, planned for one GPU of 80 GB.

    distill-jax plan  --config=configs/llama_8b_to_1b.py --target=gpu:h100:1
    distill-jax train --config=configs/llama_8b_to_1b.py --workdir=runs/llama_8b_to_1b \\
        --config.teacher.path=/models/TEACHER --config.student.path=/models/STUDENT \\
        --config.data.path=corpus.jsonl

8 rows of 2,048 tokens a step, bfloat16, KL(teacher || student) over the whole vocabulary at T = 1;
it takes cuDNN's attention, which comes with `pip install '.[cuda]'`, to fit. The paths of this file
hold shapes alone (shapes/README.md), enough to plan; what a plan said is in docs/plan.md. It has
not been run: `python -m experiments.scale.measured` is to compare its plan with its steps.
"""

import recipes


def get_config():
    config = recipes.from_shapes("llama-3.1-8b", "llama-3.2-1b", fsdp=1, tensor=1)
    config.training.batch_size = 8
    config.training.remat = "dots"
    config.evaluation.batch_size = 8
    return config
