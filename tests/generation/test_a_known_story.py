"""stories260K, a real Llama, through the whole way: a folder, its tokenizer, prompts, a file."""

import json

import jax
import numpy as np
import pytest

from distill_jax import parallel
from distill_jax.models import language
from distill_jax.runs import generation as generate
from distill_jax.runs.generation_settings import Settings

# What llama2.c itself writes at temperature 0 (karpathy/llama2.c, doc/stories260K.md).
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    " One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do."
    ' She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to"
    " do.\"\nLily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to"
    ' do." Her mom said, "Don\'t worry, Lily. We can help you.'
)


@pytest.fixture(scope="module")
def lines(shared_data, tmp_path_factory) -> list[dict]:
    """Greedy continuations of two beginnings of the story."""
    folder = tmp_path_factory.mktemp("stories")
    arrays = shared_data / "teachers" / "stories260K.npz"
    if not arrays.exists():
        pytest.skip(f"{arrays.name} is not in the shared data")
    with np.load(arrays) as content:
        language.save(folder / "model", language.from_llama2c(dict(content), heads=8))
    prompts = [{"prompt": ""}, {"text": "Once upon a time, there was a little girl"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    settings = Settings(
        prompts=str(folder / "prompts.jsonl"),
        tokenizer=str(shared_data / "teachers" / "stories260K_tok512.bin"),
        temperature=0.0,
        max_new_tokens=256,
        stops=(1,),  # the next story begins with bos
        batch_size=2,
    )
    mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
    generate.write(settings, folder / "model", folder / "text", mesh=mesh)
    return [json.loads(line) for line in (folder / "text" / "responses.jsonl").open()]


def test_it_writes_the_story_that_llama2c_writes(lines):
    assert lines[0]["prompt"] == ""
    assert lines[0]["response"].startswith(STORY)


def test_it_continues_a_story(lines):
    assert (lines[1]["prompt"] + lines[1]["response"]).startswith(STORY)
    assert not lines[1]["response"].startswith("Once")
    assert lines[1]["teacher"]["license"] is None
