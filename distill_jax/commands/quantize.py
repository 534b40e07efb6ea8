"""`distill-jax quantize`: rounds the matrices of a trained model to few bits."""

import argparse
import json
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `quantize`."""
    parser.description = (
        "Rounds matrices of a trained or imported model to the nearest codes of few bits. Of text: "
        "a Hugging Face folder in the form of compressed-tensors, which transformers, vLLM, and "
        "this program's eval, generate and teacher.path read. Of images: a model folder. Recipes: "
        "int8, int4 (= int4-g128, int4-g64, int4-g32), w8a8, fp8, fp8-weight-only, q4_0, q8_0; or "
        "rules by parameter path, such as '.*/attention/.*=int8;.*/mlp/.*=int4'."
    )
    parser.epilog = (
        "example: distill-jax quantize --workdir=runs/student --recipe=int4 --out=runs/student-int4"
    )
    flags.add_workdir(parser, "folder of a finished run, or of a model")
    parser.add_argument(
        "--recipe", required=True, metavar="RECIPE", help="what is rounded to what, such as int4"
    )
    flags.add_path(
        parser,
        "--out",
        remote=True,
        required=True,
        metavar="DIR",
        help="new folder, such as runs/student-int4 or gs://bucket/student-int4",
    )
    flags.add_path(
        parser,
        "--calibration",
        remote=False,
        metavar="FILE",
        help="text (.txt, .jsonl, .parquet) on which the outputs of a decoder's matrices are kept, "
        "by GPTQ; without it every weight gets its nearest code",
    )
    parser.add_argument(
        "--calibration-rows",
        type=int,
        metavar="N",
        help="rows of 512 tokens that are read from it (default: 128)",
    )
    flags.add_which(parser)
    flags.add_trust(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the folder and prints what it holds."""
    from distill_jax.runs import export

    written = export.write_quantized(
        arguments.workdir,
        arguments.out,
        arguments.which,
        arguments.recipe,
        calibration=arguments.calibration,
        calibration_rows=arguments.calibration_rows,
    )
    print(json.dumps(written))
    return 0
