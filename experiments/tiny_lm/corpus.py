"""The text of the study: GSM8K, split for the training of teacher and students, tuning and testing.

A document is a question and its solution. Students are trained on those that fit into a row, with
the question in one half and the solution in the other; the teacher is trained on these and on all
longer ones. No document of `VALID` or `TEST` trains anything.
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

HALF = 128  # the most tokens of a question with bos, and of a solution with eos
VALIDATION = 120  # documents, at most a tenth
TESTED = 100
SCARCE = 8  # the factor by which the small text is smaller

ROOT = pathlib.Path(__file__).resolve().parents[2]

#: The files of the data folder that are read.
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
    """The prepared text.

    Attributes:
      folder: the folder of the JSONL files with the names above.
      stories: the folder of the pretrained model.
      tokenizer: the tokenizer's file.
      documents: the number of documents of each file.
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
      given: the command line's; "" for the environment's DISTILL_JAX_DATA, else shared/data next to
        the checkout.

    Raises:
      UsageError: the folder lacks one of `SOURCES`.
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
      folder: the folder of the files; made if it does not exist.
      most: the most documents of a file that are used; None for all.
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
    """Keeps the responses that the teacher ended itself; a truncated one would teach a wrong end.

    These fit into a row, like the documents of the students.

    Args:
      responses: the responses of `distill-jax generate`.
      out: the JSONL file to write, with "prompt" and "response".

    Returns:
      {"written", "kept"}: the number of all responses, and of those that are kept.
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
