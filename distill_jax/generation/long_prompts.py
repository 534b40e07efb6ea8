"""Prompts that leave no room for a response: refused before anything is written, or left out."""

from collections.abc import Sequence
from typing import NamedTuple

from distill_jax.errors import UsageError
from distill_jax.generation.decode import check_length
from distill_jax.generation.prompts import Prompt
from distill_jax.models.language import DecoderConfig

#: What happens to a prompt that is too long.
CHOICES = ("refuse", "skip")
_NAMED = 10  # lines that a note names; of more it gives the number


class Fitting(NamedTuple):
    """Which prompts leave room for a response.

    Attributes:
      kept: their numbers, in order.
      left_out: the numbers of the others, in order.
      note: a line for the user that names these; "" if there are none.
    """

    kept: tuple[int, ...]
    left_out: tuple[int, ...]
    note: str


def choose_fitting(
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    configs: Sequence[DecoderConfig],
    max_new_tokens: int,
    *,
    long: str,
    location: str,
) -> Fitting:
    """The prompts that fit all the models.

    Args:
      prompts: at least one.
      ids: of each prompt.
      configs: of the models that continue them, at least one.
      max_new_tokens: of the longest response.
      long: "refuse" a prompt that is too long, or "skip" it.
      location: of all prompts, the start of a line about them, such as "prompts='x.jsonl'".

    Raises:
      UsageError: a prompt is empty, or too long and `long` is "refuse"; or none is left.
    """
    limit = min(config.max_positions for config in configs)
    kept, left_out = [], []
    for number, (prompt, own) in enumerate(zip(prompts, ids, strict=True)):
        if long == "skip" and len(own) + max_new_tokens > limit:
            left_out.append(number)
            continue
        for config in configs:
            check_length(config, own, max_new_tokens, prompt.location)
        kept.append(number)
    if not left_out:
        return Fitting(tuple(kept), (), "")
    reason = f"with a response of up to {max_new_tokens} tokens exceed the model's context, {limit}"
    if not kept:
        raise UsageError(f"{location}: all {len(prompts)} prompts {reason}; expected some that fit")
    lines = [prompts[number].location.rpartition(": ")[2] for number in left_out[:_NAMED]]
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    note = (
        f"{location}: {len(left_out)} of {len(prompts)} prompts are left out, which {reason}: "
        f"{', '.join(lines)}{more}"
    )
    return Fitting(tuple(kept), tuple(left_out), note)
