"""`distill-jax export`: writes a trained model for other libraries."""

import argparse
import json
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `export`."""
    parser.description = (
        "Writes the student of a finished run, or an imported model, for other libraries. Of text: "
        "a Hugging Face folder with its tokenizer, which transformers loads, or a GGUF file, which "
        "llama.cpp loads. Of images: a folder "
        "with the state dict of PyTorch, under the names of public implementations, as "
        "model.safetensors or model.npz."
    )
    parser.epilog = "example: distill-jax export --workdir=runs/a --out=exported"
    flags.add_workdir(parser, "folder of the run")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="format: huggingface, gguf or compressed-tensors of text; safetensors, npz, "
        "quantized, onnx or stablehlo of images (default: the first one of the kind)",
    )
    flags.add_path(
        parser,
        "--out",
        remote=True,
        required=True,
        metavar="DIR",
        help="new folder, such as exported or gs://bucket/exported, or new file, such as "
        "model.gguf",
    )
    parser.add_argument(
        "--type",
        metavar="NAME",
        help="type of the matrices in a GGUF file: f32, f16, bf16, q8_0 or q4_0 (default: f16)",
    )
    parser.add_argument(
        "--recipe",
        metavar="RECIPE",
        help="with --format=compressed-tensors of a model that is not quantized: as of "
        "`distill-jax quantize`",
    )
    parser.add_argument(
        "--licence",
        default="",
        metavar="NAME",
        help="licence of the model, for the card in README.md, as the Hugging Face Hub names it, "
        "such as apache-2.0 (default: that of the weights that it began with; else unknown)",
    )
    parser.add_argument(
        "--teacher-permits",
        action="store_true",
        help="state that the owner of a teacher permits to train other models on its outputs, "
        "where its licence forbids it; the card records it",
    )
    flags.add_which(parser)
    flags.add_trust(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the folder and prints what it holds."""
    from distill_jax.runs import export

    written = export.write(
        arguments.workdir,
        arguments.out,
        arguments.which,
        arguments.format,
        type=arguments.type,
        recipe=arguments.recipe,
        licence=arguments.licence,
        teacher_permits=arguments.teacher_permits,
    )
    print(json.dumps(written))
    return 0
