"""Networks by name, as pure functions of flat dictionaries, and their files.

    module = create("resnet20", input_shape=(32, 32, 3), num_classes=100, seed=1)
    graphdef, params, stats = split(module)
    outputs, stats = apply(graphdef, params, stats, images, train=True, key=key)

Weights of public PyTorch implementations: `from_pytorch(read_state_dict(path), spec)`.
`registry` describes how to add a family (one file in `vision`). Left out on purpose: losses,
optimizers and devices. A network is given normalised pixels, whatever their source.
"""

from distill_jax.models import vision as _vision  # noqa: F401  (registers the image classifiers)
from distill_jax.models.files.checksums import NAME as CHECKSUMS
from distill_jax.models.files.image_shapes import infer_image_shape
from distill_jax.models.files.model_folder import (
    Saved,
    fingerprint,
    fingerprint_of,
    load,
    save,
    saved_identity,
)
from distill_jax.models.files.pytorch import from_pytorch
from distill_jax.models.files.state_dict import read_state_dict
from distill_jax.models.functional import Flat, apply, merge, output_shapes, parameter_count, split
from distill_jax.models.outputs import Outputs, with_all_taps
from distill_jax.models.registry import abstract, check_options, create, names, options, register
from distill_jax.models.spec import Spec, normalise

__all__ = [
    "CHECKSUMS",
    "Flat",
    "Outputs",
    "Saved",
    "Spec",
    "abstract",
    "apply",
    "check_options",
    "create",
    "fingerprint",
    "fingerprint_of",
    "from_pytorch",
    "infer_image_shape",
    "load",
    "merge",
    "names",
    "normalise",
    "options",
    "output_shapes",
    "parameter_count",
    "read_state_dict",
    "register",
    "save",
    "saved_identity",
    "split",
    "with_all_taps",
]
