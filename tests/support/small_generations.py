"""A short run of `generate`: prompts, settings, and what it wrote."""

import json

import jax

from distill_jax import parallel
from distill_jax.runs import generation as generate
from distill_jax.runs.generation_settings import Settings

PROMPTS = [
    {"prompt": "The quick brown fox"},
    {"prompt": "Hello", "response": "unread"},
    {"text": "Numbers: 1 2 3"},
    {"messages": [{"role": "user", "content": "Say something."}]},
    {"prompt": "é"},
    {"prompt": "A longer prompt, with more words than the others have."},
    {"prompt": "x"},
]


def settings_for(folder, **changes) -> Settings:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    given = dict(
        prompts=str(path),
        temperature=0.9,
        top_p=0.98,
        max_new_tokens=12,
        stops=tuple(range(40, 60)),  # a random model hardly ever draws eos
        batch_size=2,
        shard=2,
    )
    return Settings(**{**given, "samples": 2, "seed": 3, **changes})


def one_device():
    return parallel.make_mesh(data=1, devices=jax.devices()[:1])


def write(settings, teacher, workdir, notes=None) -> dict:
    note = (notes if notes is not None else []).append
    return generate.write(settings, teacher, workdir, note=note, mesh=one_device())


def lines_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "responses.jsonl").read_text().splitlines()]
