"""The table of docs/licences.md: `python -m distill_jax.provenance.page docs/licences.md`."""

import pathlib
import sys

from distill_jax.provenance.licence_table import CHECKED_ON, TERMS

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_ANSWERS = {"yes": "yes", "conditions": "on conditions", "no": "**no**", "unknown": "unknown"}
_CHECKED = {"text": "text read", "quotation": "quotations of it", "memory": "not checked"}


def table() -> str:
    """The licences, one a row, with what decides and how that was checked."""
    lines = [
        f"Checked on {CHECKED_ON}.",
        "",
        "| `teacher.licence` | outputs may train other models | clause | checked against |",
        "|---|---|---|---|",
    ]
    for terms in TERMS.values():
        owed = "".join(f"<br>Owed: {line}" for line in terms.obligations)
        lines.append(
            f"| `{terms.name}` [{terms.title}]({terms.source}) | {_ANSWERS[terms.answer]} "
            f"| {terms.clause}{owed} | {_CHECKED[terms.checked]} |"
        )
    return "\n".join(lines)


def updated(page: str) -> str:
    """A page with the table between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    file = pathlib.Path(sys.argv[1])
    file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
