"""Language models: one decoder for all families, and its checkpoints.

    model = load("/models/Llama-3.2-1B", param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    decoded = model(tokens, segments=segments)      # hidden states; logits are never built
    student = from_layers(model, (0, 4, 8, 12, 15))
    save("student", student)                        # transformers loads it

`config` says what a decoder is, `decoder` computes it, `families` and `names` translate from and to
Hugging Face, `checkpoint` and `export` read and write. Left out on purpose: tokenizers, sampling,
dropout.
"""

from distill_jax.models.language.cache import Cache, init_cache
from distill_jax.models.language.config import DecoderConfig, RopeScaling
from distill_jax.models.language.decoder import (
    Decoded,
    Decoder,
    Placement,
    abstract,
    assemble,
    create,
    from_layers,
)
from distill_jax.models.language.huggingface.families import from_huggingface, to_huggingface
from distill_jax.models.language.huggingface.reading import blank, from_llama2c, load
from distill_jax.models.language.huggingface.writing import save, write

__all__ = [
    "Cache",
    "Decoded",
    "Decoder",
    "DecoderConfig",
    "Placement",
    "RopeScaling",
    "abstract",
    "assemble",
    "blank",
    "create",
    "from_huggingface",
    "from_layers",
    "from_llama2c",
    "init_cache",
    "load",
    "save",
    "to_huggingface",
    "write",
]
