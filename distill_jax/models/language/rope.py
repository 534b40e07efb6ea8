"""Rotary embeddings in a config.json: where versions 4 and 5 of transformers write them.

Version 4 has `rope_theta`, `rope_scaling` and, for Gemma 3, `rope_local_base_freq`; version 5 has
`rope_parameters`, which Gemma 3 nests by layer type. Version 5 reads the form of version 4, so that
is the one written.
"""

from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.models.language.config import DecoderConfig, RopeScaling

KEYS = frozenset(
    (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "partial_rotary_factor",
    )
)
_THETA = 10000.0
_THETAS = {"gemma3_text": 1_000_000.0, "mixtral": 1_000_000.0}
_NAMES = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_max_positions",
}
_USED = {
    "default": (),
    "linear": ("factor",),
    "llama3": tuple(_NAMES),
}


def read(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields rope_theta, rope_scaling and rope_local_theta of a config.json.

    Raises:
      UsageError: a scaling or an option of one that is not implemented, or values that contradict
        each other.
    """
    gemma3 = content.get("model_type") == "gemma3_text"
    default = _THETAS.get(content.get("model_type"), _THETA)
    partial = content.get("partial_rotary_factor")
    if partial not in (None, 1):
        raise UsageError(f"partial_rotary_factor={partial!r}: not implemented; expected 1.0")
    # As in transformers, rope_scaling goes before rope_parameters, if both are there.
    option = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    given = content.get(option) or {}
    if not isinstance(given, Mapping):
        raise UsageError(f"{option}={given!r:.60}: expected an object or null")
    local = {}
    if "full_attention" in given or "sliding_attention" in given:
        if not gemma3 or given.keys() - {"full_attention", "sliding_attention"}:
            raise UsageError(f"{option}={given!r:.80}: expected one set of values for all layers")
        given, local = given.get("full_attention") or {}, given.get("sliding_attention") or {}
    theta, scaling = _one(given, content, content.get("rope_theta", default), option)
    fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    if gemma3:
        near, stretched = _one(local, content, content.get("rope_local_base_freq", _THETA), option)
        if stretched is not None:
            raise UsageError(
                f"{option}.sliding_attention={local!r:.60}: not implemented; expected no scaling "
                "in layers with a window"
            )
        fields["rope_local_theta"] = near
    elif content.get("rope_local_base_freq") is not None:
        theta = content["rope_local_base_freq"]
        raise UsageError(f"rope_local_base_freq={theta!r}: expected it for Gemma 3 alone")
    return fields


def _one(
    given: Mapping[str, Any], content: Mapping[str, Any], theta: float, option: str
) -> tuple[float, RopeScaling | None]:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _USED:
        raise UsageError(
            f"{option}.rope_type={kind!r}: not implemented; expected one of {', '.join(_USED)}"
        )
    used = _USED[kind]
    for name, value in given.items():
        neutral = value is None or (name == "partial_rotary_factor" and value == 1)
        if name not in (*used, "rope_type", "type", "rope_theta") and not neutral:
            raise UsageError(
                f"{option}.{name}={value!r:.60}: not implemented for rope_type={kind!r}; "
                f"expected {', '.join(used) or 'none'} beside it"
            )
    theta = given.get("rope_theta", theta)
    if kind == "default":
        return theta, None
    values = {_NAMES[name]: given[name] for name in used if name in given}
    missing = [name for name in used if name not in given]
    if missing == ["original_max_position_embeddings"]:
        values["original_max_positions"] = content.get("max_position_embeddings")
    elif missing:
        raise UsageError(f"{option}.{missing[0]} is missing; expected it for rope_type={kind!r}")
    return theta, RopeScaling(kind, **values)


def written(config: DecoderConfig) -> dict[str, Any]:
    """The keys of version 4 for a config with rotary positions, which version 5 reads too."""
    keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    scaling = config.rope_scaling
    if scaling is not None:
        used = {name: getattr(scaling, _NAMES[name]) for name in _USED[scaling.kind]}
        keys["rope_scaling"] = {"rope_type": scaling.kind, **used}
    if config.family == "gemma3_text":
        keys["rope_local_base_freq"] = config.rope_local_theta
    return keys
