"""ImageNet: a ViT-g sized teacher of a billion parameters -> DeiT-S, to be planned for 16 chips.

    distill-jax plan --config=configs/imagenet_vit_giant_to_deit_small.py --target=tpu:v5e:4x4

AdamW at 1e-3 for a batch of 1,024, cosine after five epochs of warm-up, weight decay 0.05,
stochastic depth 0.1, mixup and random resized crops as DeiT (Touvron et al. 2021, table 9; its
crops are bicubic, these bilinear), 300 epochs, bfloat16. The teacher's parameters are in shards
over fsdp. It has not been run: no figure stands here.
"""

import pathlib

from ml_collections import ConfigDict

GIANT = pathlib.Path(__file__).with_name("models") / "vit_giant.py"


def get_config():
    config = ConfigDict()
    config.imports = (str(GIANT),)
    config.data = dict(
        name="imagenet2012",
        image_size=224,
        validation=10_000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment=dict(resized_crop=0.08, flip=True, mixup=0.8),
        workers=16,
    )
    config.student = dict(name="deit_small", drop_path=0.1)
    # A model's name is enough for a plan; train takes the workdir of a run or of an import.
    config.teacher = dict(
        path="vit_giant:patch=14:distillation_token=False", compute_dtype="bfloat16", look_ahead=1
    )
    config.method = dict(name="soft_target", temperature=1.0, hard_weight=0.0, soft_weight=1.0)
    config.optimizer = dict(
        name="adamw", learning_rate=1e-3, weight_decay=0.05, decay_mask="kernels"
    )
    config.schedule = dict(name="cosine", warmup_epochs=5.0)
    config.training = dict(epochs=300.0, batch_size=1024, compute_dtype="bfloat16")
    config.evaluation = dict(batch_size=1024)
    config.mesh = dict(fsdp=16)
    return config
