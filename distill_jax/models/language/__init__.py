"""Language models: one decoder for all families, and its checkpoints.

    >>> import jax.numpy as jnp
    >>> from distill_jax.models import language
    >>> config = language.DecoderConfig(
    ...     vocab_size=32, dim=16, layers=4, heads=4, kv_heads=2, head_dim=4, mlp_dim=24
    ... )
    >>> model = language.create(config, seed=0)
    >>> decoded = model(jnp.array([[3, 1, 4, 1, 5]]))    # tokens [B, T]
    >>> decoded.hidden.shape                             # [B, T, D]; the losses take these
    (1, 5, 16)
    >>> model.logits(decoded.hidden).shape               # [B, T, V]; for evaluation
    (1, 5, 32)
    >>> student = language.from_layers(model, (0, 3))    # half the layers of the model
    >>> student.config.layers
    2

    model = language.load("/models/Llama-3.2-1B", param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    language.save("student", language.from_layers(model, (0, 4, 8, 12, 15)))

`load` reads a Hugging Face folder, and transformers loads what `save` writes. To find

- what a decoder can be: `config`; what it computes: `decoder`, and under it `block`, `attention`,
  `rope`, `layers`, `experts`, `cache`; how one is made: `construct`;
- the families and their files: `huggingface`, whose docstring says how to add a family;
- adapters: `lora`; quantized weights: `quantized`; memory: `remat`; devices: `sharding`, `splash`.

Left out on purpose: tokenizers (`data.text`), sampling (`generation`), dropout.
"""

from distill_jax.models.language.cache import Cache, init_cache
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.construct import (
    ShardingFn,
    abstract,
    create,
    from_layers,
    from_params,
)
from distill_jax.models.language.decoder import Decoder, DecoderOutput
from distill_jax.models.language.huggingface.families import from_huggingface, to_huggingface
from distill_jax.models.language.huggingface.reading import load, load_zeros, shapes
from distill_jax.models.language.huggingface.writing import save, save_params
from distill_jax.models.language.llama2c import from_llama2c
from distill_jax.models.language.rope_scaling import RopeScaling

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
    "shapes",
    "to_huggingface",
]
