"""The text of the study: GSM8K, cut into what trains teacher and students, chooses, and tests.

A document is a question and its solution. Students read those that fit into a row, the question in
its first half and the solution in the other; the teacher is trained on these and on all that are
longer. No document of `VALID` or `TEST` trains anything.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.storage import write_atomically

HALF = 128  # tokens of a question with bos, and of a solution with eos, at most
VALIDATION = 120  # documents, at most a tenth
TESTED = 100
SCARCE = 8  # the small text is so many times smaller

ROOT = pathlib.Path(__file__).resolve().parents[2]

#: What is read in the folder of the data.
SOURCES = {
    "train": "text/gsm8k_train.jsonl",
    "test": "text/gsm8k_test.jsonl",
    "stories": "teachers/stories260K.npz",
    "tokenizer": "teachers/stories260K_tok512.bin",
}
TEACHER, STUDENT, FEW, VALID, TEST = (
    f"{name}.jsonl" for name in ("teacher", "student", "few", "validation", "test")
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where the prepared text lies, and how much there is.

    Attributes:
      folder: of the JSONL files that the names above give.
      stories: folder of the pretrained model.
      tokenizer: file of the tokenizer.
      documents: how many each file has.
      fingerprint: SHA-256, in hex, of the files' bytes.
    """

    folder: pathlib.Path
    stories: pathlib.Path
    tokenizer: pathlib.Path
    documents: Mapping[str, int]
    fingerprint: str


def data_folder(given: str) -> pathlib.Path:
    """The folder of the data.

    Args:
      given: of the command line; "" for the environment's DISTILL_JAX_DATA, else shared/data beside
        the checkout.

    Raises:
      UsageError: one of `SOURCES` is not there.
    """
    default = ROOT.parent / "shared" / "data"
    folder = pathlib.Path(given or os.environ.get("DISTILL_JAX_DATA", default))
    for name in SOURCES.values():
        if not (folder / name).is_file():
            raise UsageError(
                f"--data={folder}: has no {name}; expected the files that "
                "experiments/tiny_lm/README.md names"
            )
    return folder


def prepare(source: pathlib.Path, folder: pathlib.Path, most: int | None = None) -> Corpus:
    """Writes the study's files; the same source gives the same bytes.

    Args:
      source: from `data_folder`.
      folder: where they go; made when it does not exist.
      most: documents of a file that are used, at most; None for all.
    """
    tokenizer = text.load_tokenizer(source / SOURCES["tokenizer"], key="--data")
    read = {split: _documents(source / SOURCES[split], most) for split in ("train", "test")}
    fitting = {split: [_fits(row, tokenizer) for row in rows] for split, rows in read.items()}
    short = [row for row, fits in zip(read["train"], fitting["train"], strict=True) if fits]
    held_out = short[: min(VALIDATION, len(short) // 10)]
    student = short[len(held_out) :]
    left = [row for row in read["train"] if row not in held_out]
    files = {
        TEACHER: [{"text": row["prompt"] + row["response"]} for row in left],
        STUDENT: student,
        FEW: student[: -(-len(student) // SCARCE)],
        VALID: held_out,
        TEST: [row for row, fits in zip(read["test"], fitting["test"], strict=True) if fits][
            :TESTED
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, rows in files.items():
        content = _lines(rows)
        digest.update(content.encode())
        write_atomically(folder / name, content)
    stories = folder / "stories260K"
    if not (stories / "config.json").exists():
        with np.load(source / SOURCES["stories"]) as arrays:
            language.save(stories, language.from_llama2c(dict(arrays), heads=8, key="--data"))
    return Corpus(
        folder,
        stories,
        source / SOURCES["tokenizer"],
        {name: len(rows) for name, rows in files.items()},
        digest.hexdigest(),
    )


def finished(responses: pathlib.Path, out: pathlib.Path) -> dict[str, int]:
    """Keeps the responses that the teacher ended itself: one cut off would teach a wrong end.

    They are those that fit into a row, as the documents of the students do.

    Args:
      responses: of `distill-jax generate`.
      out: the JSONL that is written, with "prompt" and "response".

    Returns:
      {"written", "kept"}: how many there were, and are.
    """
    rows = [json.loads(line) for line in responses.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row["finish"] == "stop" and row["response"]]
    write_atomically(
        out, _lines({name: row[name] for name in ("prompt", "response")} for row in kept)
    )
    return {"written": len(rows), "kept": len(kept)}


def _documents(file: pathlib.Path, most: int | None) -> list[dict[str, str]]:
    records = list(text.read(file, fields="gsm8k"))[:most]
    return [{"prompt": row.prompt + "\n", "response": row.response} for row in records]


def _fits(row: Mapping[str, str], tokenizer: text.Tokenizer) -> bool:
    counts = (len(ids) + 1 for ids in tokenizer.encode_batch([row["prompt"], row["response"]]))
    return all(count <= HALF for count in counts)


def _lines(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
