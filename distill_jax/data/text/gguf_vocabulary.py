"""Tokenizers of GGUF files to and from a tokenizer.json of the library `tokenizers`.

Two kinds are converted: "gpt2", byte-level BPE with the merges in the file and a pre-tokenizer by
name (`gguf_pretokenizers`), and "llama", SentencePiece's BPE, where the pair of neighbours whose
joined token has the highest score is merged first. The latter becomes a BPE with one merge for each
way to cut a token into two, in the order of the scores. Left out on purpose: unigram models ("t5"),
WordPiece ("bert") and RWKV's.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill_jax.data.text import gguf_pretokenizers, tokenizer
from distill_jax.errors import UsageError

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
_TEMPLATE = "tokenizer.chat_template"
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_MOST_TOKENS = 2**24


def to_huggingface(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer.

    Args:
      metadata: of a GGUF file, as `models.files.gguf_file.File.metadata`.

    Returns:
      tokenizer.json, tokenizer_config.json and generation_config.json, by their names.

    Raises:
      UsageError: the file has no tokenizer, one of another kind, or one that contradicts itself;
        the message names the key.
    """
    kind = metadata.get(f"{_PREFIX}model")
    if kind not in ("gpt2", "llama"):
        raise UsageError(
            f"{_PREFIX}model={kind!r:.40}: not implemented; expected gpt2 (byte-level BPE) or "
            "llama (SentencePiece)"
        )
    tokens = _list(metadata, "tokens", str)
    types = _list(metadata, "token_type", int, len(tokens), default=_NORMAL)
    if len(tokens) > _MOST_TOKENS or len(set(tokens)) != len(tokens):
        raise UsageError(f"{_PREFIX}tokens: expected tokens that are there once each")
    ids = _special_ids(metadata, len(tokens))
    build = _byte_level if kind == "gpt2" else _sentence_piece
    content = build(metadata, tokens, types, ids)
    pre = str(metadata.get(f"{_PREFIX}pre", "default"))
    default = kind == "llama" or gguf_pretokenizers.adds_bos(pre)
    begins = bool(metadata.get(f"{_PREFIX}add_bos_token", default)) and "bos" in ids
    ends = bool(metadata.get(f"{_PREFIX}add_eos_token", False)) and "eos" in ids
    content |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(tokens, types)),
        "post_processor": _post_processor(tokens, ids, begins, ends),
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        "add_eos_token": ends,
        **{f"{role}_token": tokens[ids[role]] for role in _ROLES if role in ids},
    }
    if isinstance(metadata.get(_TEMPLATE), str):
        settings["chat_template"] = metadata[_TEMPLATE]
    stops = [ids[role] for role in ("eos", "eot") if role in ids]
    generation: dict[str, Any] = {
        f"{role}_token_id": ids[role] for role in ("bos", "pad") if role in ids
    }
    if stops:
        generation["eos_token_id"] = stops[0] if len(set(stops)) == 1 else stops
    files = {
        "tokenizer.json": content,
        "tokenizer_config.json": settings,
        "generation_config.json": generation,
    }
    return {
        name: (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
        for name, value in files.items()
    }


def _list(
    metadata: Mapping[str, Any], name: str, kind: type, size: int | None = None, default: Any = None
) -> list[Any]:
    """A list of the tokenizer; where it is missing, `default` repeated."""
    key = f"{_PREFIX}{name}"
    found = metadata.get(key)
    if found is None and default is not None and size is not None:
        return [default] * size
    if not isinstance(found, list) or not all(isinstance(value, kind) for value in found):
        raise UsageError(f"{key}: expected a list of {kind.__name__}")
    if size is not None and len(found) != size:
        raise UsageError(f"{key}: has {len(found)} entries; expected {size}, one a token")
    return found


def _special_ids(metadata: Mapping[str, Any], size: int) -> dict[str, int]:
    """The ids of the roles that the file names: bos, eos, unk, pad, eot."""
    found = {}
    for role, theirs in {**_ROLES, "eot": "eot"}.items():
        key = f"{_PREFIX}{theirs}_token_id"
        number = metadata.get(key)
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < size:
            raise UsageError(f"{key}={number!r:.40}: expected an id in [0, {size})")
        found[role] = number
    return found


def _added_tokens(tokens: Sequence[str], types: Sequence[int]) -> Iterator[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN):
            yield {"id": number, "content": token, **flags, "special": kind != _USER_DEFINED}


def _post_processor(
    tokens: Sequence[str], ids: Mapping[str, int], begins: bool, ends: bool
) -> dict[str, Any] | None:
    """The template that puts bos before a text and eos after it; None for neither."""
    if not begins and not ends:
        return None
    before = [tokens[ids["bos"]]] if begins else []
    after = [tokens[ids["eos"]]] if ends else []

    def around(part: str, number: int) -> list[dict[str, Any]]:
        def special(names: list[str]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": name, "type_id": number}} for name in names]

        text = {"Sequence": {"id": part, "type_id": number}}
        return [*special(before), text, *special(after)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            name: {"id": name, "ids": [tokens.index(name)], "tokens": [name]}
            for name in {*before, *after}
        },
    }


def _byte_level(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    ids: Mapping[str, int],
) -> dict[str, Any]:
    """The parts of a tokenizer.json that are peculiar to byte-level BPE."""
    name = metadata.get(f"{_PREFIX}pre", "default")
    rules = gguf_pretokenizers.named(str(name))
    if rules is None:
        known = sorted({*gguf_pretokenizers.PRE_TOKENIZERS, *gguf_pretokenizers.ALIASES})
        raise UsageError(
            f"{_PREFIX}pre={name!r:.40}: not implemented; expected one of {', '.join(known)}"
        )
    vocabulary = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != _UNUSED
    }
    pairs = []
    for merge in _list(metadata, "merges", str):
        # A token holds no space: byte-level BPE writes it as Ġ.
        left, _, right = merge.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise UsageError(f"{_PREFIX}merges: {merge!r:.60} joins what is not in the vocabulary")
        pairs.append([left, right])
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
    model |= {"byte_fallback": False, "ignore_merges": rules.ignore_merges}
    byte_level: dict[str, Any] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
    }
    return {
        **gguf_pretokenizers.to_parts(rules),
        "decoder": byte_level | {"use_regex": True},
        "model": model | {"vocab": vocabulary, "merges": pairs},
    }


def _sentence_piece(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    ids: Mapping[str, int],
) -> dict[str, Any]:
    """The parts of a tokenizer.json that are peculiar to SentencePiece's BPE."""
    scores = _list(metadata, "scores", float, len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    merges = [
        (-scores[vocabulary[left + right]], vocabulary[left + right], [left, right])
        for left, right in _cuts(pieces)
    ]
    prefixed = bool(metadata.get(f"{_PREFIX}add_space_prefix", True))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    unknown = tokens[ids["unk"]] if "unk" in ids else None
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": unknown}
    model["fuse_unk"] = True
    model |= {"byte_fallback": _BYTE in types, "ignore_merges": False, "vocab": vocabulary}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": model | {"merges": [pair for _, _, pair in sorted(merges)]},
    }


def _cuts(pieces: set[str]) -> Iterator[tuple[str, str]]:
    """Every way to cut a piece into two pieces."""
    for piece in pieces:
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in pieces and right in pieces:
                yield left, right


def from_huggingface(file: pathlib.Path, size: int, *, key: str) -> dict[str, Any]:
    """The metadata of a GGUF file for a tokenizer.

    Args:
      file: a tokenizer.json, with the files that are saved next to it.
      size: V of the model; ids without a token become unused ones.
      key: the config key or flag that errors name.

    Returns:
      Keys that begin with "tokenizer.", with lists, texts, numbers and bools.

    Raises:
      UsageError: llama.cpp has no such tokenizer or no name for its pre-tokenizer, or there are
        more tokens than `size`.
    """
    location = f"{key}={str(file)!r}"
    if file.suffix != ".json":
        raise UsageError(f"{location}: expected a tokenizer.json, of which GGUF has the parts")
    loaded = tokenizer.load(file, key=key)
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), Mapping):
        raise UsageError(f"{location}: model.type={model.get('type')!r:.40}; expected BPE")
    if loaded.vocab_size > size:
        raise UsageError(f"{location}: has {loaded.vocab_size} tokens; expected at most V={size}")
    tokens: list[str] = [f"[PAD{number}]" for number in range(size)]
    types = [_UNUSED] * size
    for number, token in enumerate(loaded.codec.tokens):
        if token is not None:
            tokens[number], types[number] = token, _NORMAL
    for added in content.get("added_tokens") or ():
        types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    entries = {
        **(_byte_level_metadata if _is_byte_level(content) else _sentence_piece_metadata)(
            content, tokens, types, location
        ),
        "tokens": tokens,
        "token_type": types,
        "add_bos_token": loaded.adds_bos,
        "add_eos_token": bool(loaded.settings.get("add_eos_token", False)),
    }
    unknown = model.get("unk_token") or loaded.settings.get("unk_token")
    unknown = unknown.get("content") if isinstance(unknown, Mapping) else unknown
    roles = {"bos": loaded.bos, "eos": loaded.eos, "padding": loaded.pad}
    roles["unknown"] = tokens.index(unknown) if unknown in tokens else None
    roles["eot"] = next((i for i in loaded.stop_ids if i != loaded.eos), None)
    entries |= {f"{role}_token_id": i for role, i in roles.items() if i is not None}
    named = {f"{_PREFIX}{name}": value for name, value in entries.items()}
    template = loaded.settings.get("chat_template")
    separate = file.parent / "chat_template.jinja"
    if separate.is_file():
        template = separate.read_text(encoding="utf-8")
    return named | ({_TEMPLATE: template} if isinstance(template, str) else {})


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    return "ByteLevel" in json.dumps(content.get("pre_tokenizer"))


def _merges(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json, of which old files write a pair as one text."""
    pairs = content["model"].get("merges") or ()
    split = (pair.split(" ") if isinstance(pair, str) else pair for pair in pairs)
    return [(left, right) for left, right in split]


def _byte_level_metadata(
    content: Mapping[str, Any], tokens: list[str], types: list[int], location: str
) -> dict[str, Any]:
    name = gguf_pretokenizers.name_of(content)
    if name is None:
        raise UsageError(
            f"{location}: llama.cpp has no name for this normalizer and pre_tokenizer; expected "
            "those of " + ", ".join(gguf_pretokenizers.PRE_TOKENIZERS)
        )
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in _merges(content)]}


def _sentence_piece_metadata(
    content: Mapping[str, Any], tokens: list[str], types: list[int], location: str
) -> dict[str, Any]:
    """Scores in place of merges, where every merge that SentencePiece would make is there."""
    prefixed = _space_prefix(content)
    if prefixed is None or not content["model"].get("byte_fallback"):
        raise UsageError(
            f"{location}: neither byte-level BPE nor SentencePiece's; expected one of these"
        )
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    for byte in range(256):
        name = f"<0x{byte:02X}>"
        if name in pieces:
            types[tokens.index(name)] = _BYTE
            pieces.remove(name)
    for number, kind in enumerate(types):  # llama.cpp looks for these before it marks spaces
        if kind == _USER_DEFINED:
            tokens[number] = tokens[number].replace(_SPACE, " ")
    ranks: dict[str, int] = {}
    listed = _merges(content)
    for left, right in listed:
        ranks.setdefault(left + right, len(ranks))
    order = [ranks[left + right] for left, right in listed]
    missing = set(_cuts(pieces)) - set(listed)
    if missing or order != sorted(order):
        raise UsageError(
            f"{location}: its merges are not those of scores, as llama.cpp needs them without "
            "byte-level BPE; expected a tokenizer that was converted from SentencePiece"
        )
    unknown = content["model"].get("unk_token")
    if unknown in tokens:
        types[tokens.index(unknown)] = _UNKNOWN
    scores = [-float(ranks.get(token, 0)) for token in tokens]
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefixed}


def _space_prefix(content: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before a text; None where spaces are treated in another way."""
    normalizer, pre = content.get("normalizer") or {}, content.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    kinds = [step.get("type") for step in steps]
    if pre is not None and pre.get("type") == "Metaspace" and not kinds:
        return pre.get("prepend_scheme", "always") != "never"
    merges_only = pre is None or pre.get("type") == "Split"
    known = {("Prepend", "Replace"): True, ("Replace",): False}
    return known.get(tuple(kinds)) if merges_only else None
