"""Sections about a language model: token by token, by position and length, and its answers.

Left out on purpose: anything that needs the networks again; the record of the run has it all.
"""

import difflib
import html as markup
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.reports import html

LONGEST_ANSWER = 800  # characters of an answer on the page; result.json has all of them
FEWEST = 20  # tokens in a bucket of position or length, to be drawn
Record = Mapping[str, np.ndarray]


def sections(record: Record) -> list[html.Section]:
    """The sections "Token by token" and "Position and length".

    Args:
      record: evaluation/test.npz of a run on text.
    """
    found: list[html.Section] = []
    rows = json.loads(record["rows"].tobytes())
    if rows:
        taught = any("kl" in token for row in rows for token in row)
        text = "The first rows of the test split with the networks of the last step, at T = 1: "
        text += "the colour is the KL divergence of the student from the teacher at each token."
        if not taught:
            text = "The first rows of the test split after the last step, coloured by the loss."
        panel = html.Panel("tokens", {"rows": rows}, "Text token by token")
        found.append(("Token by token", [text, panel]))
    charts = [
        chart
        for title, key in (
            ("Perplexity by position in the document", "by_position"),
            ("Perplexity by length of the document", "by_length"),
        )
        if (chart := _perplexity(title, record[key]))
    ]
    if charts:
        tokens = int(record["by_position"][:, 0].sum())
        text = (
            f"Over {tokens:,} tokens of the test split, in buckets that double in size; a point "
            f"stands at the first position, or length in tokens, of its bucket. Buckets of fewer "
            f"than {FEWEST} tokens are left out."
        )
        data = {"axes": [("tokens", "Tokens")], "log_x": True, "charts": charts}
        found.append(("Position and length", [text, html.Panel("chart", data, "Perplexity")]))
    return found


def _perplexity(title: str, sums: np.ndarray) -> dict[str, Any] | None:
    """A chart of exp of the mean loss in each bucket; None without enough tokens."""
    enough = np.flatnonzero(sums[:, 0] >= FEWEST)
    if not len(enough):
        return None
    begins = [max(2 ** (int(b) - 1), 1) if b else 0.5 for b in enough]  # 0.5 stands for 0: log axis
    series = [
        {"label": label, "x": {"tokens": begins}, "y": np.exp(sums[enough, i] / sums[enough, 0])}
        for i, label in ((1, "student"), (2, "teacher"))
        if np.isfinite(sums[enough, i]).all()
    ]
    return {"title": title, "unit": "of a token", "series": series}


def on_policy(metrics: Sequence[Mapping[str, Any]]) -> str:
    """One line about what the student wrote itself; "" where it never did."""
    shares = [r["on_policy"] for r in metrics if r.get("on_policy") is not None]
    if not any(shares):
        return ""
    share = sum(shares) / len(shares)
    return (
        f"On-policy: in {share:.1%} of the logged steps the student was trained on what it wrote "
        "itself, judged by the teacher; the curves below have the share over time."
    )


def answers(samples: Sequence[Mapping[str, str]], split: str) -> list[html.Block]:
    """Answers to the first prompts, side by side; what differs is marked, word by word.

    Args:
      samples: each with "prompt", "reference", "student" and maybe "teacher".
      split: of the prompts.
    """
    against = "teacher" if "teacher" in samples[0] else "reference"
    titles = {"reference": "Response in the file", "teacher": "Teacher", "student": "Student"}
    text = (
        f"The first prompts of the {split} split, with answers after the last step. Marked: what "
        f"differs between student and {'teacher' if against == 'teacher' else 'response'}."
    )
    blocks: list[html.Block] = [text]
    for sample in samples:
        marked = dict(zip((against, "student"), _marked(sample, against), strict=True))
        cells = [
            f"<div><dt>{title}</dt><dd>{marked.get(key) or markup.escape(_cut(sample[key]))}</dd>"
            "</div>"
            for key, title in titles.items()
            if key in sample
        ]
        prompt = html.paragraph(_cut(sample["prompt"]))
        blocks.append(html.Markup(f'<div class="answers">{prompt}<dl>{"".join(cells)}</dl></div>'))
    return blocks


def _marked(sample: Mapping[str, str], against: str) -> tuple[str, str]:
    """Both texts as HTML with <mark> around the words that differ."""
    ours, theirs = (re.findall(r"\s+|[^\s]+", _cut(sample[key])) for key in ("student", against))
    parts: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        for out, words in zip(parts, (theirs[i:j], ours[k:m]), strict=True):
            text = markup.escape("".join(words))
            out.append(text if kind == "equal" or not text else f"<mark>{text}</mark>")
    return "".join(parts[0]), "".join(parts[1])


def _cut(text: str) -> str:
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]} …"
