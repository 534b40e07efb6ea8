"""README.md of an exported folder: the card of the model, by the records of its run."""

import pathlib
from typing import Any

from distill_jax import __version__, provenance
from distill_jax.config import flatten
from distill_jax.config.schema import IMAGES, SCHEMA
from distill_jax.errors import UsageError
from distill_jax.provenance import card
from distill_jax.runs.export.source import Source

# Keys of a config that do not decide what was trained, or that the card has elsewhere.
_LEFT_OUT = ("mesh.", "logging.", "checkpoint.", "imports", "teacher.", "data.path")
_LOCAL_SETS = ("digits", "idx", "npz", "folder", "text")


def models_of(source: Source, *, permits: bool = False) -> list[dict[str, Any]]:
    """The models that an export's model was made from: role, path, fingerprint and licence.

    Args:
      source: the model. One without a run is the model that its folder's licence is of.
      permits: whether the user states that the owners permit it where a licence forbids it.

    Raises:
      UsageError: the licence of one forbids to train other models on its outputs, and no
        permission is recorded or stated.
    """
    found: list[dict[str, Any]]
    if not source.manifest:
        licence = provenance.read_licence(source.root)
        if not licence["read_from"]:
            return []
        found = [{"role": card.WEIGHTS, "path": source.root.name, "licence": licence}]
    else:
        found = provenance.made_from(source.manifest)
    for entry in found:
        if not entry["licence"]["read_from"]:  # of an earlier version, or unknown then
            entry["licence"] = provenance.read_licence(entry["path"])
        if permits and provenance.answer(entry["licence"]) == "no":
            entry["licence"] = provenance.stated_record(entry["licence"], True)
        # A model that was imported is no student of itself, but one of ours may have teachers.
        student = entry["role"] != card.WEIGHTS or entry["licence"].get("of")
        if student and provenance.answer(entry["licence"]) == "no":
            raise UsageError(
                f"--workdir={source.root}: the licence {_forbidding(entry['licence'])} of its "
                f"{entry['role']} {entry['path']!r} does not let outputs train other models; "
                "expected `export --teacher-permits` where its owner permits it"
            )
    return found


def _forbidding(licence: dict[str, Any]) -> Any:
    """The name of the licence that forbids it, of a model or of those that it was made from."""
    parts = provenance.parts_of(licence)
    return next((part["name"] for part in parts if provenance.answer(part) == "no"), None)


def write(
    source: Source,
    folder: pathlib.Path,
    *,
    form: str,
    library: str,
    made_from: list[dict[str, Any]],
    licence: str,
    written: dict[str, Any],
) -> None:
    """Writes README.md, and the texts of the licences that the weights came with.

    Args:
      source: the model that was exported.
      folder: the new folder.
      form: its format.
      library: that reads it, as the Hub names it.
      made_from: of `models_of`.
      licence: name of the model's own; "" for that of the weights that it began with.
      written: what the writer of the format reported.
    """
    manifest, result = source.manifest, source.result
    facts = {
        "format": form,
        "fingerprint": written.get("fingerprint") or written.get("parameters_sha256"),
        "distill_jax": manifest.get("distill_jax", __version__),
        "revision": manifest.get("git_revision"),
        "trained": manifest.get("started"),
    }
    data = {key: value for key, value in manifest.get("data", {}).items() if key != "class_names"}
    content = card.Card(
        title=source.root.resolve().name or "model",
        kind=source.kind,
        library=library,
        licence=licence,
        made_from=made_from,
        data={key: value for key, value in data.items() if key != "written_by"},
        datasets=_datasets(source.kind, data),
        settings=_settings(manifest),
        figures={name: each for name, each in result.items() if isinstance(each, dict)},
        facts={name: value for name, value in facts.items() if value},
    )
    texts: dict[str, bytes] = {}
    for entry in made_from:
        if entry["role"] == card.WEIGHTS:
            place = entry["path"] if manifest else source.root
            texts |= provenance.licence_texts(place)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    (folder / card.NAME).write_text(card.render(content), encoding="utf-8", errors="replace")


def _datasets(kind: str, data: dict[str, Any]) -> tuple[str, ...]:
    name = str(data.get("name", ""))
    return (name,) if kind == IMAGES and name and name not in _LOCAL_SETS else ()


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """The keys of a run's config that differ from the defaults."""
    flat = flatten(manifest.get("config", {}))
    chosen = {}
    for key, value in flat.items():
        default = SCHEMA[key].default if key in SCHEMA else None
        plain = list(default) if isinstance(default, tuple) else default
        if value != plain and not key.startswith(_LEFT_OUT):
            chosen[key] = value
    return chosen
