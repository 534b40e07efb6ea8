"""What transformers makes of small checkpoints, greedily, and which tokens its samplers leave.

    python make.py golden             writes greedy.json and samplers.json beside this file

needs torch and transformers; the files were written with torch 2.13.0 and transformers 5.24.0. The
checkpoints are those of ../language/make.py, filled in the same way. A response is recorded with
the smallest lead of its chosen logits over the second, at least twice what rounding moves a logit.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
FAMILIES = ("gemma3", "phi3", "llama", "mixtral", "qwen3_moe")
#: Of unequal lengths; windows of 4 tokens are shorter than most.
PROMPTS = ((7,), (3, 31, 12), (5, 5, 5, 5, 6, 9, 1, 0, 22), (38, 2, 19, 4, 4, 30), (11, 26))
MAX_NEW_TOKENS = 20
LEAD = 4e-4

#: (temperature, top_k, top_p)
SAMPLERS = (
    (1.0, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 0, 0.8),
    (0.5, 0, 0.8),
    (2.0, 7, 0.6),
    (0.7, 1, 0.9),
    (1.3, 39, 0.999),
    (1.0, 0, 0.01),
)


def logits() -> np.ndarray:
    """Float32 [6, 40]; the last rows have ties at the border of top-k = 5 and top-k = 7."""
    generator = np.random.Generator(np.random.Philox(4))
    values = generator.standard_normal((6, 40)) * np.array([[0.1], [1], [2], [6], [1], [1]])
    values[4:] = np.round(values[4:])
    return values.astype(np.float32)


def greedy() -> dict:
    import torch

    spec = importlib.util.spec_from_file_location("make", HERE.parent / "language" / "make.py")
    language = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(language)
    found = {}
    for name in FAMILIES:
        model = language._filled(name)[0].float().eval()
        entries = []
        for prompt in PROMPTS:
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
            two = torch.stack([row[0].topk(2).values for row in out.logits])
            lead = float((two[:, 0] - two[:, 1]).min())
            if lead < LEAD:
                raise ValueError(f"{name}, {prompt}: a lead of {lead}; choose other prompts")
            entries.append({"ids": out.sequences[0, len(prompt) :].tolist(), "lead": lead})
        found[name] = entries
    return {"prompts": PROMPTS, "families": found}


def samplers() -> list:
    """For each of `SAMPLERS`, the ids that stay in each row of `logits`, by transformers."""
    import torch
    from transformers.generation import logits_process

    kept = []
    for temperature, top_k, top_p in SAMPLERS:
        scores = torch.tensor(logits())
        # The order in which `generate` applies them.
        scores = logits_process.TemperatureLogitsWarper(temperature)(None, scores)
        if top_k:
            scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
        kept.append([torch.nonzero(torch.isfinite(row))[:, 0].tolist() for row in scores])
    return kept


if __name__ == "__main__":
    if sys.argv[1:] != ["golden"]:
        sys.exit("usage: make.py golden")
    (HERE / "greedy.json").write_text(json.dumps(greedy()) + "\n")
    (HERE / "samplers.json").write_text(json.dumps(samplers()) + "\n")
