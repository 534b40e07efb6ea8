"""The keys of the rotary embedding in a config.json of transformers, versions 4 and 5.

Version 4 has `rope_theta`, `rope_scaling` and, for Gemma 3, `rope_local_base_freq`; version 5 has
`rope_parameters`, which Gemma 3 nests by layer type. Both are read. Version 4's form is written,
because version 5 reads it too.
"""

import math
from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.huggingface.family_table import Family
from distill_jax.models.language.rope_scaling import RopeScaling

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
NO_ROPE = frozenset(("no_rope_layers", "no_rope_layer_interval"))  # of families that have them
_NO_ROPE_INTERVAL = 4  # SmolLM3's default
# An option of a scaling -> the field of `RopeScaling`.
_OPTIONS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_max_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
    "short_factor": "short_factors",
    "long_factor": "long_factors",
}
# Options that a file may leave out; what decides "attention_factor" then stands in `_attention`.
_MAY_LACK = frozenset(("beta_fast", "beta_slow", "truncate", "attention_factor"))
_ORIGINAL = "original_max_position_embeddings"
# The options of each rope_type.
_USED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL, "beta_fast", "beta_slow", "truncate", "attention_factor"),
    "longrope": (_ORIGINAL, "short_factor", "long_factor", "attention_factor"),
}
# Options that only say how large the attention factor is.
_ATTENTION = ("mscale", "mscale_all_dim")


def read(content: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields rope_theta, rope_scaling and rope_local_theta of a config.json.

    Raises:
      UsageError: a scaling or an option of one that is not implemented, or values that contradict
        each other.
    """
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
    theta, scaling = _read_one(given, content, default, option, family)
    fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    fields |= _read_part(given, content, family, option)
    if family.no_rope:
        fields["no_rope"] = _read_no_rope(content)
    if family.local_rope == "unscaled":
        local_theta, local_scaling = _read_one(local, content, default, option, family)
        if local_scaling is not None and local_scaling != scaling:
            raise UsageError(
                f"{option}.sliding_attention={local!r:.60}: not implemented; expected no scaling "
                "in layers with a window"
            )
        same = (local_theta, local_scaling) == (theta, scaling)
        fields["rope_local_theta"] = None if same else local_theta
    elif family.local_rope:
        default = content.get("rope_local_base_freq", _LOCAL_THETA)
        local_theta, local_scaling = _read_one(local, content, default, option, family)
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


def _read_part(
    given: Mapping[str, Any], content: Mapping[str, Any], family: Family, option: str
) -> dict[str, Any]:
    """The field rotary_dim, of `partial_rotary_factor` at the top or among the values."""
    default = 1.0 if family.partial_rotary is None else family.partial_rotary
    partial = given.get("partial_rotary_factor", content.get("partial_rotary_factor"))
    partial = default if partial is None else partial
    if family.partial_rotary is None:
        if partial != 1:
            raise UsageError(f"partial_rotary_factor={partial!r}: not implemented; expected 1.0")
        return {}
    if isinstance(partial, bool) or not isinstance(partial, int | float) or not 0 < partial <= 1:
        raise UsageError(f"partial_rotary_factor={partial!r}: expected a number in (0, 1]")
    return {"rotary_dim": int(_head_dim(content, family) * partial)}


def _head_dim(content: Mapping[str, Any], family: Family) -> int:
    own = content.get("head_dim", family.keys["head_dim"].default)
    return own or content["hidden_size"] // content["num_attention_heads"]


def _read_no_rope(content: Mapping[str, Any]) -> tuple[bool, ...]:
    layers = content["num_hidden_layers"]
    rotary = content.get("no_rope_layers")  # in spite of its name 1 where a layer rotates
    if rotary is None:
        interval = content.get("no_rope_layer_interval", _NO_ROPE_INTERVAL)
        if type(interval) is not int or interval < 1:
            raise UsageError(f"no_rope_layer_interval={interval!r}: expected a positive int")
        return tuple((i + 1) % interval == 0 for i in range(layers))
    if not isinstance(rotary, list) or len(rotary) != layers or not set(rotary) <= {0, 1}:
        raise UsageError(f"no_rope_layers={rotary!r:.80}: expected {layers} of 0 and 1")
    return tuple(not flag for flag in rotary)


def _read_one(
    given: Mapping[str, Any],
    content: Mapping[str, Any],
    theta: float,
    option: str,
    family: Family,
) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one set of values.

    Args:
      given: the set, the value of `option` or of a layer type in it.
      content: the whole file.
      theta: the base if the set has none.
      option: the key of the file, for errors.
      family: a row.
    """
    kind = given.get("rope_type", given.get("type", "default"))
    if family.partial_rotary == 1.0 and kind in ("su", "yarn"):  # Phi-3's old names
        kind = "longrope"
    if kind not in _USED:
        raise UsageError(
            f"{option}.rope_type={kind!r}: not implemented; expected one of {', '.join(_USED)}"
        )
    used = _USED[kind]
    for name, value in given.items():
        known = {*used, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
        known |= set(_ATTENTION) if kind == "yarn" else set()
        # Version 5 writes the context of a scaled model once more, next to the original one.
        known |= {"factor"} if kind == "longrope" else set()
        known |= {"max_position_embeddings"} if kind != "default" else set()
        if name not in known and value is not None:
            raise UsageError(
                f"{option}.{name}={value!r:.60}: not implemented for rope_type={kind!r}; "
                f"expected {', '.join(used) or 'none'} with it"
            )
    theta = given.get("rope_theta", theta)
    if kind == "default":
        return theta, None
    values = {_OPTIONS[name]: given[name] for name in used if given.get(name) is not None}
    missing = [name for name in used if given.get(name) is None and name not in _MAY_LACK]
    if _ORIGINAL in missing:
        own = content.get(_ORIGINAL)
        values["original_max_positions"] = own or content.get("max_position_embeddings")
        missing.remove(_ORIGINAL)
    if missing:
        raise UsageError(f"{option}.{missing[0]} is missing; expected it for rope_type={kind!r}")
    if kind == "longrope":
        values["factor"] = 1.0
    if kind in ("yarn", "longrope"):
        values.setdefault("attention_factor", _attention(kind, given, content, values))
    return theta, RopeScaling(kind, **values)


def _attention(
    kind: str, given: Mapping[str, Any], content: Mapping[str, Any], values: Mapping[str, Any]
) -> float:
    """The factor of cosines and sines where a file does not state it, as in transformers."""
    original = values["original_max_positions"]
    if kind == "longrope":
        factor = given.get("factor") or content["max_position_embeddings"] / original
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))

    def mscale(weight: float) -> float:
        factor = values["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, other = (given.get(name) for name in _ATTENTION)
    return mscale(one) / mscale(other) if one and other else mscale(1.0)


def write(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The keys of version 4 for a config with rotary positions."""
    keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    scaling = config.rope_scaling
    if scaling is not None:
        used = {name: getattr(scaling, _OPTIONS[name]) for name in _USED[scaling.kind]}
        used = {name: list(v) if isinstance(v, tuple) else v for name, v in used.items()}
        if scaling.kind == "longrope" and family.partial_rotary == 1.0:
            # Phi-3 has the original context beside the scaling, and refuses other keys in it.
            keys[_ORIGINAL] = used.pop(_ORIGINAL)
            del used["attention_factor"]
            keys["rope_scaling"] = {"type": scaling.kind, **used}
        else:
            keys["rope_scaling"] = {"rope_type": scaling.kind, **used}
    if family.local_rope is True:
        keys["rope_local_base_freq"] = config.rope_local_theta
    if family.partial_rotary is not None:
        keys["partial_rotary_factor"] = (config.rotary_dim or config.head_dim) / config.head_dim
    if family.no_rope:
        keys["no_rope_layers"] = [int(not kind.no_rope) for kind in config.layer_kinds()]
    return keys
