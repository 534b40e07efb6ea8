"""The pre-tokenizers of byte-level BPE that llama.cpp knows by name, as parts of a tokenizer.json.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`); llama.cpp has the regular expressions in
`src/llama-vocab.cpp`. One name stands here for each rule; ALIASES are further names of the same
rules. A tokenizer.json is matched by what its parts do, not by how the file words them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The same without flags, as some files have it.
_SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"

_DIGITS = ("digits",)
_BYTES, _WORDS = ("bytes", False), ("bytes", True)  # bytes alone, or after GPT-2's own split


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """How a text is split before merges.

    Attributes:
      steps: ("split", regular expression), ("digits",), each digit alone, or ("bytes", whether
        after GPT-2's split), in order.
      ignore_merges: whether a part that is a token itself becomes that token.
      composes: whether the text is normalised to NFC; llama.cpp leaves that out.
    """

    steps: tuple[tuple[Any, ...], ...]
    ignore_merges: bool = False
    composes: bool = False


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((_WORDS,)),
    "smollm": PreTokenizer((_DIGITS, _WORDS)),
    "llama-bpe": PreTokenizer((("split", _LLAMA3), _BYTES), ignore_merges=True),
    "dbrx": PreTokenizer((("split", _LLAMA3), _BYTES)),
    "qwen2": PreTokenizer((("split", _QWEN2), _BYTES), composes=True),
    "tekken": PreTokenizer((("split", _TEKKEN), _BYTES), ignore_merges=True),
    "default": PreTokenizer(
        (
            ("split", r"[\p{P}\$\+<=>\^~\|]+"),
            ("split", _GPT2),
            ("split", r"\p{N}+"),
            ("split", "[0-9][0-9][0-9]"),
            _BYTES,
        )
    ),
}
ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"), "gpt-2"),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"
    ),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe", "glm4", "chatglm-bpe"), "dbrx"),
    **dict.fromkeys(("stablelm2", "hunyuan", "deepseek-r1-qwen"), "qwen2"),
}
# Names under which a beginning of text is added unless the file says otherwise.
_BEGINS = ("llama-bpe", "tekken")


def named(name: str) -> PreTokenizer | None:
    """The pre-tokenizer of a name or an alias; None for an unknown one."""
    return PRE_TOKENIZERS.get(ALIASES.get(name, name))


def adds_bos(name: str) -> bool:
    """Whether a text begins with bos where a file does not say."""
    return ALIASES.get(name, name) in _BEGINS


def to_parts(rules: PreTokenizer) -> dict[str, Any]:
    """The normalizer and the pre_tokenizer of a tokenizer.json."""
    steps: list[dict[str, Any]] = []
    for kind, *values in rules.steps:
        if kind == "digits":
            steps.append({"type": "Digits", "individual_digits": True})
        elif kind == "split":
            pattern = {"Regex": values[0]}
            steps.append(
                {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
            )
        else:
            steps.append(
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": values[0],
                }
            )
    whole = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    return {"normalizer": {"type": "NFC"} if rules.composes else None, "pre_tokenizer": whole}


def name_of(content: Mapping[str, Any]) -> str | None:
    """The name of a tokenizer.json's pre-tokenizer; None where llama.cpp has no such rules."""
    steps = _steps(content.get("pre_tokenizer"))
    normalizer = content.get("normalizer")
    if steps is None or normalizer not in (None, {"type": "NFC"}):
        return None
    ignores = bool(content["model"].get("ignore_merges"))
    for name, rules in PRE_TOKENIZERS.items():
        if rules.steps == steps and rules.ignore_merges == ignores:
            return name
    return None


def _steps(part: Any) -> tuple[tuple[Any, ...], ...] | None:
    """The steps of a pre_tokenizer, None where one is of another kind."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if kind == "Sequence":
        inner = [_steps(each) for each in _parts_of(part)]
        return None if None in inner else tuple(step for each in inner for step in each or ())
    if kind == "Digits":
        return (_DIGITS,) if part.get("individual_digits") else None
    if kind == "ByteLevel":
        plain = not part.get("add_prefix_space", True)
        return (("bytes", bool(part.get("use_regex", True))),) if plain else None
    pattern = part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    plain = part.get("behavior") == "Isolated" and not part.get("invert")
    if kind != "Split" or not isinstance(regex, str) or not plain:
        return None
    return (("split", regex.replace(_SPELLED_OUT, _CONTRACTIONS)),)


def _parts_of(part: Mapping[str, Any]) -> Sequence[Any]:
    found = part.get("pretokenizers", ())
    return found if isinstance(found, list) else ()
