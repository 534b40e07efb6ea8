"""The licences of the teachers that a config names, and the stop where one forbids a student."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax import provenance
from distill_jax.errors import UsageError
from distill_jax.storage import local_path
from distill_jax.storage.sharded import MANIFEST
from distill_jax.teachers.answers.manifest import read_manifest

Record = dict[str, Any]


def teacher_licences(config: ConfigDict) -> list[tuple[str, Record]]:
    """(path, record) of each teacher, in the order of the config; those of a store by its manifest.

    A licence or permission that the config states takes the place of one that was read.
    """
    section = config.teacher
    if section.store and not section.path:
        found = [(section.store, _of_store(section.store))]
    else:
        found = [(path, provenance.read_licence(path)) for path in section.path]
    return [
        (path, stated(record, config.teacher, number))
        for number, (path, record) in enumerate(found)
    ]


def stated(record: Record, section: Mapping[str, Any], number: int = 0) -> Record:
    """A record with what the section `teacher` of a config states of the teacher of a number."""
    names, permissions = section["licence"], section["outputs_may_train_other_models"]
    if names and names[number]:
        record = provenance.record_of(names[number], "teacher.licence")
    return provenance.stated_record(record, permissions[number] if permissions else None)


def _of_store(path: str) -> Record:
    """The licence that a store of answers keeps of its teacher."""
    if not (local_path(path, "teacher.store") / MANIFEST).is_file():
        return provenance.record_of(None, "")
    kept = read_manifest(path)["teacher"].get("licence")
    return kept if isinstance(kept, dict) else provenance.record_of(None, "")


def check(config: ConfigDict) -> list[str]:
    """Refuses a config whose student may not learn from a teacher.

    Returns:
      A line for each teacher whose licence is unknown or has conditions.

    Raises:
      UsageError: the licence of a teacher forbids it, and no permission is stated.
    """
    key = "teacher.path" if config.teacher.path else "teacher.store"
    found = teacher_licences(config)
    for path, record in found:
        provenance.check_permitted(path, record, key=key)
    return [line for path, record in found if (line := provenance.note_on(path, record))]


def with_licences(config: ConfigDict, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the manifest records of each teacher, with its licence."""
    found = [record for _, record in teacher_licences(config)]
    return [{**entry, "licence": record} for entry, record in zip(entries, found, strict=True)]


def written_by(path: str) -> list[dict[str, Any]]:
    """The teachers that wrote the text of a file of `distill-jax generate`, by its manifest."""
    try:
        file = local_path(path, "data.path")
        content = json.loads(((file if file.is_dir() else file.parent) / MANIFEST).read_bytes())
        return [
            {
                "path": str(entry["path"]),
                "fingerprint": str(entry["fingerprint"]),
                "licence": provenance.as_record(entry),
            }
            for entry in content["teachers"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError):
        return []


def start_of_student(config: ConfigDict) -> Record | None:
    """The model whose weights a student begins with, and its licence; None for new weights."""
    options = config.student
    path = options.get("path") or (options.get("layers") and config.teacher.path[:1])
    if not path:
        return None
    path = path if isinstance(path, str) else path[0]
    return {"path": path, "licence": provenance.read_licence(path)}
