"""What is measured of a GGUF file: its numbers in this project, its text and speed in llama.cpp.

Perplexity, KL and agreement are those of the numbers that lie in the file, read back and computed
in float32. ROUGE-L, tokens a second and memory are llama.cpp's, in a process of its own.
"""

import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data import text
from distill_jax.evaluation import text_metrics
from distill_jax.models import language
from experiments.smaller_twice import plan

WINDOW = 256
_BATCH = 4
ANSWER = 64  # tokens of an answer to dolly, at most
PROMPT = 128  # tokens whose speed is measured


def windows(file: pathlib.Path, tokenizer: text.Tokenizer, tokens: int) -> np.ndarray:
    """The first tokens of a text, [N, WINDOW]."""
    content = file.read_text(encoding="utf-8")
    ids = tokenizer.encode(content[: 8 * tokens])[:tokens]
    return np.asarray(ids[: len(ids) // WINDOW * WINDOW], np.int32).reshape(-1, WINDOW)


def likelihood(folder: pathlib.Path, teacher: pathlib.Path, rows: np.ndarray) -> dict[str, float]:
    """Perplexity of a model on rows of a test text, and how near it is to the teacher.

    Args:
      folder: the Hugging Face folder of the model.
      teacher: that of the teacher.
      rows: [N, WINDOW].

    Returns:
      {"perplexity", "kl", "agreement"}: KL(teacher || model) in nats a token, agreement in [0, 1].
    """
    model, reference = language.load(folder), language.load(teacher)

    @jax.jit
    def sums(batch: jax.Array) -> jax.Array:
        ours, theirs = (
            jax.nn.log_softmax(each.logits(each(batch).hidden)[:, :-1].astype(jnp.float32))
            for each in (model, reference)
        )
        nll = -jnp.take_along_axis(ours, batch[:, 1:, None], axis=-1).sum()
        kl = (jnp.exp(theirs) * (theirs - ours)).sum()
        return jnp.stack([nll, kl, (ours.argmax(-1) == theirs.argmax(-1)).sum()])

    whole = rows[: len(rows) // _BATCH * _BATCH].reshape(-1, _BATCH, WINDOW)
    found = [np.asarray(sums(jnp.asarray(batch)), np.float64) for batch in whole]
    count = whole.shape[0] * _BATCH * (WINDOW - 1)
    nll, kl, agreed = sum(found) / count
    return {"perplexity": float(np.exp(nll)), "kl": float(kl), "agreement": float(agreed)}


def in_llama_cpp(file: pathlib.Path, work: Mapping[str, Any]) -> dict[str, Any]:
    """What a process of its own with one file in llama.cpp prints.

    Args:
      file: a GGUF file.
      work: {"prompts": messages, …} to answer, or {"speed": token ids} to time.
    """
    command = [sys.executable, "-m", "experiments.smaller_twice.llama_cpp", str(file)]
    done = subprocess.run(command, input=json.dumps(work), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"llama.cpp: {file.name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rouge_l(file: pathlib.Path, records: Sequence[dict]) -> float:
    """Mean ROUGE-L of greedy answers, in percent."""
    work = {"prompts": [plan.question(record) for record in records], "tokens": ANSWER}
    answers = in_llama_cpp(file, work)["answers"]
    pairs = zip(answers, records, strict=True)
    scores = [text_metrics.rouge_l(answer, record["output"]) for answer, record in pairs]
    return 100 * statistics.fmean(scores)


def speeds(files: Sequence[pathlib.Path], ids: list[int], rounds: int) -> dict[str, dict]:
    """Tokens a second and memory of all files, which take turns so that load meets all alike."""
    found: dict[str, list[dict]] = {file.stem: [] for file in files}
    for _ in range(rounds):
        for file in files:
            found[file.stem].append(in_llama_cpp(file, {"speed": ids[:PROMPT], "tokens": ANSWER}))
    return {
        name: {key: statistics.median(each[key] for each in all_) for key in all_[0]}
        for name, all_ in found.items()
    }
