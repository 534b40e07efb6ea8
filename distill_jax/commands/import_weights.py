"""`distill-jax import`: turns a PyTorch state dict or a GGUF file into a model folder."""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax import storage
from distill_jax.commands import flags
from distill_jax.errors import UsageError
from distill_jax.storage import gcs

# How the errors of a model's settings begin -> the flag that gave the value.
_FLAGS = {
    r"student\.name=": "--model=",
    r"student\.(\w+)=": r"--option=\1=",
    r"spec\.num_classes=": "--classes=",
    r"spec\.input_shape=": "--image=",
    r"spec\.(\w+)=": r"--\1=",
}
# Flags that a state dict needs, and all that have a meaning for one alone.
_REQUIRED = ("model", "classes", "mean", "std")
_OF_NETWORKS = (*_REQUIRED, "image", "part", "class_names", "option")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `import`."""
    parser.description = (
        "Turns a PyTorch state dict of a vision network, or a GGUF file of a decoder, into a "
        "model folder, which teacher.path of a config accepts. Of a GGUF file it is a Hugging Face "
        "folder with tokenizer and chat template; the flags of networks have no meaning then."
    )
    parser.epilog = (
        "example: distill-jax import resnet56.pth --model=resnet56 --classes=100 "
        "--mean=0.507,0.487,0.441 --std=0.267,0.256,0.276 --workdir=teachers/resnet56"
    )
    flags.add_path(
        parser,
        "file",
        remote=False,
        metavar="FILE",
        help="state dict, such as resnet56.pth, or a GGUF file, such as model.gguf",
    )
    parser.add_argument("--model", metavar="NAME", help="network of the weights, such as resnet56")
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes, such as 100")
    parser.add_argument(
        "--mean",
        metavar="R,G,B",
        help="mean of the pixels in [0, 1] by which the network normalises, one number a channel",
    )
    parser.add_argument(
        "--std",
        metavar="R,G,B",
        help="standard deviation of the pixels in [0, 1], one number a channel",
    )
    parser.add_argument(
        "--image",
        metavar="H,W,C",
        help="shape of an image (default: by the position embedding of deit_*, 224,224 for "
        "imagenet_* with 1000 classes, 32,32 for the networks of CIFAR, and a channel for each "
        "number of --mean; asked for where that does not tell it)",
    )
    parser.add_argument(
        "--part",
        metavar="NAME",
        help="which network of a file that holds several, by the keys or the prefix that lead to "
        "it, such as state_dict_ema or module.student; . for names without a prefix",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the classes, in the order of the logits: a .txt of one name a line, or a "
        ".json list or mapping of numbers and names; without them nobody can tell whether the "
        "classes of a data set are in this order",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the network, such as shortcut=pad (shortcuts without parameters) or "
        "bn_epsilon=1e-3; may be repeated; `distill-jax train --help-config` lists those of every "
        "network with their defaults",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the numbers of a GGUF file, in the folder (default: float32, which loses nothing)",
    )
    flags.add_workdir(parser, "new folder for the model")


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Reads the weights, writes the model folder and prints what it holds."""
    from distill_jax.models.files import gguf_file

    if gguf_file.is_gguf(arguments.file):
        found = _import_gguf(arguments)
    else:
        found = _import_state_dict(arguments)
    print(json.dumps({"path": str(arguments.workdir), **found}))
    return 0


def _import_gguf(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a Hugging Face folder of a GGUF file; returns what the command prints."""
    from distill_jax.models.language import gguf

    for name in _OF_NETWORKS:
        if getattr(arguments, name):
            raise UsageError(
                f"--{name.replace('_', '-')}: has no meaning for a GGUF file; expected it for a "
                "state dict alone"
            )
    target = arguments.workdir
    with storage.holding(target, "--workdir", beside=True):
        _refuse_existing(target)
        with (
            storage.staging_folder(target, "config.json") as staging,
            storage.replacing_folder(staging, lambda name: True, "a model", "--workdir") as folder,
        ):
            return gguf.to_folder(
                arguments.file, folder, dtype=arguments.dtype or "float32", key="FILE"
            )


def _refuse_existing(target: pathlib.Path) -> None:
    """UsageError where the folder to write has something in it already."""
    if storage.is_remote(target):
        held = gcs.list_names(target)
    elif target.is_dir():
        held = sorted(path.name for path in target.iterdir())
    else:
        held = [target.name] if target.exists() else []
    if held:
        raise UsageError(f"--workdir={target}: holds {held[0]!r}; expected a new folder")


def _import_state_dict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the folder of a vision network; returns what the command prints."""
    from distill_jax import models
    from distill_jax.models.spec import unit_problem

    missing = [name for name in _REQUIRED if getattr(arguments, name) is None]
    if missing:
        raise UsageError(
            f"FILE={arguments.file}: a state dict needs "
            + ", ".join(f"--{name}" for name in missing)
            + "; expected them, or a GGUF file"
        )
    if arguments.dtype:
        raise UsageError("--dtype: has no meaning for a state dict; expected it for a GGUF file")
    mean, std = (
        flags.parse_numbers(name, getattr(arguments, name), float) for name in ("mean", "std")
    )
    for name, values in (("mean", mean), ("std", std)):
        if fault := unit_problem(name, values):
            raise UsageError(f"--{name}={getattr(arguments, name)}: expected {fault}")
    if not arguments.file.exists():
        raise UsageError(f"FILE={arguments.file}: no such file; expected a state dict of PyTorch")
    shape = _parse_shape(arguments.image) if arguments.image else _inferred_shape(arguments, mean)
    with flags.naming_flags(_FLAGS):
        spec = models.Spec(
            name=arguments.model,
            options=models.check_options(arguments.model, _parse_options(arguments.option)),
            input_shape=shape,
            num_classes=arguments.classes,
            mean=mean,
            std=std,
            class_names=_read_class_names(arguments.class_names, arguments.classes),
        )
    saved = models.load(arguments.file, spec=spec, part=arguments.part or "", key="FILE")
    with storage.holding(arguments.workdir, "--workdir", beside=True):
        if storage.is_remote(arguments.workdir) and gcs.list_names(arguments.workdir):
            raise UsageError(
                f"--workdir={arguments.workdir}: there are objects under this name; expected a new "
                "one"
            )
        with storage.staging_folder(arguments.workdir, "model.json") as folder:
            fingerprint = models.save(folder, spec, saved.params, saved.stats)
    return {
        "model": arguments.model,
        "image": shape,
        "parameters": models.parameter_count(saved.params),
        "fingerprint": fingerprint,
    }


def _read_class_names(path: str | None, count: int) -> tuple[str, ...]:
    """The names in a file, by class; () without a file."""
    if path is None:
        return ()
    location = f"--class-names={path}"
    try:
        content = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
        found = json.loads(content) if path.endswith(".json") else content.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{location}: cannot be read: {error}") from None
    if isinstance(found, list) and not path.endswith(".json"):
        found = [line.strip() for line in found if line.strip()]
    names = _by_class(found)
    if names is None or len(names) != count:
        arrived = "no such list" if names is None else f"{len(names)} names"
        raise UsageError(
            f"{location}: holds {arrived}; expected {count} names, one for each of --classes, as "
            'lines, ["cat", …], {"0": "cat", …}, {"cat": 0, …} or {"0": ["n02123045", "cat"], …}'
        )
    return names


def _by_class(found: Any) -> tuple[str, ...] | None:
    """The names that a list or a mapping gives the classes 0, 1, …; None where it gives none."""
    if isinstance(found, dict):
        if all(type(value) is int for value in found.values()):  # {"cat": 0}
            found = {str(number): name for name, number in found.items()}
        numbers = [str(number) for number in range(len(found))]
        if set(numbers) != set(found):
            return None
        found = [found[number] for number in numbers]
    if not isinstance(found, list):
        return None
    found = [names[-1] if isinstance(names, list) and names else names for names in found]
    return tuple(found) if all(isinstance(name, str) for name in found) else None


def _inferred_shape(arguments: argparse.Namespace, mean: Sequence[float]) -> tuple[int, int, int]:
    """The images of the network, where its weights or its name tell their shape."""
    from distill_jax import models

    found = None
    if arguments.model in models.names():  # else the next step says which there are
        found = models.infer_image_shape(
            arguments.file,
            arguments.model,
            arguments.classes,
            len(mean),
            part=arguments.part or "",
            key="FILE",
        )
        if found is None:
            raise UsageError(
                f"--image: neither the name of {arguments.model} nor its weights tell the size of "
                f"its images; expected the one that it was trained on, such as 224,224,{len(mean)}"
            )
    return found or (32, 32, len(mean))


def _parse_shape(text: str) -> tuple[int, int, int]:
    """(32, 32, 3) of "32,32,3"."""
    numbers = flags.parse_numbers("image", text, int)
    if len(numbers) != 3:
        raise UsageError(f"--image={text}: expected height, width and channels, such as 32,32,3")
    height, width, channels = numbers
    if height in (1, 3, 4) and min(width, channels) > 4:
        raise UsageError(
            f"--image={text}: has its channels first; expected height, width and channels, such as "
            f"{width},{channels},{height}"
        )
    return height, width, channels


def _parse_options(given: Sequence[str]) -> dict[str, Any]:
    """{"shortcut": "pad"} of ["shortcut=pad"]."""
    from distill_jax import config as configs

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--option={text}: expected NAME=VALUE, such as shortcut=pad")
        options[name] = configs.literal(value)
    return options
