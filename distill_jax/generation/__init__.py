"""Text that a language model writes: sampling, decoding with a cache, prompts in, responses out.

    sampler = Sampler(temperature=0.8, top_p=0.95)
    found = generate(model, prompts, sampler=sampler, seed=0, stops=(2,), vocab_size=32000)
    found[0].ids, found[0].finish                   # int32 [n], "stop" or "length"

`respond` is the same inside a program of the caller's: arrays in, arrays out. `prompts` reads
JSONL. Left out on purpose: beams, penalties for repetition, and speculative decoding.
"""

from distill_jax.generation.decode import (
    Drawn,
    Response,
    generate,
    padded_length,
    respond,
    row_keys,
)
from distill_jax.generation.prompts import Prompt, said
from distill_jax.generation.prompts import encode as encode_prompts
from distill_jax.generation.prompts import read as read_prompts
from distill_jax.generation.sampling import Sampler, allowed, draw

__all__ = [
    "Drawn",
    "Prompt",
    "Response",
    "Sampler",
    "allowed",
    "draw",
    "encode_prompts",
    "generate",
    "padded_length",
    "read_prompts",
    "respond",
    "row_keys",
    "said",
]
