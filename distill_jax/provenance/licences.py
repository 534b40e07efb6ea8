"""A teacher's licence: read from its folder or stated, and whether a student may learn from it.

A record is a JSON object, as manifests, answer stores and cards keep it:

    name          as it was read; null for unknown
    read_from     the file or config key
    outputs_may_train_other_models   "yes", "conditions", "no" or "unknown", by `licence_table`
    clause        of the licence, that answers this
    permission_stated   true or false, where the user stated it; absent otherwise
    of            of a model that distill_jax trained: the records of the models it was made from
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from distill_jax import storage
from distill_jax.errors import UsageError
from distill_jax.provenance.licence_table import TERMS, canonical, recognise
from distill_jax.storage import gcs

Record = dict[str, Any]

ANSWER = "outputs_may_train_other_models"
KEY = f"teacher.{ANSWER}"
#: Under this name the metadata of a card has what distill_jax needs to read it back.
OWN = "distill_jax"

_FILES = re.compile(
    r"(model[-_.])?(licen[cs]e|copying)([-_.](model|weights))?([-_.]\d+)?(\.(txt|md|rst))?", re.I
)
_NO_NAME = ("", "other", "unknown")
_STRICT = ("yes", "conditions", "unknown", "no")
_MOST_BYTES = 2**20  # of a file that is read here
_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def record_of(name: str | None, read_from: str) -> Record:
    """The record of a licence by its name; None for unknown."""
    terms = TERMS.get(canonical(name)) if name else None
    record: Record = {"name": name, "read_from": read_from}
    record[ANSWER] = terms.answer if terms else "unknown"
    if terms:
        record["clause"] = terms.clause
    return record


def stated_record(record: Record, permission: bool | None) -> Record:
    """A record with what the user stated of the permission; None for nothing."""
    return record if permission is None else {**record, "permission_stated": permission}


def as_record(entry: Mapping[str, Any]) -> Record:
    """The licence of a teacher in a manifest; by its name alone in one of an earlier version."""
    known = entry.get("licence")
    return known if isinstance(known, dict) else record_of(entry.get("license"), "manifest.json")


def answer(record: Mapping[str, Any]) -> str:
    """Whether outputs of the model may train other models, by statement or licence."""
    if (stated := record.get("permission_stated")) is not None:
        return "yes" if stated else "no"
    parts = [answer(part) for part in record.get("of", ()) if isinstance(part, Mapping)]
    return _strictest([str(record.get(ANSWER)), *parts])


def _strictest(answers: Iterable[str]) -> str:
    return max((a if a in _STRICT else "unknown" for a in answers), key=_STRICT.index)


def parts_of(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A record and, of a model of ours, those of all models that it was made from."""
    if record.get("name") or not record.get("of"):
        yield record
    for part in record.get("of", ()):
        if isinstance(part, Mapping):
            yield from parts_of(part)


def read_licence(path: str | os.PathLike) -> Record:
    """The record of the licence in the folder of a model, or in its workdir.

    In this order: the metadata of README.md, a file such as LICENSE by its text, config.json, and
    of a model that distill_jax trained the licences of what it was made from. Where README.md and
    LICENSE name two licences, the stricter one counts. Nothing is read that names none.

    Args:
      path: of a folder, or of a file in it; it need not exist.
    """
    folder = storage.resolve_path(path, "teacher.path")
    try:
        if folder.is_file():
            folder = folder.parent
        found = [record for place in _places(folder) for record in _named(place)]
        made_from = _made_from(folder)
    except (OSError, gcs.BucketError):
        found, made_from = [], None
    if found:
        return max(found, key=lambda record: _STRICT.index(answer(record)))
    return made_from or record_of(None, "")


def _places(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """A folder and, of a workdir, that of its model."""
    return folder, folder / "model"


def _named(folder: pathlib.Path) -> Iterator[Record]:
    """The licences that the files of a folder name, by the kind of file."""
    metadata = read_metadata(folder / "README.md")
    for name in _names_in(metadata):
        record = record_of(name, "README.md")
        yield {**record, "of": made} if (made := _own_parts(metadata)) else record
    for file in _licence_files(folder):
        if recognised := recognise(_head(file)):
            yield record_of(recognised, file.name)
    try:
        config = json.loads(_head(folder / "config.json"))
    except (ValueError, RecursionError):
        return
    given = config.get("license") if isinstance(config, dict) else None
    if isinstance(given, str) and given.strip().lower() not in _NO_NAME:
        yield record_of(given.strip(), "config.json")


def read_metadata(file: pathlib.Path) -> dict[str, Any]:
    """The metadata block at the start of a card; {} where there is none that can be read."""
    matter = _MATTER.match(_head(file))
    try:
        found = yaml.safe_load(matter[1]) if matter else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _names_in(metadata: Mapping[str, Any]) -> list[str]:
    """The names of licences in the metadata of a card, as they are written there."""
    given = metadata.get("license")
    listed = given if isinstance(given, list) else [given]
    names = [name.strip() for name in listed if isinstance(name, str)]
    if not [name for name in names if name.lower() not in _NO_NAME]:
        names = [str(metadata.get("license_name") or "").strip()]
    return [name for name in names if name.lower() not in _NO_NAME and "\n" not in name]


def _licence_files(folder: pathlib.Path) -> list[pathlib.Path]:
    if storage.is_remote(folder):
        names = gcs.list_names(folder)
    else:
        names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in sorted(names) if _FILES.fullmatch(name)]


def licence_texts(path: str | os.PathLike) -> dict[str, bytes]:
    """The files of a model's folder that its licence asks to pass on: LICENSE and NOTICE."""
    folder = storage.resolve_path(path, "--workdir")
    notices = [folder / name for name in ("NOTICE", "NOTICE.txt", "Notice", "Notice.txt")]
    try:
        files = [*_licence_files(folder), *notices]
        return {file.name: file.read_bytes()[:_MOST_BYTES] for file in files if file.is_file()}
    except (OSError, gcs.BucketError):
        return {}


def _head(file: pathlib.Path) -> str:
    """The text of a small file; "" where there is none."""
    try:
        with file.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _made_from(folder: pathlib.Path) -> Record | None:
    """The record of a model that distill_jax trained; None of another one."""
    own = _own_parts(read_metadata(folder / "README.md"))
    if own is not None:
        return _whole("README.md", own)
    root = folder.parent if folder.name in ("model", "model_selected") else folder
    try:
        manifest = json.loads((root / "manifest.json").read_bytes())
        entries = made_from(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return _whole("manifest.json", [entry["licence"] for entry in entries])


def _own_parts(metadata: Mapping[str, Any]) -> list[Record] | None:
    """The records in the card of a model that distill_jax exported; None in another card."""
    own = metadata.get(OWN)
    entries = own.get("made_from") if isinstance(own, dict) else None
    if not isinstance(entries, list):
        return None
    licences = [entry.get("licence") if isinstance(entry, dict) else None for entry in entries]
    return [one if isinstance(one, dict) else record_of(None, "") for one in licences]


def _whole(read_from: str, parts: Sequence[Record]) -> Record:
    """The record of a model by those that it was made from; without any, it is its maker's."""
    return {"name": None, "read_from": read_from, ANSWER: "yes", "of": list(parts)}


def made_from(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models that a run was made from: role, path, fingerprint and licence of each.

    Args:
      manifest: of the run. One of an earlier version knows no licences.

    Raises:
      KeyError, TypeError: it is no manifest of a run.
    """
    roles = [("teacher", entry) for entry in manifest["teachers"]]
    roles += [("weights", entry) for entry in [manifest.get("started_from")] if entry]
    roles += [("writer of its text", entry) for entry in manifest["data"].get("written_by", ())]
    return [
        {
            "role": role,
            "path": str(entry["path"]),
            "fingerprint": entry.get("fingerprint"),
            "licence": as_record(entry),
        }
        for role, entry in roles
    ]


def check_permitted(path: object, record: Mapping[str, Any], *, key: str = "teacher.path") -> None:
    """Refuses a teacher whose licence, or user, says that its outputs may not train other models.

    Args:
      path: of the teacher, for the error.
      record: its licence.
      key: the config key that named it.

    Raises:
      UsageError: outputs may not train other models, and no permission is stated.
    """
    if answer(record) != "no":
        return
    if record.get("permission_stated") is False:
        raise UsageError(f"{KEY}=False: of {key}={str(path)!r}; expected True, or another teacher")
    part = next(part for part in parts_of(record) if answer(part) == "no")
    where = f" ({part['read_from']})" if part.get("read_from") else ""
    raise UsageError(
        f"{key}={str(path)!r}: its licence {part.get('name')}{where} does not let outputs train "
        f"other models ({part.get('clause', 'as recorded')}); expected another teacher, or "
        f"{KEY}=True where its owner permits it"
    )


def note_on(path: object, record: Mapping[str, Any]) -> str:
    """One line where the licence of a teacher is unknown or has conditions; "" otherwise."""
    found = answer(record)
    part = next((part for part in parts_of(record) if answer(part) == found), record)
    if found == "conditions":
        return f"the licence {part['name']} of {str(path)!r} has conditions: {part.get('clause')}"
    if found != "unknown":
        return ""
    known = f"its licence {part['name']} is not in docs/licences.md, or leaves it open"
    named = known if part.get("name") else "its folder names no licence"
    return (
        f"whether outputs of {str(path)!r} may train other models is unknown: {named}; "
        "teacher.licence names it"
    )
