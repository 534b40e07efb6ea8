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
    Decoder,
    DecoderOutput,
    ShardingFn,
    abstract,
    create,
    from_layers,
    from_params,
)
from distill_jax.models.language.huggingface.families import from_huggingface, to_huggingface
from distill_jax.models.language.huggingface.reading import from_llama2c, load, load_zeros
from distill_jax.models.language.huggingface.writing import save, save_params

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "RopeScaling",
    "ShardingFn",
    "abstract",
    "create",
    "from_huggingface",
    "from_layers",
    "from_llama2c",
    "from_params",
    "init_cache",
    "load",
    "load_zeros",
    "save",
    "save_params",
    "to_huggingface",
]
