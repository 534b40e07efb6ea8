"""`distill-jax compare`: seeds, costs, differences, files, and what it refuses."""

import csv
import json
import statistics

import numpy as np
import pytest
import scipy.stats
from run_folders import CONFIG, make_run

from distill_jax import cli
from distill_jax.errors import UsageError
from distill_jax.runs import comparison


def record(correct, nll=None, of="a"):
    correct = np.asarray(correct, np.uint8)
    nll = np.float32(1 - 0.5 * correct) if nll is None else nll
    return {"each_correct": correct, "each_nll": nll, "each_of": np.array(of)}


def seeds(root, name, accuracies, **changes):
    return [
        make_run(
            root / f"{name}_{seed}",
            config={
                "seed": seed,
                "teacher": {"path": [f"teachers/t_{seed}"]},
                **changes,
            },
            test={"accuracy": accuracy},
            teacher=str(seed) * 64,
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def test_seeds_are_recognised_and_averaged(tmp_path):
    alone = seeds(tmp_path, "alone", [0.8, 0.9, 0.85], method={"name": "supervised"})
    taught = seeds(tmp_path, "taught", [0.91, 0.95])
    found = comparison.compare([alone[0], taught[0], *alone[1:], taught[1]])
    assert [(group.label, len(group.runs)) for group in found.groups] == [
        ("alone", 3),
        ("taught", 2),
    ]
    first = found.groups[0]
    assert first.mean("accuracy") == pytest.approx(statistics.fmean([0.8, 0.9, 0.85]))
    assert first.deviation("accuracy") == pytest.approx(statistics.stdev([0.8, 0.9, 0.85]))
    assert found.groups[1].deviation("accuracy") == pytest.approx(statistics.stdev([0.91, 0.95]))
    # What follows the seed is no difference of the settings.
    assert set(found.config) == {"method.name", "method.temperature"}
    assert found.config["method.temperature"] == ("–", "4.0")
    assert comparison.compare([*alone, taught[0]]).config == found.config


def test_the_same_teacher_under_another_name_is_the_same(tmp_path):
    moved = {"seed": 1, "teacher": {"path": ["/elsewhere/b"]}}
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", config=moved)]
    assert len(comparison.compare(runs).groups) == 1


def test_one_teacher_for_all_seeds_is_one_setting_too(tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", config={"seed": seed}) for seed in (0, 1)]
    (group,) = comparison.compare(runs).groups
    assert len(group.runs) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"seed": 1, "method": {"name": "soft_target", "temperature": 8.0}}},
        {"config": {"seed": 1, "teacher": {"path": ["teachers/b"]}}, "teacher": "b" * 64},
        {"config": {"seed": 1}, "data": {"fingerprint": "e" * 64}},
        {"config": {"seed": 0}},
    ],
    ids=["another temperature", "another teacher", "other data", "the same seed again"],
)
def test_other_settings_are_not_averaged(tmp_path, change):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", **change)]
    assert [len(group.runs) for group in comparison.compare(runs).groups] == [1, 1]


def test_keys_that_change_nothing_are_no_difference(tmp_path):
    runs = [
        make_run(tmp_path / name, config={"seed": seed, "logging": {"wandb": name}})
        for seed, name in enumerate("ab")
    ]
    found = comparison.compare(runs)
    assert len(found.groups) == 1 and not found.config


def test_paired_differences_against_an_independent_reference(tmp_path):
    random = np.random.default_rng(0)
    a, b = random.random(500) < 0.8, random.random(500) < 0.86
    other = {"config": {"method": {"name": "supervised"}}}
    found = comparison.compare(
        [
            make_run(tmp_path / "a", record=record(a)),
            make_run(tmp_path / "b", record=record(b), **other),
        ]
    )
    accuracy, nll = found.differences
    gap = b.astype(float) - a.astype(float)
    reference = scipy.stats.bootstrap(
        (gap,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert accuracy.interval.value == pytest.approx(gap.mean())
    assert accuracy.interval.low == pytest.approx(reference.low, abs=0.004)
    assert accuracy.interval.high == pytest.approx(reference.high, abs=0.004)
    assert accuracy.alone == (int((b & ~a).sum()), int((a & ~b).sum()))
    assert accuracy.p_value == pytest.approx(
        scipy.stats.binomtest(accuracy.alone[0], sum(accuracy.alone)).pvalue
    )
    assert nll.interval.value == pytest.approx(-0.5 * gap.mean()) and nll.p_value is None


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({}, "not every run has stored its predictions"),
        ({"record": record([1] * 500, of="b")}, "tested on different examples"),
        ({"record": record([1] * 499)}, "tested on different examples"),
    ],
)
def test_without_the_same_examples_there_is_no_interval(tmp_path, second, reason):
    runs = [make_run(tmp_path / "a", record=record([1] * 500))]
    other = {"method": {"name": "supervised"}}
    runs.append(make_run(tmp_path / "b", config=other, **second))
    for difference in comparison.compare(runs).differences:
        assert difference.interval is None and reason in difference.note


def test_a_record_that_was_changed_is_refused(tmp_path):
    runs = [make_run(tmp_path / name, record=record([1, 0] * 250)) for name in "ab"]
    np.savez(runs[1] / "evaluation" / "test.npz", **record([1] * 500))
    with pytest.raises(UsageError, match="evaluation/test.npz is not as the run left it"):
        comparison.compare(runs)


def test_rows_of_text_weigh_by_their_tokens(tmp_path):
    text = {"data": {"name": "text"}}
    counts = np.array([1, 9, 90], np.int32)
    made = []
    for name, losses in (("a", [1.0, 9.0, 180.0]), ("b", [2.0, 18.0, 90.0])):
        each = {"each_nll": np.array(losses), "each_count": counts, "each_of": np.array("x")}
        config = {**text, "method": {"name": name}}
        test = {"perplexity": 3.0, "unit": "tokens"}
        made.append(make_run(tmp_path / name, config=config, test=test, record=each))
    (nll,) = comparison.compare(made).differences
    assert nll.interval.value == pytest.approx((2 + 18 + 90 - 1 - 9 - 180) / 100)
    assert "3 rows of text, 100 tokens" in nll.note


def test_costs_are_those_on_record_alone(tmp_path):
    run = make_run(tmp_path / "a")
    keys = [column.key for column in comparison.compare([run]).metrics]
    assert "parameters" in keys and "flops_a_step" not in keys and "model_bytes" not in keys
    (run / "plan.json").write_text(json.dumps({"flops_a_step": {"model": 1.5e9}}))
    (run / "model").mkdir()
    (run / "model" / "weights.safetensors").write_bytes(b"x" * 77)
    (group,) = comparison.compare([run]).groups
    assert group.mean("flops_a_step") == 1.5e9 and group.mean("model_bytes") == 77


def refuse(capsys, *arguments) -> str:
    assert cli.main(["compare", *map(str, arguments)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_refusals_are_one_line_and_write_nothing(tmp_path, capsys):
    run = make_run(tmp_path / "a")
    text = make_run(tmp_path / "t", config={"data": {"name": "text"}})
    bad = make_run(tmp_path / "bad")
    (bad / "result.json").write_text("{")
    half = make_run(tmp_path / "half", finished=False)
    (tmp_path / "empty").mkdir()
    out = f"--out={tmp_path / 'page.html'}"
    assert "empty: no run there" in refuse(capsys, run, tmp_path / "empty", out)
    assert "result.json cannot be read" in refuse(capsys, run, bad, out)
    assert "expected runs on one kind of data" in refuse(capsys, run, text, out)
    assert "given twice" in refuse(capsys, run, tmp_path / "." / "a", out)
    assert "expected a finished run" in refuse(capsys, half, out)
    assert "did you mean 'accuracy'" in refuse(capsys, run, "--columns=acuracy", out)
    assert "the file of --out" in refuse(capsys, run, out, f"--csv={tmp_path / 'page.html'}")
    assert not (tmp_path / "page.html").exists()


def test_files_hold_the_table(tmp_path, capsys):
    runs = seeds(tmp_path, "=cmd_{$}&", [0.8, 0.9])
    half = make_run(tmp_path / "half", finished=False, step=40)
    files = {name: tmp_path / f"t.{name}" for name in ("csv", "markdown", "latex")}
    flags = [f"--{name}={path}" for name, path in files.items()]
    columns = "--columns=accuracy,parameters"
    assert cli.main(["compare", *map(str, [*runs, half]), *flags, columns]) == 0
    captured = capsys.readouterr()
    assert "85.00 ± 7.07" in captured.out
    assert f"left out: {half}: stopped at step 40 of 100" in captured.err
    ((label, n, mean, sd, *costs),) = list(csv.reader(files["csv"].open(newline="")))[1:]
    assert label.startswith("'=cmd") and n == "2"
    assert (float(mean), float(sd)) == pytest.approx((0.85, statistics.stdev([0.8, 0.9])))
    assert list(map(float, costs)) == [4810, 0]
    assert "| 85.00 ± 7.07 | 4,810 |" in files["markdown"].read_text()
    latex = files["latex"].read_text()
    assert r"=cmd\_\{\$\}\&" in latex and r"85.00 $\pm$ 7.07" in latex


def test_the_config_of_the_helper_is_one_of_ours():
    assert {"student", "method", "training"} <= CONFIG.keys()
