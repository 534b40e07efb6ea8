"""Text generation: prompts, decoding with a KV cache, sampling, responses.

    sampler = Sampler(temperature=0.8, top_p=0.95)
    decoding = Decoding(sampler, max_new_tokens=256, vocab_size=32000, stop_ids=(2,))
    responses = generate(model, prompts, decoding, seed=0)
    responses[0].ids, responses[0].finish           # int32 [n], "stop" or "length"

`generate_tokens` does the same inside a compiled program: arrays in, arrays out. `prompts` reads
JSONL. Left out on purpose: beam search, repetition penalties, and speculative decoding.
"""

from distill_jax.generation.decode import (
    Decoding,
    GeneratedTokens,
    Response,
    check_length,
    generate,
    generate_tokens,
    padded_length,
    row_keys,
)
from distill_jax.generation.long_prompts import Fitting, choose_fitting
from distill_jax.generation.prompts import Prompt, response_text
from distill_jax.generation.prompts import encode as encode_prompts
from distill_jax.generation.prompts import read as read_prompts
from distill_jax.generation.sampling import Sampler, filter_logits, sample

__all__ = [
    "Decoding",
    "Fitting",
    "GeneratedTokens",
    "Prompt",
    "Response",
    "Sampler",
    "check_length",
    "choose_fitting",
    "encode_prompts",
    "filter_logits",
    "generate",
    "generate_tokens",
    "padded_length",
    "read_prompts",
    "response_text",
    "row_keys",
    "sample",
]
