"""Which ids are bos, eos and padding, from the JSON files that are saved with a tokenizer.

For each role the first source that names a token or an id decides: tokenizer_config.json and
special_tokens_map.json (by token), generation_config.json and config.json (by id), and last the
tokenizer file itself.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_jax.data.text.codec import Codec, short_repr
from distill_jax.errors import UsageError


class SpecialIds(NamedTuple):
    """The special ids of a tokenizer; None for a role that no source names.

    `stop_ids` holds every id that ends a generated text: eos first, the rest sorted.
    """

    bos: int | None
    eos: int | None
    pad: int | None
    stop_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The sources of the special ids, in order of precedence.

    Attributes:
      codec: the tokenizer file.
      location: the start of an error line, such as "data.tokenizer='x/tokenizer.json'".
      settings: tokenizer_config.json; as the files below, {} where there is no such file.
      token_map: special_tokens_map.json.
      generation: generation_config.json.
      config: config.json.
    """

    codec: Codec
    location: str
    settings: Mapping[str, Any]
    token_map: Mapping[str, Any]
    generation: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: pathlib.Path, codec: Codec, *, location: str, key: str):
        """Reads the sources.

        Args:
          folder: where the tokenizer file is.
          codec: what was read from it.
          location: the start of an error line about a token.
          key: the config key that an error about one of the files names.

        Raises:
          UsageError: a file that is not a JSON object.
        """
        return cls(
            codec,
            location,
            settings=_read_object(folder / "tokenizer_config.json", key),
            token_map=_read_object(folder / "special_tokens_map.json", key),
            generation=_read_object(folder / "generation_config.json", key),
            config=_read_object(folder / "config.json", key),
        )

    def resolve(self) -> SpecialIds:
        """The id of each role, and the stop ids.

        Raises:
          UsageError: a bos or eos token, or an id of one, that is not in the vocabulary.
        """
        numbers = {token: i for i, token in enumerate(self.codec.tokens) if token is not None}
        bos, eos, pad = (
            next(iter(self._ids(role, numbers)), None) for role in ("bos", "eos", "pad")
        )
        # generation_config.json may list several ends of text next to the tokenizer's own eos.
        stops = {*self._ids("eos", numbers), *self._listed("eos", self.generation)} - {eos}
        return SpecialIds(bos, eos, pad, (() if eos is None else (eos,)) + tuple(sorted(stops)))

    def _ids(self, role: str, numbers: Mapping[str, int]) -> list[int]:
        for source in (self.settings, self.token_map):
            token = source.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token in numbers:
                return [numbers[token]]
            # A padding token that is missing does no harm: no loss reads padding.
            if isinstance(token, str) and role != "pad":
                raise UsageError(
                    f"{self.location}: {role}_token {short_repr(token)} is not in the vocabulary;"
                    " expected one of its tokens"
                )
        own: int | None = getattr(self.codec, role)
        return (
            self._listed(role, self.generation)
            or self._listed(role, self.config)
            or ([] if own is None else [own])
        )

    def _listed(self, role: str, source: Mapping[str, Any]) -> list[int]:
        """The ids that a source lists for a role: one, several or none."""
        value = source.get(f"{role}_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        size = len(self.codec.tokens)
        for number in values:
            if type(number) is not int or not 0 <= number < size:
                if role == "pad":  # -1 in the first Llama's files
                    return []
                raise UsageError(
                    f"{self.location}: {role}_token_id is {short_repr(value)}; expected an id in"
                    f" [0, {size})"
                )
        return values


def _read_object(path: pathlib.Path, key: str) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{key}={str(path)!r}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{key}={str(path)!r}: holds {short_repr(content)}; expected an object")
    return content
