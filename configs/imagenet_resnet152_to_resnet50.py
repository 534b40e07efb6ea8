"""ImageNet: resnet152 -> resnet50 by soft targets, to be planned for eight chips.

    distill-jax plan  --config=configs/imagenet_resnet152_to_resnet50.py --target=gpu:h100:8
    distill-jax train --config=configs/imagenet_resnet152_to_resnet50.py --workdir=runs/resnet50 \\
        --config.teacher.path=WORKDIR

Batch 1,024, SGD with momentum at 0.4 after five epochs of warm-up, cosine, 90 epochs, weight decay
5e-5, bfloat16 (Goyal et al. 2017, "Accurate, large minibatch SGD", scale the rate alike). Views are
random resized crops of at least 8 % of an image (Szegedy et al. 2015) and flips; evaluation sees
the middle of an image whose shorter side is 224. It has not been run: no figure stands here.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.data = dict(
        name="imagenet2012",
        image_size=224,
        validation=10_000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment=dict(resized_crop=0.08, flip=True),
        workers=16,
    )
    config.student = dict(name="imagenet_resnet50")
    # A model's name is enough for a plan; train takes the workdir of a run or of an import.
    config.teacher = dict(path="imagenet_resnet152", compute_dtype="bfloat16", look_ahead=1)
    config.method = dict(name="soft_target", temperature=4.0, hard_weight=0.5, soft_weight=0.5)
    config.optimizer = dict(
        name="sgd", learning_rate=0.4, nesterov=True, weight_decay=5e-5, decay_mask="kernels"
    )
    config.schedule = dict(name="cosine", warmup_epochs=5.0)
    config.training = dict(epochs=90.0, batch_size=1024, compute_dtype="bfloat16")
    config.evaluation = dict(batch_size=1024)
    return config
