"""llama.cpp, the real program, by the server of the wheel xllamacpp."""

import json
import os
import pathlib
import urllib.request
from typing import Any

import numpy as np
import pytest


def need() -> None:
    """Skips the test where llama.cpp is not installed."""
    pytest.importorskip("xllamacpp", reason="needs pip install 'distill_jax[llama-cpp]'")


class Server:
    """A model in llama.cpp, in this process.

    Args:
      file: a GGUF file.
      context: in tokens.
    """

    def __init__(self, file: pathlib.Path, context: int = 256):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel = context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.warmup, settings.verbosity = False, -1
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # The program writes its log to stderr itself.
        saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            self._server = xllamacpp.Server(settings)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(null)

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self._server.listening_address + route, data, kind)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.loads(reply.read())

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without bos."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return self.post("/tokenize", body)["tokens"]

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The ids of greedy decoding."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True}
        return self.post("/completion", body)["tokens"]

    def log_probs(self, ids: list[int], size: int) -> np.ndarray:
        """The log-probabilities of the next token, float64 [V]."""
        # It reports nothing of a token that ends the text or is half a character, so another one is
        # chosen; the probabilities are those before.
        bias = [[self.tokenize("a")[0], 1e4]]
        body = {"prompt": ids, "n_predict": 1, "n_probs": size, "temperature": 0}
        body |= {"logit_bias": bias, "post_sampling_probs": False}
        reply = self.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        found = np.full(size, np.nan)
        for each in reply:
            found[each["id"]] = each["logprob"]
        return found
