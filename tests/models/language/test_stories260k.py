"""stories260K, a real Llama: its arrays load, score text and continue a story."""

import struct

import jax
import jax.numpy as jnp
import language_reference as reference
import numpy as np
import pytest
from flax import nnx

from distill_jax.errors import UsageError
from distill_jax.models import language

BEGIN = 1  # the token that every story begins with
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
)


@pytest.fixture(scope="module")
def arrays(shared_data) -> dict[str, np.ndarray]:
    """The arrays of llama2.c."""
    path = shared_data / "teachers" / "stories260K.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the shared data")
    with np.load(path) as content:
        return dict(content)


@pytest.fixture(scope="module")
def model(arrays) -> language.Decoder:
    return language.from_llama2c(arrays, heads=8)


@pytest.fixture(scope="module")
def pieces(shared_data) -> list[bytes]:
    """The text of every token: llama2.c stores float score, int length, bytes."""
    content = (shared_data / "teachers" / "stories260K_tok512.bin").read_bytes()
    found, at = [], 4
    while at < len(content):
        _, length = struct.unpack_from("<fi", content, at)
        found.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _tokens(text: str, pieces: list[bytes]) -> list[int]:
    """The longest piece first: not quite the tokenizer's merges, but the same text."""
    rest, found = b" " + text.encode(), [BEGIN]
    known = {piece: number for number, piece in enumerate(pieces) if number > 2}
    while rest:
        piece = max((p for p in known if rest.startswith(p)), key=len)
        found.append(known[piece])
        rest = rest[len(piece) :]
    return found


def _float64_logits(a: dict[str, np.ndarray], tokens: list[int], heads: int) -> np.ndarray:
    """llama2.c's forward pass, token by token: it rotates neighbouring pairs."""
    a = {name: value.astype(np.float64) for name, value in a.items()}
    size = a["tok"].shape[1] // heads
    share = heads * size // a["wk"].shape[1]
    layers = len(a["wq"])
    keys, values = [[] for _ in range(layers)], [[] for _ in range(layers)]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + 1e-5) * scale

    def rotated(x, position):
        out = x.reshape(-1, size).copy()
        for i in range(0, size, 2):
            angle = position / 10000 ** (i / size)
            first, second = out[:, i].copy(), out[:, i + 1].copy()
            out[:, i] = first * np.cos(angle) - second * np.sin(angle)
            out[:, i + 1] = first * np.sin(angle) + second * np.cos(angle)
        return out

    logits = []
    for position, token in enumerate(tokens):
        x = a["tok"][token]
        for n in range(layers):
            y = norm(x, a["ra"][n])
            query = rotated(a["wq"][n] @ y, position)
            keys[n].append(rotated(a["wk"][n] @ y, position))
            values[n].append((a["wv"][n] @ y).reshape(-1, size))
            mixed = []
            for head in range(heads):
                scores = np.array([k[head // share] @ query[head] for k in keys[n]]) / size**0.5
                probabilities = np.exp(scores - scores.max())
                probabilities /= probabilities.sum()
                mixed.append(
                    sum(c * v[head // share] for c, v in zip(probabilities, values[n], strict=True))
                )
            x = x + a["wo"][n] @ np.concatenate(mixed)
            y = norm(x, a["rf"][n])
            gate = a["w1"][n] @ y
            x = x + a["w2"][n] @ (gate / (1 + np.exp(-gate)) * (a["w3"][n] @ y))
        logits.append(a["cls"] @ norm(x, a["rn"]))
    return np.array(logits)


def test_its_logits_are_those_of_the_algorithm_in_float64(model, arrays, pieces):
    tokens = _tokens(TEXT, pieces)
    expected = _float64_logits(arrays, tokens, heads=8)
    logits = reference.logits(model, np.array([tokens], np.int32))[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_it_finds_a_story_likely_and_the_same_letters_in_disorder_not(model, pieces):
    tokens = np.array(_tokens(TEXT, pieces))
    shuffled = tokens.copy()
    np.random.default_rng(0).shuffle(shuffled[1:])
    logits = reference.logits(model, np.stack([tokens, shuffled]).astype(np.int32))
    log_probabilities = jax.nn.log_softmax(jnp.asarray(logits[:, :-1]))
    story, disorder = (
        -float(np.mean(np.asarray(row)[np.arange(len(tokens) - 1), text[1:]]))
        for row, text in zip(log_probabilities, (tokens, shuffled), strict=True)
    )
    assert story < 2  # nats a token; a uniform guess is log 512 = 6.2
    assert disorder > 4


def test_it_continues_a_story(model, pieces):
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(state, tokens, cache):
        model = nnx.merge(graphdef, state)
        decoded = model(tokens, cache=cache)
        return jnp.argmax(model.logits(decoded.hidden[:, -1]), -1), decoded.cache

    prompt = _tokens("Once upon a time", pieces)
    cache = language.init_cache(model.config, batch=1, length=96)
    token, cache = step(state, np.array([prompt], np.int32), cache)
    story = list(prompt)
    for _ in range(64):
        story.append(int(token[0]))
        token, cache = step(state, token[:, None].astype(jnp.int32), cache)
    text = b"".join(pieces[number] for number in story[1:]).decode()
    assert text.startswith(" Once upon a time, there was a little")
    words = {word.strip('.,!"') for word in text.lower().split()}
    assert words >= {"was", "she"} and len(words) > 15


def test_arrays_of_another_model_are_refused(arrays):
    with pytest.raises(UsageError, match="path: array 'wq' is missing; expected tok, "):
        language.from_llama2c({k: v for k, v in arrays.items() if k != "wq"}, heads=8)
    with pytest.raises(UsageError, match="path: heads=7: expected a divisor of 64"):
        language.from_llama2c(arrays, heads=7)
    with pytest.raises(UsageError, match=r"path: an array gives final_norm/scale as \[63\], not"):
        language.from_llama2c(arrays | {"rn": arrays["rn"][:-1]}, heads=8)
