"""The student that a config describes: loaded from a folder, made of layers, or new from sizes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from distill_jax.errors import UsageError, unknown
from distill_jax.models.functional import split
from distill_jax.models.language import lora, quantized
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.construct import ShardingFn, create, from_layers, from_params
from distill_jax.models.language.decoder import ComputeOptions, Decoder
from distill_jax.models.language.huggingface.reading import load
from distill_jax.models.registry import typed_options
from distill_jax.storage import path_problem

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
    "lora_rank": 0,
    "lora_alpha": 16.0,
    "lora_targets": lora.TARGETS,
}
_SIZES = ("dim", "depth", "heads", "mlp_dim")


def check_student(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the options of a student as far as possible without the teacher.

    Args:
      given: some of STUDENT_OPTIONS: "path", a Hugging Face folder to start from; "layers", which
        layers to take, of the path if there is one, else of the teacher; or the sizes of a new
        model, which has experts in every layer if the teacher has any ("mlp_dim" is then of one
        expert). With a
        "lora_rank" above 0 the model of the path or the layers is frozen and gets adapters.

    Returns:
      All of STUDENT_OPTIONS.

    Raises:
      UsageError: an unknown option, one of a wrong type, sizes together with a path or layers,
        adapters of a new model, or options of adapters without a rank.
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
    _check_adapters(options, sizes)
    if wrong := path_problem(options["path"], remote=True):
        raise UsageError(f"student.path={options['path']!r}: expected {wrong}")
    return options


def _check_adapters(options: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    rank, alpha, targets = (options[f"lora_{name}"] for name in ("rank", "alpha", "targets"))
    if rank < 0:
        raise UsageError(f"student.lora_rank={rank}: expected a positive int, or 0 for no adapters")
    if not rank:
        for name in ("lora_alpha", "lora_targets"):
            if options[name] != STUDENT_OPTIONS[name]:
                raise UsageError(
                    f"student.{name}={options[name]!r}: has no meaning with student.lora_rank=0; "
                    f"expected {STUDENT_OPTIONS[name]!r}"
                )
        return
    if sizes:
        raise UsageError(
            f"student.lora_rank={rank}: a new model has nothing to adapt; expected student.path "
            "or student.layers in place of sizes"
        )
    if alpha <= 0:
        raise UsageError(f"student.lora_alpha={alpha!r}: expected a number above 0")
    for name in targets:
        if name not in lora.TARGETS:
            raise unknown("student.lora_targets", name, lora.TARGETS, "matrix")
    if not targets or len(set(targets)) != len(targets):
        raise UsageError(
            f"student.lora_targets={targets!r}: expected some of {', '.join(lora.TARGETS)}, "
            "each once"
        )


def open_student(
    options: Mapping[str, Any],
    teacher: Decoder | None,
    vocab_size: int,
    *,
    seed: int,
    dtype: DTypeLike,
    sharding_fn: ShardingFn | None = None,
    load: Callable[..., Decoder] = load,
    remat: str = "none",
    attention: str = "auto",
    mesh: Mesh | None = None,
) -> Decoder:
    """Makes the student.

    Args:
      options: from `check_student`.
      teacher: to take layers from, and the template of a new model; None without a teacher.
      vocab_size: of a new model.
      seed: of the parameters of a new model, or of the adapters.
      dtype: the compute dtype. Trained parameters are float32, frozen ones have this dtype.
      sharding_fn: the sharding of each parameter; by default all are on JAX's default device.
      load: reads a folder; `load_zeros` where only shapes are needed.
      remat: of `Decoder`, as are `attention` and `mesh`.
      attention: which implementation computes the attention.
      mesh: over which activations are sharded.

    Raises:
      UsageError: the folder cannot be used, layers are to be taken from a teacher that is missing
        or quantized, or the adapters do not fit.
    """
    rank = options["lora_rank"]
    param_dtype = dtype if rank else jnp.float32
    compute = ComputeOptions(dtype=dtype, remat=remat, attention=attention, mesh=mesh)
    if options["path"]:
        model = load(
            options["path"],
            key="student.path",
            param_dtype=param_dtype,
            sharding_fn=sharding_fn,
            **compute,
        )
        if rank and quantized.is_quantized(model):
            raise UsageError(
                f"student.lora_rank={rank}: student.path={options['path']!r} is quantized; "
                "expected a folder that is not"
            )
        if options["layers"]:
            model = from_layers(model, options["layers"], **compute)
    elif options["layers"]:
        model = _of_teacher(options["layers"], teacher, param_dtype, compute)
    else:
        return create(
            _of_sizes(options, teacher, vocab_size),
            seed=seed,
            sharding_fn=sharding_fn,
            **compute,
        )
    if not rank:
        return model
    return lora.adapt(
        model, rank=rank, alpha=options["lora_alpha"], targets=options["lora_targets"], seed=seed
    )


def _of_teacher(
    layers: tuple[int, ...],
    teacher: Decoder | None,
    param_dtype: DTypeLike,
    compute: ComputeOptions,
) -> Decoder:
    if teacher is None:
        raise UsageError(
            f"student.layers={layers!r}: there is no teacher to take them from; "
            "expected student.path or teacher.path"
        )
    if quantized.is_quantized(teacher):
        raise UsageError(
            f"student.layers={layers!r}: teacher.quantize='int8' has rounded the teacher's; "
            "expected student.path=TEACHER with it, or teacher.quantize='none'"
        )
    model = from_layers(teacher, layers, **compute)
    params = {name: value.astype(param_dtype) for name, value in split(model)[1].items()}
    return from_params(model.config, params, **compute)


def _of_sizes(
    options: Mapping[str, Any], teacher: Decoder | None, vocab_size: int
) -> DecoderConfig:
    """The sizes of the options; every other field is the teacher's, or Llama's without one."""
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
    template = teacher.config
    scale = template.embedding_scale
    if scale == template.dim**0.5:  # Gemma's, which depends on the width
        scale = options["dim"] ** 0.5
    return template.replace(
        **sizes, attention_scale=None, embedding_scale=scale, dense=(False,), dense_mlp_dim=0
    )
