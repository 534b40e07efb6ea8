"""From the summary to the study's files: tables in the README, and two figures.

The block between the two markers of the README is made from results/summary.json, so that its
numbers cannot drift from the plans. Left out on purpose: planning.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import workdir
from experiments import markers
from experiments.scale import figures, plan

SUMMARY = "summary.json"
#: Records of `experiments.scale.measured`.
MEASURED = "measured-*.json"
#: Bytes of a token's stored answer, `plan.STORED`: 50 draws, each an id of four bytes and a count.
STORED_BYTES = 50 * (4 + 1)

Summary = Mapping[str, Any]
_COST = Column("cost", "Chip-seconds a million tokens", "decimal", 1)
_TIMES = (
    Column("compute", "Compute, s", "decimal", 3),
    Column("hbm", "HBM, s", "decimal", 3),
    Column("interconnect", "Interconnect, s", "decimal", 3),
    Column("bound", "Bound"),
    Column("step", "At least, s", "decimal", 3),
    Column("no_overlap", "No overlap, s", "decimal", 3),
    Column("mfu", "MFU at most (%)", "percent", 1),
)


def row(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one plan, as the tables and figures use them.

    Args:
      found: one of the summary's plans.

    Returns:
      The columns' values, such as "cost", chip-seconds for a million tokens at the step's bound,
      and "teacher_parameters", 0 without a teacher. Times and costs are None if it does not fit.
    """
    case, size = found["case"], found["bytes_a_device"]
    times = found["seconds_a_step"] if found["fits"] else None
    times, tokens = times or {}, found["tokens_a_step"]
    step = times.get("step")
    sent = found["collectives_a_step"] if found["fits"] else []
    most = max(sent, key=lambda one: one["bytes"], default=None)
    return {
        **case,
        "teacher_parameters": found["parameters"].get("teacher", 0),
        "teacher_billions": found["parameters"].get("teacher", 0) / 1e9,
        "student_billions": found["parameters"]["student"] / 1e9,
        "chips": found["devices"],
        "tokens": tokens,
        "gib": size["total"] / 2**30,
        "limit": size["limit"] / 2**30,
        "fits": "yes" if found["fits"] else "no" if found["compiled"] else "no, not compiled",
        "compute": times.get("compute"),
        "hbm": times.get("memory"),
        "interconnect": times.get("interconnect"),
        "bound": {"memory": "HBM"}.get(times.get("bound"), times.get("bound")),
        "sent": sum(one["bytes"] for one in sent) / 1e9 if sent else None,
        "most": most and most["kind"],
        "step": step,
        "no_overlap": times.get("step_without_overlap"),
        "mfu": found["mfu"] if found["fits"] else None,
        "speed": tokens / step if step else None,
        "cost": step * found["devices"] / tokens * 1e6 if step else None,
    }


def rows(summary: Summary) -> list[dict[str, Any]]:
    """`row` of each plan."""
    return [row(found) for found in summary["plans"]]


def by_rule(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The plans of pairs with their own teachers and one row a chip, by pair and target."""
    order = {name: n for n, name in enumerate((*plan.PAIRS, *plan.TARGETS))}
    kept = filter(plan.by_rule, found)
    return sorted(kept, key=lambda one: (order[one["pair"]], order[one["target"]]))


def targets_table(summary: Summary) -> tables.Table:
    """What fits and what bounds the step, one line for each pair and target."""
    return tables.listing(
        by_rule(rows(summary)),
        (
            Column("pair", "Pair"),
            Column("target", "Target"),
            Column("rows", "Rows", "integer"),
            Column("gib", "GiB a device", "decimal", 1),
            Column("limit", "of", "decimal", 1),
            Column("fits", "Fits"),
            *_TIMES,
            Column("sent", "GB sent a chip", "integer"),
            Column("most", "most of it by"),
            Column("speed", "Tokens/s at most", "integer"),
            _COST,
        ),
    )


def tokens_table(summary: Summary) -> tables.Table:
    """One pair on one slice with more and more rows."""
    kept = [
        one
        for one in rows(summary)
        if (one["pair"], one["target"], one["teacher"])
        == (plan.LLAMA, plan.HUB, plan.AS_CONFIGURED)
        and plan.plain(one)
    ]
    return tables.listing(
        sorted(kept, key=lambda one: one["rows"]),
        (
            Column("rows", "Rows", "integer"),
            Column("tokens", "Tokens a step", "integer"),
            Column("gib", "GiB a device", "decimal", 1),
            Column("fits", "Fits"),
            *_TIMES,
            _COST,
        ),
    )


def teachers_table(summary: Summary) -> tables.Table:
    """All pairs on one slice, the student alone first, by the teacher's size."""
    kept = [
        one
        for one in rows(summary)
        if one["target"] == plan.HUB and one["rows"] == plan.rows(plan.HUB) and plan.plain(one)
    ]
    order = {name: n for n, name in enumerate(plan.PAIRS)}
    return tables.listing(
        sorted(kept, key=lambda one: (order[one["pair"]], one["teacher_parameters"])),
        (
            Column("pair", "Pair"),
            Column("teacher_billions", "Teacher (10⁹)", "decimal", 1),
            Column("student_billions", "Student (10⁹)", "decimal", 1),
            Column("gib", "GiB a device", "decimal", 1),
            *_TIMES,
            _COST,
        ),
    )


def shards_table(summary: Summary) -> tables.Table:
    """Shards over all chips and over fewer, for the cases where both were planned."""
    found = rows(summary)
    order = {name: n for n, name in enumerate((*plan.PAIRS, *plan.TARGETS))}
    compared = {(one["pair"], one["target"]) for one in found if one["shards"]}
    kept = [
        one | {"shards": one["shards"] or one["chips"]}
        for one in found
        if (one["pair"], one["target"]) in compared and (plan.by_rule(one) or one["shards"])
    ]
    return tables.listing(
        sorted(kept, key=lambda one: (order[one["pair"]], order[one["target"]], one["shards"])),
        (
            Column("pair", "Pair"),
            Column("target", "Target"),
            Column("shards", "Shards", "integer"),
            Column("gib", "GiB a device", "decimal", 1),
            Column("fits", "Fits"),
            *_TIMES,
            Column("sent", "GB sent a chip", "integer"),
            Column("most", "most of it by"),
            _COST,
        ),
    )


def attention_table(summary: Summary) -> tables.Table:
    """Each case with XLA's attention, followed by the same case with the kernel."""
    found = rows(summary)
    plain = {(one["pair"], one["target"]): one for one in found if one["attention"]}
    listed = []
    for one in by_rule(found):
        other = plain.get((one["pair"], one["target"]))
        if other is not None:
            listed += [other, one | {"attention": "splash"}]
    return tables.listing(
        listed,
        (
            Column("pair", "Pair"),
            Column("target", "Target"),
            Column("attention", "Attention"),
            Column("gib", "GiB a device", "decimal", 1),
            *_TIMES,
            _COST,
        ),
    )


def stored_table(summary: Summary) -> tables.Table:
    """The online teacher compared with its stored answers and with no teacher."""
    found = rows(summary)
    by_teacher = {
        kind: {(one["pair"], one["target"]): one for one in found if one["teacher"] == kind}
        for kind in (plan.STORED, plan.ALONE)
    }
    listed = []
    for one in by_rule(found):
        stored, alone = (kind.get((one["pair"], one["target"])) for kind in by_teacher.values())
        if alone is None or not (one["cost"] and alone["cost"]):
            continue
        stored = stored if stored and stored["cost"] else None
        listed.append(
            {
                **one,
                "stored": stored and stored["cost"],
                "alone": alone["cost"],
                "stored_ratio": stored and one["cost"] / stored["cost"],
                "ratio": one["cost"] / alone["cost"],
                "no_overlap_ratio": one["no_overlap"] / alone["no_overlap"],
                "gib_stored": stored and stored["gib"],
                "gib_alone": alone["gib"],
                "read": (stored or alone)["speed"] * STORED_BYTES / 1e9,
            }
        )
    return tables.listing(
        listed,
        (
            Column("pair", "Pair"),
            Column("target", "Target"),
            Column("cost", "Online", "decimal", 1),
            Column("stored", "Stored", "decimal", 1),
            Column("alone", "Student alone", "decimal", 1),
            Column("stored_ratio", "Online over stored", "decimal", 2),
            Column("ratio", "Online over alone", "decimal", 2),
            Column("no_overlap_ratio", "the same, no overlap", "decimal", 2),
            Column("gib", "GiB online", "decimal", 1),
            Column("gib_stored", "stored", "decimal", 1),
            Column("gib_alone", "alone", "decimal", 1),
            Column("read", "Answers read, GB/s", "decimal", 2),
        ),
    )


def measured_row(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record of `experiments.scale.measured`, as its table uses them."""
    planned = found["planned"]
    times, total = planned["seconds_a_step"] or {}, planned["bytes_a_device"]["total"]
    peak = found["peak_bytes"]
    return {
        **found,
        "at_least": times.get("step"),
        "no_overlap": times.get("step_without_overlap"),
        "ratio": found["seconds_a_step"] / times["step"] if times else None,
        "planned_gib": total / 2**30,
        "assigned_gib": found["assigned_bytes"] / 2**30,
        "peak_gib": peak and peak / 2**30,
        "memory_ratio": peak and peak / total,
        "speed": planned["tokens_a_step"] / found["seconds_a_step"],
    }


_MEASURED = (
    Column("config", "Config"),
    Column("device", "Device"),
    Column("planned_for", "Plan of"),
    Column("at_least", "At least, s", "decimal", 3),
    Column("no_overlap", "No overlap, s", "decimal", 3),
    Column("seconds_a_step", "Measured, s", "decimal", 3),
    Column("ratio", "Measured over at least", "decimal", 2),
    Column("mfu", "MFU (%)", "percent", 1),
    Column("speed", "Tokens/s", "integer"),
    Column("planned_gib", "GiB planned", "decimal", 2),
    Column("assigned_gib", "assigned", "decimal", 2),
    Column("peak_gib", "peak", "decimal", 2),
    Column("memory_ratio", "Peak over planned", "decimal", 3),
    Column("date", "Date"),
)


def measured_line(found: Mapping[str, Any]) -> str:
    """The record in one line."""
    (cells,) = tables.listing([measured_row(found)], _MEASURED).rows
    return ", ".join(f"{c.heading}: {cell}" for c, cell in zip(_MEASURED, cells, strict=True))


def measured_block(folder: pathlib.Path) -> list[str]:
    """The section on measured steps, from the records of a folder; [] if there are none."""
    found = [workdir.read_json(path) for path in sorted(folder.glob(MEASURED))]
    if not found:
        return []
    rows = [measured_row(one) for one in found]
    commands = "\n".join(dict.fromkeys(f"    {one['command']}" for one in found))
    return [
        "### Predicted against measured\n",
        tables.markdown(tables.listing(rows, _MEASURED)),
        f"{commands}\n",
    ]


def _evidence(summary: Summary) -> str:
    """What was planned, by what, when, and what is missing."""
    made, total = (
        len(summary["plans"]),
        sum(len(summary[k]) for k in ("plans", "failed", "not_made")),
    )
    libraries = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    spent = sum(found["cpu_s"] for found in summary["plans"])
    lines = [
        f"{made} of {total} cases, {spent / 60:.0f} CPU minutes on {summary['hardware']}, up to "
        f"{summary['date']}, by\n\n    {summary['command']}\n\n{libraries}; revision "
        f"{summary['git_revision'] or 'not recorded'}.\n"
    ]
    if summary["failed"]:
        failed = "; ".join(f"{one['name']} ({one['error']})" for one in summary["failed"])
        lines.append(f"**Failed:** {failed}.\n")
    if summary["not_made"]:
        lines.append(f"**Not made yet:** {', '.join(summary['not_made'])}.\n")
    return "\n".join(lines)


def block(summary: Summary, results: pathlib.Path) -> str:
    """The block between the markers of the README; `results` is the folder of the records."""
    volume = STORED_BYTES * 1e9 / 1e12
    return "\n".join(
        [
            _evidence(summary),
            "### What fits, and what bounds the step\n",
            tables.markdown(targets_table(summary)),
            *measured_block(results),
            f"![{figures.STEPS_CAPTION}](results/{figures.STEPS})\n\n{figures.STEPS_CAPTION}.\n",
            f"### Tokens: {plan.LLAMA} on {plan.HUB}\n",
            tables.markdown(tokens_table(summary)),
            f"### The teacher's size: {plan.HUB}, {plan.rows(plan.HUB)} rows\n",
            tables.markdown(teachers_table(summary)),
            f"![{figures.COST_CAPTION}](results/{figures.COST})\n\n{figures.COST_CAPTION}.\n",
            f"### Shards over all chips, or over fewer: within a host of {plan.A_HOST} GPUs, over "
            "half of a torus\n",
            tables.markdown(shards_table(summary)),
            "### Attention on TPUs: XLA's, and the kernel that runs take\n",
            tables.markdown(attention_table(summary)),
            "### Teacher online against teacher stored\n",
            tables.markdown(stored_table(summary)),
            f"Chip-seconds a million tokens. Answers are `{plan.STORED}`, {STORED_BYTES} bytes a "
            f"token (ids of 4 bytes, counts of 1): {volume:.2f} TB for 10⁹ tokens, read at the "
            "speed of the step, over all chips together.\n",
        ]
    )


def write(summary: Summary, folder: pathlib.Path) -> pathlib.Path:
    """Writes results/summary.json, the figures and the README of a folder; the README's path."""
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    workdir.write_json(results / SUMMARY, summary)
    figures.draw(rows(summary), results)
    return markers.fill(folder / "README.md", lambda: block(summary, results))
