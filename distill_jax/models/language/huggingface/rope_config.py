"""The keys of the rotary embedding in a config.json of transformers, versions 4 and 5.

Version 4 has `rope_theta`, `rope_scaling` and, for Gemma 3, `rope_local_base_freq`; version 5 has
`rope_parameters`, which Gemma 3 nests by layer type. Both are read. Version 4's form is written,
because version 5 reads it too.
"""

from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.models.language.config import DecoderConfig, RopeScaling
from distill_jax.models.language.huggingface.family_table import Family

#: All keys of the rotary embedding.
KEYS = frozenset(
    (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "partial_rotary_factor",
    )
)
_LOCAL_THETA = 10000.0  # Gemma 3's default in layers with a window
# An option of a scaling -> the field of `RopeScaling`.
_OPTIONS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_max_positions",
}
# The options of each rope_type.
_USED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": tuple(_OPTIONS),
}


def read(content: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields rope_theta, rope_scaling and rope_local_theta of a config.json.

    Raises:
      UsageError: a scaling or an option of one that is not implemented, or values that contradict
        each other.
    """
    partial = content.get("partial_rotary_factor")
    if partial not in (None, 1):
        raise UsageError(f"partial_rotary_factor={partial!r}: not implemented; expected 1.0")
    # As in transformers, rope_scaling takes precedence over rope_parameters.
    option = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    given = content.get(option) or {}
    if not isinstance(given, Mapping):
        raise UsageError(f"{option}={given!r:.60}: expected an object or null")
    local: Mapping[str, Any] = {}
    if "full_attention" in given or "sliding_attention" in given:
        if not family.local_rope or given.keys() - {"full_attention", "sliding_attention"}:
            raise UsageError(f"{option}={given!r:.80}: expected one set of values for all layers")
        given, local = given.get("full_attention") or {}, given.get("sliding_attention") or {}
    default = content.get("rope_theta", family.rope_theta)
    theta, scaling = _read_one(given, content, default, option)
    fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    if family.local_rope:
        default = content.get("rope_local_base_freq", _LOCAL_THETA)
        local_theta, local_scaling = _read_one(local, content, default, option)
        if local_scaling is not None:
            raise UsageError(
                f"{option}.sliding_attention={local!r:.60}: not implemented; expected no scaling "
                "in layers with a window"
            )
        fields["rope_local_theta"] = local_theta
    elif content.get("rope_local_base_freq") is not None:
        theta = content["rope_local_base_freq"]
        raise UsageError(f"rope_local_base_freq={theta!r}: expected it for Gemma 3 alone")
    return fields


def _read_one(
    given: Mapping[str, Any], content: Mapping[str, Any], theta: float, option: str
) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one set of values.

    Args:
      given: the set, the value of `option` or of a layer type in it.
      content: the whole file.
      theta: the base if the set has none.
      option: the key of the file, for errors.
    """
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
                f"expected {', '.join(used) or 'none'} with it"
            )
    theta = given.get("rope_theta", theta)
    if kind == "default":
        return theta, None
    values = {_OPTIONS[name]: given[name] for name in used if name in given}
    missing = [name for name in used if name not in given]
    if missing == ["original_max_position_embeddings"]:
        values["original_max_positions"] = content.get("max_position_embeddings")
    elif missing:
        raise UsageError(f"{option}.{missing[0]} is missing; expected it for rope_type={kind!r}")
    return theta, RopeScaling(kind, **values)


def write(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The keys of version 4 for a config with rotary positions."""
    keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    scaling = config.rope_scaling
    if scaling is not None:
        used = {name: getattr(scaling, _OPTIONS[name]) for name in _USED[scaling.kind]}
        keys["rope_scaling"] = {"rope_type": scaling.kind, **used}
    if family.local_rope:
        keys["rope_local_base_freq"] = config.rope_local_theta
    return keys
