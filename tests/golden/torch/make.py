"""Writes the files of this folder, with PyTorch: they are what the tests compare with.

    python make.py --repdistiller=DIR --mdistiller=DIR --akamaster=DIR

needs torch, torchvision, timm and safetensors, and checkouts of HobbitLong/RepDistiller,
megvii-research/mdistiller and akamaster/pytorch_resnet_cifar10. Written with torch 2.14.1,
torchvision 0.29.1 and timm 1.0.31.

NET.json tells of one public network its names and shapes and what it answers when its arrays, and
two images, are `fill(name, shape)`. The other files hold small tensors of many kinds.
"""

import argparse
import collections
import importlib.util
import json
import pathlib
import sys
import types
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Pseudo-random float32 numbers, a function of name and shape alone, of a size that suits.

    Weights are uniform with variance 4 / 3 / fan in, scales and variances lie in 0.5 .. 1.5.
    """
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    uniform = ((x >> np.uint64(40)).astype(np.float64) / 2**24).reshape(shape)
    if len(shape) == 1:
        positive = name.endswith(("weight", "running_var"))
        values = 0.5 + uniform if positive else 0.4 * uniform - 0.2
    else:
        fan_in = 1 if shape[0] == 1 or name == "images" else np.prod(shape[1:])
        values = (2 * uniform - 1) * np.sqrt(4 / fan_in)
    return values.astype(np.float32)


def networks(repdistiller: str, mdistiller: str, akamaster: str) -> dict[str, tuple]:
    """File name: (our name, our options, sides of the image, PyTorch's network)."""
    import timm
    import torch
    import torchvision

    def read(name: str, path: str) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    sys.path.insert(0, repdistiller)
    from models import model_dict

    resnet = read("resnet", f"{akamaster}/resnet.py")
    mobilenet = read("mobilenetv1", f"{mdistiller}/mdistiller/models/imagenet/mobilenetv1.py")
    first = mobilenet.MobileNetV1()
    first.fc = torch.nn.Linear(first.fc.in_features, 5)
    small = {"img_size": 32, "num_classes": 5}
    theirs = {
        "resnet8": "resnet8",
        "resnet50": "ResNet50",
        "wrn_16_2": "wrn_16_2",
        "vgg11": "vgg11",
        "mobilenet_v2": "MobileNetV2",
        "shufflenet_v1": "ShuffleV1",
        "shufflenet_v2": "ShuffleV2",
    }
    return {
        **{
            name: (name, {}, 32, model_dict[other](num_classes=5)) for name, other in theirs.items()
        },
        "resnet8_pad": (
            "resnet8",
            {"shortcut": "pad"},
            32,
            resnet.ResNet(resnet.BasicBlock, [1, 1, 1], num_classes=5),
        ),
        "imagenet_resnet18": (
            "imagenet_resnet18",
            {},
            64,
            torchvision.models.resnet18(num_classes=5),
        ),
        "mobilenet_v1": ("mobilenet_v1", {}, 224, first),
        "deit_tiny": (
            "deit_tiny",
            {},
            32,
            timm.create_model("deit_tiny_distilled_patch16_224", **small),
        ),
        "deit_tiny_plain": (
            "deit_tiny",
            {"distillation_token": False},
            32,
            timm.create_model("deit_tiny_patch16_224", **small),
        ),
    }


def write_network(file: str, name: str, options: dict, side: int, network) -> None:
    import torch

    state = network.state_dict()
    names = {key: list(value.shape) for key, value in state.items()}
    floating = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    for key, value in floating.items():
        value.copy_(torch.from_numpy(fill(key, tuple(value.shape))))
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(fill("images", (2, 3, side, side))))
    logits = logits[0] if isinstance(logits, tuple) else logits
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in names.items())
    (HERE / f"{file}.json").write_text(
        f'{{"name": "{name}", "options": {json.dumps(options)}, "side": {side},\n'
        f'"logits": {json.dumps([[float(f"{x:.7g}") for x in row] for row in logits.tolist()])},\n'
        f'"state": {{\n{lines}\n}}}}\n'
    )


def tensors() -> dict:
    """Every dtype, and every way to lie in memory that a state dict may have."""
    import torch

    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7
    state = collections.OrderedDict(
        whole=base,
        transposed=base.transpose(0, 2),
        strided=base[1:, ::2, 1:4],
        row=base[2, 3],
        expanded=torch.tensor([[1.5], [2.5]]).expand(2, 3),
        scalar=torch.tensor(3.25),
        empty=torch.zeros(0, 4),
        channels_last=torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(torch.tensor([0.1, 0.2])),
    )
    for kind in "bfloat16 half float double int8 uint8 int16 int32 int64 bool complex64".split():
        state[kind] = torch.tensor([[0, 1, 2], [3, 100, 1]]).to(getattr(torch, kind))
    state._metadata = {"": {"version": 1}}
    return state


def checkpoint() -> dict:
    """What a training program saves: the state dict of a wrapped network among other things."""
    import torch

    network = torch.nn.DataParallel(
        torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, groups=2), torch.nn.BatchNorm2d(4))
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(2, 2, 3, 3)).sum().backward()
    optimizer.step()
    return {
        "opt": argparse.Namespace(lr=0.05, milestones=[150, 180], device=torch.device("cpu")),
        "epoch": 240,
        "best_acc": torch.tensor([72.5]),
        "accuracy": np.float64(72.34),
        "optimizer": optimizer.state_dict(),
        "model": network.state_dict(),
    }


def main() -> None:
    import torch
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("repdistiller", "mdistiller", "akamaster"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for file, network in networks(**vars(arguments)).items():
        write_network(file, *network)

    state, full = tensors(), checkpoint()
    for end, new in (("", True), ("_legacy", False)):
        options = {"_use_new_zipfile_serialization": new}
        torch.save(state, HERE / f"tensors{end}.pth", **options)
        torch.save(full, HERE / f"checkpoint{end}.pth.tar", **options)
    torch.save(torch.nn.Linear(2, 1), HERE / "module.pth")
    whole = {key: value.detach().contiguous().clone() for key, value in state.items()}
    save_file(whole, HERE / "tensors.safetensors")
    (HERE / "tensors.safetensors").chmod(0o644)

    def plain(value: torch.Tensor) -> np.ndarray:
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()

    np.savez_compressed(HERE / "tensors.npz", **{key: plain(v) for key, v in state.items()})
    model = {key.removeprefix("module."): plain(v) for key, v in full["model"].items()}
    np.savez_compressed(HERE / "checkpoint.npz", **model)


if __name__ == "__main__":
    main()
