"""Sections about a classifier's predictions, from the record that its run wrote at its end.

The record, evaluation/test.npz, is that of `distill_jax.evaluation.records`. Left out on purpose:
anything that needs the networks or the images again.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.cluster import hierarchy

from distill_jax.reports import assets, html
from distill_jax.reports.tables import Column

MOST_PAIRS = 50  # most confused pairs in the table
MOST_MATRIX = 200  # classes of a confusion matrix that is drawn
Record = Mapping[str, np.ndarray]


def sections(record: Record, shown: Mapping[str, Any]) -> list[html.Section]:
    """The sections "Dark knowledge", "Agreement" and "Classes".

    Args:
      record: of the run.
      shown: the metrics of the test split in result.json.
    """
    names = [str(name) for name in record["names"]]
    title = "Dark knowledge" if "teacher" in record else "Predictions"
    return [
        (title, [_rule(record), _browser(record, names)]),
        ("Agreement" if "teacher" in record else "Confusions", _agreement(record, names)),
        ("Classes", [_classes(record, names, shown)]),
    ]


def _rule(record: Record) -> str:
    of = "teacher" if "teacher" in record else "student"
    how = f"the most and the least certain {of}, the least certain of each class"
    if "teacher" in record:
        how += ", those where student and teacher differ most, those where both err"
    return (
        f"{len(record['ids']):,} examples of the test split with the logits of the last step: "
        f"{how}, and the first ones of the split."
    )


def _browser(record: Record, names: Sequence[str]) -> html.Panel:
    files = np.split(record["thumbnails"], record["thumbnail_ends"][:-1])
    images = [
        f"data:image/webp;base64,{base64.b64encode(file.tobytes()).decode()}" if len(file) else None
        for file in files
    ]
    data = {
        "names": names,
        "ids": record["ids"],
        "labels": record["labels"],
        "student": assets.float32s(record["student"]),
        "teacher": assets.float32s(record["teacher"]) if "teacher" in record else None,
        "images": images,
    }
    return html.Panel("browser", data, "Soft targets of single examples")


def _pairs(record: Record, name: str) -> np.ndarray:
    """(row, column, count) of a confusion, int64 [3, M]; empty where there is none."""
    return record.get(f"pairs_{name}", np.zeros((3, 0))).astype(np.int64)


def _share(pairs: np.ndarray) -> float:
    """How many of the counted pairs are equal."""
    row, column, count = pairs
    return float(count[row == column].sum() / max(count.sum(), 1))


def _agreement(record: Record, names: Sequence[str]) -> list[html.Block]:
    student, both = _pairs(record, "student"), _pairs(record, "both")
    blocks: list[html.Block] = []
    if both.size:
        blocks.append(html.facts(_facts(record, both)))
    blocks += _confusions(record, names)
    confused = _confused(record, names)
    if confused:
        columns = [
            Column("from", "True class"),
            Column("to", "Predicted"),
            Column("student", "Student", "integer"),
            *([Column("teacher", "Teacher", "integer")] if both.size else []),
            Column("share", "Of the class (%)", "percent", 1),
        ]
        caption = f"The pairs that the student confuses most, of {len(student[2]):,} pairs found."
        blocks.append(
            html.table(
                confused,
                columns,
                caption=caption,
                interactive=True,
                shown=10,
                name="confused_pairs",
            )
        )
    blocks += _soft_targets(record, names)
    if len(record.get("taps", ())):
        rows = [
            {"tap": str(tap), "cka": float(value)}
            for tap, value in zip(record["taps"], record["cka"], strict=True)
        ]
        caption = (
            "Linear CKA of student and teacher at taps of the same name, averaged over positions, "
            "on at most 512 examples; 1 is the same representation up to rotation and scale."
        )
        columns = [Column("tap", "Tap"), Column("cka", "Linear CKA", "decimal", 3)]
        blocks.append(html.table(rows, columns, caption=caption))
    return blocks


def _facts(record: Record, both: np.ndarray) -> list[tuple[str, str]]:
    facts = [("Same prediction", f"{_share(both):.2%}")]
    if "teacher_errors" in record:
        wrong, saved = (int(value) for value in record["teacher_errors"])
        rate = f"{saved / wrong:.2%}" if wrong else "–"
        facts += [("Teacher's errors", f"{wrong:,}"), ("Student's accuracy on them", rate)]
    return facts


def _confusions(record: Record, names: Sequence[str]) -> list[html.Block]:
    if len(names) > MOST_MATRIX:
        return [
            f"Confusion matrices are drawn for up to {MOST_MATRIX} classes; here are the pairs."
        ]
    maps = []
    for key, title, row, column in (
        ("student", "Student against labels", "true class", "student"),
        ("teacher", "Teacher against labels", "true class", "teacher"),
        ("both", "Student against teacher", "teacher", "student"),
    ):
        pairs = _pairs(record, key)
        if pairs.size:
            matrix = np.zeros((len(names),) * 2)
            matrix[pairs[0], pairs[1]] = pairs[2]
            kind = {"title": title, "rows": row, "columns": column, "counts": True}
            maps.append({**kind, "values": assets.float32s(matrix)})
    return [html.Panel("matrix", {"names": list(names), "maps": maps}, "Confusion matrices")]


def _confused(record: Record, names: Sequence[str]) -> list[dict[str, Any]]:
    row, column, count = _pairs(record, "student")
    totals = np.bincount(row, weights=count, minlength=len(names))
    teacher = {(i, j): n for i, j, n in _pairs(record, "teacher").T.tolist()}
    wrong = np.flatnonzero(row != column)
    order = wrong[np.argsort(-count[wrong], kind="stable")][:MOST_PAIRS]
    return [
        {
            "from": names[row[k]],
            "to": names[column[k]],
            "student": int(count[k]),
            "teacher": teacher.get((int(row[k]), int(column[k])), 0),
            "share": count[k] / totals[row[k]],
        }
        for k in order
    ]


def _soft_targets(record: Record, names: Sequence[str]) -> list[html.Block]:
    """Mean soft targets of both networks, classes in the order of a clustering of the teacher's."""
    guide = record.get("soft_teacher", record.get("soft_student"))
    if guide is None:
        return [f"Mean soft targets are not kept of {len(names):,} classes."]
    order = clustered(guide)
    shown = record["soft_classes"][order]
    maps = [
        {
            "title": f"{title}: mean soft targets",
            "rows": "true class",
            "columns": "probability of",
            "counts": False,
            "values": assets.float32s(record[key][np.ix_(order, order)]),
        }
        for title, key in (("Teacher", "soft_teacher"), ("Student", "soft_student"))
        if key in record
    ]
    part = ""
    if len(shown) < len(names):
        part = f", for the {len(shown)} of {len(names):,} classes whose examples spread most"
    text = (
        f"Mean probabilities at T = 1 on the examples of each class{part}, in the order of a "
        "hierarchical clustering (average linkage) of "
        f"{'the teacher' if 'soft_teacher' in record else 'the student'}: classes that it likens "
        "to each other are neighbours."
    )
    data = {"names": [names[k] for k in shown], "maps": maps}
    return [text, html.Panel("matrix", data, "Mean soft targets")]


def clustered(similarity: np.ndarray) -> np.ndarray:
    """An order in which similar classes are neighbours.

    Args:
      similarity: [S, S], the larger the more alike; made symmetric.

    Returns:
      int [S]: leaves of the average-linkage tree of the distance 1 - s / max s, in optimal order.
    """
    count = len(similarity)
    if count < 3:
        return np.arange(count)
    likeness = np.nan_to_num((similarity + similarity.T).astype(np.float64))
    np.fill_diagonal(likeness, 0.0)
    distance = 1 - likeness / max(likeness.max(), 1e-12)
    condensed = distance[np.triu_indices(count, 1)]
    tree = hierarchy.linkage(condensed, "average", optimal_ordering=True)
    return hierarchy.leaves_list(tree)


def _classes(record: Record, names: Sequence[str], shown: Mapping[str, Any]) -> html.Markup:
    row, column, count = _pairs(record, "student")
    totals = np.bincount(row, weights=count, minlength=len(names))
    worst: dict[int, tuple[int, int]] = {}
    for i, j, n in zip(row.tolist(), column.tolist(), count.tolist(), strict=True):
        if i != j and n > worst.get(i, (0, 0))[0]:
            worst[i] = (n, j)
    own, teacher = shown.get("per_class"), shown.get("teacher_per_class")
    rows = [
        {
            "name": name,
            "count": int(totals[k]),
            "student": own[k] if own else None,
            "teacher": teacher[k] if teacher else None,
            "gap": own[k] - teacher[k]
            if own and teacher and None not in (own[k], teacher[k])
            else None,
            "taken": f"{names[worst[k][1]]} ({worst[k][0]})" if k in worst else "",
        }
        for k, name in enumerate(names)
    ]
    columns = [
        Column("name", "Class"),
        Column("count", "Examples", "integer"),
        Column("student", "Student (%)", "percent", 1),
    ]
    if teacher:
        columns += [
            Column("teacher", "Teacher (%)", "percent", 1),
            Column("gap", "Difference (points)", "percent", 1),
        ]
    columns.append(Column("taken", "Most often taken for"))
    caption = "Accuracy on the examples of each class of the test split, after the last step."
    return html.table(rows, columns, caption=caption, interactive=True, name="classes")
