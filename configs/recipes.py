"""Recipes that several configs share: the parts of a methods section that repeat."""

from ml_collections import ConfigDict


def digits(role: str) -> ConfigDict:
    """The demo: 8 x 8 digits, a convolutional teacher and a student of 32 hidden units.

    Every value was chosen on validation splits (experiments/demo/README.md). The three students
    share all of it but the loss; rate and weight decay are the best ones of the baseline. Shifts
    help the teacher; they hurt 32 units, which have no room for nine places of each stroke.

    Args:
      role: "teacher", "baseline", "smoothed" (the baseline with label smoothing) or "student".
    """
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="digits", validation=200)
    config.optimizer = dict(name="adamw", weight_decay=0.1)
    config.training = dict(batch_size=64)
    config.evaluation = dict(every_epochs=5.0, batch_size=500)
    config.checkpoint = dict(every_epochs=0)  # a run takes seconds
    config.logging = dict(every_steps=20, tensorboard=False)
    config.mesh = dict(data=1)  # too small to be worth splitting
    if role == "teacher":
        config.student = dict(name="cnn", channels=(32, 64), dense=128, dropout=0.3)
        config.data.augment = dict(crop_padding=1)
        config.optimizer.learning_rate = 0.01
        config.training.epochs = 30.0
    else:
        config.student = dict(name="mlp", widths=(32,))
        config.optimizer.learning_rate = 0.03
        config.training.epochs = 60.0
    if role == "smoothed":
        config.method = dict(label_smoothing=0.02)
    if role == "student":
        config.teacher = dict(path="runs/digits_teacher")
        config.method = dict(name="soft_target", temperature=4.0, hard_weight=0.0, soft_weight=1.0)
    return config


def mnist_hinton(role: str) -> ConfigDict:
    """Networks and training of Hinton, Vinyals & Dean 2015, section 3, on MNIST.

    The paper gives the architecture, the dropout, the weight constraint and the jitter; the
    optimizer, its schedule and the number of epochs are ours.

    Args:
      role: "teacher", "baseline" or "student".
    """
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="mnist", validation=5000, mean=(0.0,), std=(1.0,))
    config.optimizer = dict(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True)
    config.schedule = dict(name="cosine", warmup_epochs=1.0)
    config.training = dict(batch_size=100, epochs=40.0)
    config.evaluation = dict(every_epochs=5.0, batch_size=1000)
    config.checkpoint = dict(every_epochs=5.0)
    config.logging = dict(every_steps=100)
    if role == "teacher":
        config.student = dict(name="mlp", widths=(1200, 1200), dropout=0.5, input_dropout=0.2)
        config.data.augment = dict(crop_padding=2)
        config.optimizer.max_norm = 3.0
        config.training.epochs = 60.0
    else:
        config.student = dict(name="mlp", widths=(800, 800))
    if role == "student":
        config.teacher = dict(path="runs/mnist_teacher")
        config.method = dict(name="soft_target", temperature=20.0, hard_weight=0.1, soft_weight=0.9)
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
