"""Text that a language model writes: sampling, decoding with a cache, prompts in, responses out.

    sampler = Sampler(temperature=0.8, top_p=0.95)
    found = generate(model, prompts, sampler=sampler, seed=0, stop_ids=(2,), vocab_size=32000)
    found[0].ids, found[0].finish                   # int32 [n], "stop" or "length"

`generate_tokens` does the same inside a compiled program: arrays in, arrays out. `prompts` reads
JSONL. Left out on purpose: beams, penalties for repetition, and speculative decoding.
"""

from distill_jax.generation.decode import (
    GeneratedTokens,
    Response,
    generate,
    generate_tokens,
    padded_length,
    row_keys,
)
from distill_jax.generation.prompts import Prompt, response_text
from distill_jax.generation.prompts import encode as encode_prompts
from distill_jax.generation.prompts import read as read_prompts
from distill_jax.generation.sampling import Sampler, filter_logits, sample

__all__ = [
    "GeneratedTokens",
    "Prompt",
    "Response",
    "Sampler",
    "filter_logits",
    "sample",
    "encode_prompts",
    "generate",
    "padded_length",
    "read_prompts",
    "generate_tokens",
    "row_keys",
    "response_text",
]
