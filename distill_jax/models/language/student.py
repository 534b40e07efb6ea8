"""The decoder that a config asks for as its student: from a folder, from layers, or from sizes."""

from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.models.language.checkpoint import load
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.decoder import Decoder, create, from_layers
from distill_jax.models.registry import typed_options

STUDENT_NAME = "decoder"  # of `student.name`

#: The options `student.*` of a config, with their defaults.
STUDENT_OPTIONS: dict[str, Any] = {
    "path": "",
    "layers": (),
    "dim": 0,
    "depth": 0,
    "heads": 0,
    "kv_heads": 0,
    "mlp_dim": 0,
}
_SIZES = ("dim", "depth", "heads", "mlp_dim")


def check_student(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a student, checked as far as they can be without the teacher.

    Args:
      given: some of STUDENT_OPTIONS: "path", a Hugging Face folder to start from; "layers", which
        layers of it, or of the teacher where there is no path; or the sizes of a new model.

    Raises:
      UsageError: an unknown option, one of a wrong type, or sizes beside a path or layers.
    """
    options = typed_options(STUDENT_NAME, STUDENT_OPTIONS, given)
    options = {**STUDENT_OPTIONS, **options}
    sizes = {name: options[name] for name in (*_SIZES, "kv_heads") if options[name]}
    for name, value in sizes.items():
        if value < 0:
            raise UsageError(f"student.{name}={value}: expected a positive int")
    taken = next((name for name in ("path", "layers") if options[name]), "")
    if sizes and taken:
        name = next(iter(sizes))
        raise UsageError(
            f"student.{name}={sizes[name]}: student.{taken}={options[taken]!r} has sizes of its "
            "own; expected one of them"
        )
    missing = [name for name in _SIZES if not options[name]]
    if not taken and missing:
        raise UsageError(
            f"student.{missing[0]}={options[missing[0]]}: expected student.path, student.layers, "
            f"or all of {', '.join('student.' + name for name in _SIZES)}"
        )
    return options


def open_student(
    options: Mapping[str, Any], teacher: Decoder | None, vocab_size: int, *, seed: int, **kept: Any
) -> Decoder:
    """The student of checked options.

    Args:
      options: from `check_student`.
      teacher: the teacher, for layers of its own, and for the family of a new model.
      vocab_size: of a new model.
      seed: of the parameters of a new model.
      **kept: dtype, remat and attention of `Decoder`.

    Raises:
      UsageError: the folder cannot be used, or layers are asked of a teacher that is not there.
    """
    if options["path"]:
        model = load(options["path"], key="student.path", **kept)
        return from_layers(model, options["layers"], **kept) if options["layers"] else model
    if options["layers"]:
        if teacher is None:
            raise UsageError(
                f"student.layers={options['layers']!r}: there is no teacher to take them from; "
                "expected student.path or teacher.path"
            )
        return from_layers(teacher, options["layers"], **kept)
    return create(_of_sizes(options, teacher, vocab_size), seed=seed, **kept)


def _of_sizes(
    options: Mapping[str, Any], teacher: Decoder | None, vocab_size: int
) -> DecoderConfig:
    """Sizes of the options, all else as the teacher has it, or as Llama."""
    heads = options["heads"]
    if options["dim"] % heads:
        raise UsageError(
            f"student.heads={heads}: expected a divisor of student.dim={options['dim']}"
        )
    sizes = {
        "vocab_size": vocab_size,
        "dim": options["dim"],
        "layers": options["depth"],
        "heads": heads,
        "kv_heads": options["kv_heads"] or heads,
        "head_dim": options["dim"] // heads,
        "mlp_dim": options["mlp_dim"],
    }
    if teacher is None:
        return DecoderConfig(**sizes, tied=True)
    own = teacher.config
    # Gemma's embeddings are scaled by the root of the width.
    scale = options["dim"] ** 0.5 if own.embedding_scale == own.dim**0.5 else own.embedding_scale
    return own.replace(**sizes, attention_scale=None, embedding_scale=scale)
