"""The model card, README.md, of an exported folder: what the model was made from, and its figures.

The metadata block is that of the Hugging Face Hub (license, base_model, library_name, tags,
datasets, language), written as YAML by PyYAML, so that no name can break out of its field. Under
`distill_jax` it has the models that the model was made from, from which a later `train` reads the
licences again.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from distill_jax.provenance.licence_table import CHECKED_ON, TERMS, Terms, canonical
from distill_jax.provenance.licences import OWN, answer, parts_of

NAME = "README.md"
# The folder of a snapshot in the cache of huggingface_hub names its model.
_SNAPSHOT = re.compile(r"models--([A-Za-z0-9][\w.-]*?)--([\w.-]+)/snapshots/")
#: The role of the model whose weights a model began with, or that it is a conversion of.
WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a card tells of a model.

    Attributes:
      title: its first line.
      kind: "text" or "images".
      library: that reads the folder, as the Hub names it, such as "transformers".
      licence: name of the model's own licence; "" for that of the weights that it began with, and
        unknown without such.
      made_from: role, path, fingerprint and licence of each model, as `licences.made_from`.
      data: name and fingerprint of the training data, and more figures of them.
      datasets: their names on the Hub, where they are known.
      settings: how it was trained, by config key.
      figures: measured ones, by split.
      facts: more lines, by name: format, fingerprint, revision of the code.
    """

    title: str
    kind: str
    library: str
    licence: str = ""
    made_from: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    datasets: Sequence[str] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def render(card: Card) -> str:
    """The content of README.md."""
    metadata = yaml.safe_dump(
        _plain(_metadata(card)),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=10**6,
    )
    sections = [
        f"# {_inline(card.title)}",
        _table(("", ""), card.facts.items()),
        *_made_from(card),
        *_obligations(card),
        *_section("Data", _table(("", ""), _scalars(card.data))),
        *_section("How it was trained", _table(("key", "value"), card.settings.items())),
        *_figures(card),
    ]
    return f"---\n{metadata}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _metadata(card: Card) -> dict[str, Any]:
    licence = card.licence or own_licence(card.made_from)
    terms = TERMS.get(canonical(licence)) if licence else None
    found: dict[str, Any] = {}
    if terms and terms.on_hub:
        found["license"] = terms.name
    elif licence:
        found |= {"license": "other", "license_name": canonical(licence)}
        found |= {"license_link": terms.source} if terms else {}
    else:
        found["license"] = "unknown"
    bases = [_name_on_hub(entry["path"]) for entry in card.made_from if entry["role"] == WEIGHTS]
    if any(bases):
        found["base_model"] = [base for base in bases if base]
    found["library_name"] = card.library
    task = "text-generation" if card.kind == "text" else "image-classification"
    found["pipeline_tag"] = task
    found["tags"] = ["distill_jax", "knowledge-distillation"]
    if card.datasets:
        found["datasets"] = list(card.datasets)
    found[OWN] = {
        **card.facts,
        "made_from": list(card.made_from),
    }
    return found


def own_licence(made_from: Iterable[Mapping[str, Any]]) -> str:
    """The licence of the weights that a model began with, which they keep; "" for unknown."""
    starts = [entry["licence"].get("name") for entry in made_from if entry["role"] == WEIGHTS]
    return next((str(name) for name in starts if name), "")


def obligations(made_from: Iterable[Mapping[str, Any]]) -> list[tuple[Terms, tuple[str, ...]]]:
    """The licences of the models that a model was made from, and what each asks of it."""
    names = [
        canonical(str(part["name"]))
        for entry in made_from
        for part in parts_of(entry["licence"])
        if part.get("name")
    ]
    known = [TERMS[name] for name in dict.fromkeys(names) if name in TERMS]
    return [(terms, terms.obligations) for terms in known]


def _made_from(card: Card) -> list[str]:
    rows = []
    for entry in card.made_from:
        record = entry["licence"]
        names = [str(part.get("name") or "unknown") for part in parts_of(record)]
        stated = record.get("permission_stated")
        words = {True: "yes, as its user stated", False: "no, as its user stated"}
        permitted = answer(record) if stated is None else words[stated]
        fingerprint = str(entry.get("fingerprint") or "unknown")
        row = (entry["role"], entry["path"], fingerprint, ", ".join(dict.fromkeys(names)))
        rows.append((*row, permitted))
    titles = ("role", "model", "fingerprint", "licence", "outputs may train other models")
    none = "From its data alone: no other model had a part in it."
    return _section("Made from", _table(titles, rows) or none)


def _obligations(card: Card) -> list[str]:
    lines = []
    for terms, owed in obligations(card.made_from):
        memory = ", from memory" if terms.checked == "memory" else ""
        lines.append(f"- {terms.title} ({terms.clause}{memory}), <{terms.source}>")
        lines += [f"  - {line}" for line in owed]
    if not lines:
        return []
    about = (
        f"Of the licences above, as the table of distill_jax has them (checked on {CHECKED_ON}; "
        "no legal advice; the text of a licence decides):"
    )
    return _section("What their licences ask", about + "\n\n" + "\n".join(lines))


def _figures(card: Card) -> list[str]:
    rows = [
        (split, name, f"{value:.6g}" if isinstance(value, float) else value)
        for split, values in card.figures.items()
        for name, value in _scalars(values)
        if not isinstance(value, str)
    ]
    return _section("Measured", _table(("split", "figure", "value"), rows))


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The single numbers and texts, and those one level below."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {key}", v) for key, v in value.items() if _is_scalar(v))
        elif _is_scalar(value):
            yield name, value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown; "" without rows."""
    lines = [" | ".join(map(_inline, map(str, row))) for row in rows]
    if not lines:
        return ""
    head = [" | ".join(titles), " | ".join(["---"] * len(titles))]
    return "\n".join(f"| {line} |" for line in (*head, *lines))


def _inline(text: str) -> str:
    """A text that Markdown and HTML show as it is, in one line."""
    escaped = re.sub(r"([\\`*_{}\[\]<>()#+!|~$&])", r"\\\1", _one_line(text))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _name_on_hub(path: str) -> str:
    """The name, owner/name, of the model in a snapshot of the Hub; "" for another folder."""
    found = _SNAPSHOT.search(path)
    return f"{found[1]}/{found[2]}" if found else ""


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _plain(value: Any) -> Any:
    """Of a JSON value, what YAML writes without tags and in one line: `---` would end the block."""
    if isinstance(value, Mapping):
        return {_one_line(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else _one_line(value)
