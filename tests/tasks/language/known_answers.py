"""Decoders that say known words: each word is followed by one other, whatever came before.

The embedding of a word is a unit vector, attention and the MLP add nothing, and the head sends each
word to its follower: the greedy answer is the chain of followers, told here without any decoder.
"""

import json
import pathlib

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from distill_jax.models import language, split

#: Ids are places in this list; the numbers and the marker are words like any other.
WORDS = (
    "<s> </s> ask0 ask1 ask2 ask3 ask4 ask5 the a river runs past mountain lamp and window we have "
    "7 18 $18.00 #### eggs loop again, Warm bread is here now paper water so it goes on"
).split()

#: What follows the last word of prompt i.
TEACHER = (
    "the river runs past a mountain </s>",
    "we have 7 eggs so #### $18.00 </s>",
    "Warm bread is here now </s>",
    "loop again, loop again, loop again, loop again,",  # and so on: it never stops
    "paper </s>",
    "</s>",
)
#: The student leaves some out, or says another word.
STUDENT = (
    "the river goes on past a mountain </s>",
    "we have 18 </s>",
    "Warm water is here </s>",
    "lamp and window </s>",
    "paper </s>",
    "it </s>",
)
REFERENCES = (
    "The river runs past a mountain, past a window.",
    "They have 7, so it is\n#### 18",
    "warm bread is here, now!",
    "Loop again. Loop again!",
    "The paper",
    "water",
)
MAX_NEW_TOKENS = 8


def write_tokenizer(folder: pathlib.Path) -> None:
    """Words between spaces, and nothing else."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def followers(answers: tuple[str, ...]) -> dict[str, str]:
    """Which word follows which; the same word has the same follower in all answers."""
    found: dict[str, str] = {}
    for number, answer in enumerate(answers):
        before = f"ask{number}"
        for word in answer.split():
            assert found.setdefault(before, word) == word, (before, word)
            before = word
    return found


def write_model(folder: pathlib.Path, answers: tuple[str, ...]) -> pathlib.Path:
    """The folder of a decoder that gives these answers, with its tokenizer."""
    size = len(WORDS)
    config = language.DecoderConfig(
        vocab_size=size, dim=size, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=8
    )
    _, params, _ = split(language.create(config, seed=0))
    head = np.zeros((size, size), np.float32)
    for before, after in followers(answers).items():
        head[WORDS.index(before), WORDS.index(after)] = 1.0
    fixed = {"embedding": np.eye(size, dtype=np.float32), "untied_head": head}
    silent = ("attention/output/kernel", "mlp/down/kernel")
    params = {
        name: fixed.get(name, 0 * value if name.endswith(silent) else value)
        for name, value in params.items()
    }
    language.save(folder, language.from_params(config, params))
    write_tokenizer(folder)
    return folder


def said(answers: tuple[str, ...], tokens: int = MAX_NEW_TOKENS) -> list[str]:
    """The text of the greedy answers, of at most so many tokens."""
    after = followers(answers)
    texts = []
    for number in range(len(answers)):
        words, word = [], f"ask{number}"
        while len(words) < tokens and (word := after[word]) != "</s>":
            words.append(word)
        texts.append(" ".join(words))
    return texts


def write_questions(path: pathlib.Path, count: int = len(REFERENCES)) -> pathlib.Path:
    """The prompts, of unequal lengths, with their references."""
    rows = [
        {"prompt": "so " * (3 * number) + f"ask{number}", "response": reference}
        for number, reference in enumerate(REFERENCES[:count])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_corpus(path: pathlib.Path, copies: int = 8) -> pathlib.Path:
    """Documents in which each word is followed by what the teacher says."""
    lines = [f"ask{number} {answer[:-5]}" for number, answer in enumerate(TEACHER[:3])] * copies
    path.write_text("\n\n".join(lines) + "\n")
    return path
