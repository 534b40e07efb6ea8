"""GGUF files of decoders, for llama.cpp: to and from a Hugging Face folder.

- `architectures`: one row for each architecture of llama.cpp that our decoder computes, and the
  metadata of a decoder by it;
- `tensors`: the names in a GGUF file, and how a tensor lies there;
- `reading`: a file into a Hugging Face folder; `writing`: a decoder into a file.

The tokenizers are those of `data.text.gguf_vocabulary`, the container is `models.files.gguf_file`.
Left out on purpose: mixtures of experts, and adapters in files of their own.
"""

from distill_jax.models.language.gguf.reading import to_folder
from distill_jax.models.language.gguf.writing import TYPES, write

__all__ = ["TYPES", "to_folder", "write"]
