"""Recipes that several configs share: the parts of a methods section that repeat."""

import pathlib

from ml_collections import ConfigDict


def digits(role: str) -> ConfigDict:
    """The demo: soft targets as regularizers, Hinton, Vinyals & Dean 2015, section 6, in miniature.

    The teacher learns from all the digits, the students from a tenth of them. The students share
    everything but the loss; learning rate and weight decay are the best ones of the baseline. All
    values were chosen on validation splits (experiments/demo/README.md).

    Args:
      role: "teacher", "baseline", "smoothed" (the baseline with label smoothing) or "student".
    """
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="digits", validation=200, augment=dict(crop_padding=1))
    config.training = dict(batch_size=64)
    config.checkpoint = dict(every_epochs=0)  # a run takes seconds
    config.logging = dict(every_steps=20, tensorboard=False)
    config.mesh = dict(data=1)  # too small to be worth splitting
    if role == "teacher":
        config.student = dict(name="cnn", channels=(32, 64), dense=128, dropout=0.3)
        config.optimizer = dict(name="adamw", learning_rate=0.003, weight_decay=0.01)
        config.training.epochs = 40.0
        config.evaluation = dict(every_epochs=4.0)
        return config
    config.data.fraction = 0.1  # 110 of the 1,097 images
    config.student = dict(name="mlp", widths=(64,))
    config.optimizer = dict(name="adamw", learning_rate=0.03, weight_decay=0.3)
    config.training.epochs = 480.0  # of two steps each
    config.evaluation = dict(every_epochs=48.0)
    if role == "smoothed":
        config.method = dict(label_smoothing=0.02)
    if role == "student":
        config.teacher = dict(path="runs/digits_teacher")
        config.method = dict(name="soft_target", temperature=4.0, hard_weight=0.0, soft_weight=1.0)
    return config


def mnist_hinton(role: str) -> ConfigDict:
    """Networks and training of Hinton, Vinyals & Dean 2015, section 3, on MNIST.

    The paper gives the architecture, the dropout, the weight constraint and the jitter. The rates
    of dropout, the optimizer, its schedule, the number of epochs and the weights of the losses are
    ours; experiments/hinton2015/search.py compares some on 5,000 held-out images. The final
    networks learn from all 60,000. Students have Adam, because a soft loss at T = 20 is many times
    steeper than the cross-entropy: one rate of SGD does not serve both.

    Args:
      role: "teacher", "baseline" or "student".
    """
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="mnist", validation=0, mean=(0.0,), std=(1.0,))
    config.optimizer = dict(name="adamw", learning_rate=0.003)  # no weight decay: Adam
    config.schedule = dict(name="cosine", warmup_epochs=1.0)
    config.training = dict(batch_size=256)
    config.evaluation = dict(every_epochs=5.0, batch_size=1000)
    config.checkpoint = dict(every_epochs=5.0)
    config.logging = dict(every_steps=100)
    if role == "teacher":
        config.student = dict(name="mlp", widths=(1200, 1200), dropout=0.5, input_dropout=0.2)
        config.data.augment = dict(crop_padding=2)
        config.optimizer = dict(
            name="sgd", learning_rate=0.2, momentum=0.9, nesterov=True, max_norm=3.0
        )
        config.training = dict(batch_size=512, epochs=400.0)
    else:
        config.student = dict(name="mlp", widths=(800, 800))
        config.training.epochs = 40.0
    if role == "student":
        config.teacher = dict(path="runs/mnist_teacher")
        config.training.epochs = 200.0
        config.method = dict(name="soft_target", temperature=20.0, hard_weight=0.5, soft_weight=1.0)
    return config


def cifar10_hinton(role: str) -> ConfigDict:
    """The CIFAR-10 recipe of the Knowledge-Distillation-Zoo's table: resnet110 to resnet20.

    200 epochs, batch 128, SGD with Nesterov's momentum 0.9, rate 0.1 divided by 10 after epochs 100
    and 150, weight decay 1e-4 on everything, 4 pixels of reflected padding, random crop and flip.
    Cross-entropy has weight 1; the soft loss, T = 4, weight 0.1 (its lambda).

    Args:
      role: "teacher", "baseline" or "student".
    """
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        name="cifar10",
        validation=0,  # as published: all 50,000 images, last epoch
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment=dict(crop_padding=4, padding_mode="reflect", flip=True),
    )
    config.student = dict(name="resnet110" if role == "teacher" else "resnet20")
    config.optimizer = dict(
        name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    config.schedule = dict(name="step", milestones=(100.0, 150.0), factor=0.1)
    config.training = dict(batch_size=128, epochs=200.0)
    config.evaluation = dict(batch_size=1000)
    config.checkpoint = dict(every_epochs=5.0)
    if role == "student":
        config.teacher = dict(path="runs/cifar10_teacher")
        config.method = dict(name="soft_target", temperature=4.0, hard_weight=1.0, soft_weight=0.1)
    return config


def fine_tuning(epochs: float, evaluations: int) -> ConfigDict:
    """A language model goes on from its checkpoint: AdamW at 2e-5, cosine to a tenth, bfloat16.

    Values that fine-tuning commonly uses; none is tuned for a model of ours.

    Args:
      epochs: over the rows of the text.
      evaluations: how many, and as many checkpoints, at even distances.
    """
    config = ConfigDict()
    config.data = dict(name="text", length=2048, validation=0.01)
    config.student = dict(name="decoder")
    config.optimizer = dict(
        name="adamw", learning_rate=2e-5, b2=0.95, weight_decay=0.1, clip_norm=1.0
    )
    config.schedule = dict(name="cosine", warmup_epochs=0.02 * epochs, end_factor=0.1)
    config.training = dict(epochs=epochs, batch_size=32, compute_dtype="bfloat16", remat="full")
    every = epochs / evaluations
    config.evaluation = dict(every_epochs=every, batch_size=32, select="nll")
    config.checkpoint = dict(every_epochs=every)
    return config


def from_shapes(teacher: str, student: str, fsdp: int, tensor: int) -> ConfigDict:
    """A large pair as `shapes/` describes it, to be planned; `fine_tuning` with a fifth of labels.

    Args:
      teacher: name of a folder of shapes/.
      student: likewise.
      fsdp: chips that share the batch and the parameters' shards.
      tensor: chips that share a layer.
    """
    config = fine_tuning(epochs=1.0, evaluations=10)
    config.teacher = dict(path=shape(teacher), compute_dtype="bfloat16")
    config.student.path = shape(student)
    config.method = dict(name="soft_target", temperature=1.0, hard_weight=0.2, soft_weight=0.8)
    config.training.steps = 10_000
    config.mesh = dict(fsdp=fsdp, tensor=tensor)
    return config


def shape(name: str) -> str:
    """The folder of a model in shapes/."""
    return str(pathlib.Path(__file__).with_name("shapes") / name)
