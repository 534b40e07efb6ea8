"""A language model distilled into a student whose matrices are 4-bit in every forward pass.

    distill-jax train --config=configs/lm_quantization_aware.py --workdir=runs/lm_int4 \\
        --config.teacher.path=/models/Llama-3.1-8B --config.student.path=runs/lm/model \\
        --config.data.path=corpus.jsonl

Quantization-aware distillation (NVIDIA 2026, arXiv:2601.20088): a full-precision teacher,
KL(teacher || student) over the whole vocabulary at T = 1, and no cross-entropy. The student starts
from what was distilled before, here runs/lm of lm_logits.py, and the teacher may be that student
itself: then only the loss of rounding is trained away. Learning rate 1e-5 with a cosine and at most
1,000 steps are the defaults of NVIDIA's ModelOpt (examples/llm_qat, 2026-08). First look at
`distill-jax quantize`: where it loses less than 1 %, ModelOpt's advice is to stop there. What is
saved in runs/lm_int4/model are the integers and scales that were trained. No figure of ours stands
here yet: it has not been run at this size.
"""

import recipes


def get_config():
    config = recipes.fine_tuning(epochs=1.0, evaluations=10)
    config.student.quantize = "int4"
    config.teacher = dict(compute_dtype="bfloat16")
    config.method = dict(name="soft_target", temperature=1.0, hard_weight=0.0, soft_weight=1.0)
    config.optimizer.update(learning_rate=1e-5, weight_decay=0.0)
    config.training.steps = 1000
    return config
