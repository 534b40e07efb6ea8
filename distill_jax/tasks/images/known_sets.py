"""What a plan must know of an image set that need not be here: its shape, classes and size.

From the sets' own pages, as TFDS has them. Any other set is opened, as a run opens it.
"""

from ml_collections import ConfigDict

from distill_jax import data
from distill_jax.errors import UsageError
from distill_jax.tasks.images.data import load_splits, train_ids_of

#: name -> (channels, side of an image where all are alike or 0, classes, training examples)
KNOWN = {
    "mnist": (1, 28, 10, 60_000),
    "fashion_mnist": (1, 28, 10, 60_000),
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "imagenet2012": (3, 0, 1000, 1_281_167),
}


def describe(config: ConfigDict) -> tuple[data.Info, int, int]:
    """What a config's data are: their description, the examples trained on, those of the split.

    Raises:
      UsageError: the set is not known, and not here either; or its images have no one size.
    """
    name, side = config.data.name, config.data.image_size
    if name not in KNOWN:
        train = load_splits(config)["train"]
        return train.info, len(train_ids_of(config, train)[0]), len(train)
    channels, own_side, classes, count = KNOWN[name]
    if not (side or own_side):
        raise UsageError(
            f"data.image_size=0: the images of {name} have many sizes; expected one, such as 224"
        )
    shape = (side or own_side,) * 2 + (channels,)
    info = data.Info(name=name, image_shape=shape, num_classes=classes, class_names=())
    chosen = config.data.validation
    kept = count - (chosen if isinstance(chosen, int) else round(chosen * count))
    return info, max(round(kept * config.data.fraction), 1), count
