"""Metric writers: lines that survive a kill and a full disk, event files that can be read back."""

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
import types

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from distill_jax.errors import UsageError
from distill_jax.training.logging.trackers import TensorBoard, Trackio, Wandb
from distill_jax.training.logging.writers import MetricsLog, read


def start(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestMetricsLog:
    def test_lines_are_json_with_sorted_keys_and_exact_floats(self, tmp_path):
        path = tmp_path / "run" / "metrics.jsonl"
        with MetricsLog(path) as log:
            log.write(10, "train", {"loss": np.float32(0.1), "accuracy": 0.5})
            log.write(20, "validation", {"nll": 1 / 3, "count": np.int64(7), "note": "ü"})
        assert path.read_bytes() == (
            b'{"accuracy": 0.5, "loss": 0.10000000149011612, "split": "train", "step": 10}\n'
            b'{"count": 7, "nll": 0.3333333333333333, "note": "\\u00fc", '
            b'"split": "validation", "step": 20}\n'
        )
        assert read(path)[1]["nll"] == 1 / 3

    def test_values_may_be_arrays_of_any_kind(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        values = {
            "bfloat16": jnp.bfloat16(1.5),
            "vector": jnp.arange(3),
            "nested": {"count": np.array([1.0, 2.0]), "pair": (np.float64(1), None)},
            "flag": np.bool_(True),
        }
        MetricsLog(path).write(jnp.int32(3), "test", values)
        assert read(path) == [
            {
                "step": 3,
                "split": "test",
                "bfloat16": 1.5,
                "vector": [0, 1, 2],
                "nested": {"count": [1.0, 2.0], "pair": [1.0, None]},
                "flag": True,
            }
        ]

    def test_numbers_that_are_not_finite_become_null(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        values = {
            "a": math.nan,
            "b": -math.inf,
            "c": np.array([1.0, np.inf]),
            "d": np.float32("nan"),
        }
        MetricsLog(path).write(1, "train", values)
        line = json.loads(path.read_bytes(), parse_constant=pytest.fail)  # fails on NaN, Infinity
        assert line == {
            "step": 1,
            "split": "train",
            "a": None,
            "b": None,
            "c": [1.0, None],
            "d": None,
        }

    def test_the_names_of_the_line_itself_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"\['step'\]"):
            MetricsLog(tmp_path / "metrics.jsonl").write(1, "train", {"step": 2})

    def test_what_is_no_number_is_refused_and_leaves_no_line(self, tmp_path):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        with pytest.raises((TypeError, ValueError)):
            log.write(1, "train", {"loss": object()})
        assert read(log.path) == []

    def test_truncate_drops_later_steps_and_keeps_the_bytes_of_the_rest(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        log = MetricsLog(path)
        for step in (10, 20):
            log.write(step, "train", {"loss": 1 / step})
            log.write(step, "validation", {"nll": 2 / step})
        kept = path.read_bytes()
        log.write(30, "train", {"loss": 0.0})
        assert log.truncate(20) == 0
        assert path.read_bytes() == kept
        log.write(25, "train", {"loss": 4.0})  # the log goes on in the new file
        assert [record["step"] for record in read(path)] == [10, 10, 20, 20, 25]
        assert os.listdir(tmp_path) == ["metrics.jsonl"]

    @pytest.mark.parametrize("torn", [b'{"loss": 0.', b"{", b'{"split": "train", "step": 9}'])
    def test_torn_last_line_is_skipped_removed_and_never_joined(self, tmp_path, torn):
        path = tmp_path / "metrics.jsonl"
        MetricsLog(path).write(1, "train", {})
        whole = path.read_bytes()
        path.write_bytes(whole + torn)
        assert [record["step"] for record in read(path)] == [1]

        log = MetricsLog(path)
        assert path.read_bytes() == whole
        log.write(2, "train", {})
        assert [record["step"] for record in read(path)] == [1, 2]

    def test_truncate_removes_a_torn_last_line(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        log = MetricsLog(path)
        log.write(1, "train", {})
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"st')
        assert log.truncate(1) == 1
        assert path.read_bytes() == whole

    @pytest.mark.parametrize("damage", [b"\0" * 20 + b"\n", b'{"step": 2}\n', b"7\n"])
    def test_damage_before_the_last_line_is_named(self, tmp_path, damage):
        path = tmp_path / "metrics.jsonl"
        log = MetricsLog(path)
        for step in (1, 2, 3):
            log.write(step, "train", {})
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + damage + lines[2])
        with pytest.raises(UsageError, match="line 2: not a record"):
            read(path)
        assert log.truncate(3) == 1
        assert [record["step"] for record in read(path)] == [1, 3]

    def test_missing_file_is_an_error_of_use(self, tmp_path):
        with pytest.raises(UsageError, match="absent.jsonl: cannot be read: No such file"):
            read(tmp_path / "absent.jsonl")

    def test_every_prefix_of_the_file_can_be_read_and_resumed(self, tmp_path):
        """A kill may cut the file at any byte."""
        path = tmp_path / "metrics.jsonl"
        with MetricsLog(path) as log:
            for step in (1, 2):
                log.write(step, "train", {"loss": step / 7})
        content = path.read_bytes()
        for length in range(len(content) + 1):
            path.write_bytes(content[:length])
            whole = content[:length].count(b"\n")
            assert len(read(path)) == whole
            with MetricsLog(path) as log:
                log.truncate(1)
                for step in range(min(whole, 1) + 1, 3):
                    log.write(step, "train", {"loss": step / 7})
            assert path.read_bytes() == content

    def test_a_killed_process_loses_no_line_that_was_written(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = start(
            """
            import sys
            from distill_jax.training.logging.writers import MetricsLog
            log = MetricsLog(sys.argv[1])
            step = 0
            while True:
                step += 1
                log.write(step, "train", {"loss": 1 / step})
                print(step, flush=True)
            """,
            path,
        )
        for _ in range(200):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read().split("\n")
        writer.wait()
        last = max((int(number) for number in said[:-1]), default=200)
        steps = [record["step"] for record in read(path)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= last

    def test_a_full_disk_raises_and_leaves_whole_lines(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = start(
            """
            import resource, sys
            from distill_jax.training.logging.writers import MetricsLog
            log = MetricsLog(sys.argv[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # two lines and a part of a third
            for step in (1, 2, 3):
                try:
                    log.write(step, "train", {"a": 1})
                except OSError as error:
                    print("refused", step)
            """,
            path,
        )
        output, errors = writer.communicate(timeout=60)
        assert output == "refused 3\n", errors
        assert path.read_bytes().endswith(b"\n")
        assert [record["step"] for record in read(path)] == [1, 2]


def events(path) -> list[event_pb2.Event]:
    """The events of one file, read by the format's definition, checksums included."""
    content, position, found = path.read_bytes(), 0, []
    while position < len(content):
        header = content[position : position + 8]
        (length,) = struct.unpack("<Q", header)
        (header_crc,) = struct.unpack("<I", content[position + 8 : position + 12])
        data = content[position + 12 : position + 12 + length]
        (crc,) = struct.unpack("<I", content[position + 12 + length : position + 16 + length])
        assert masked_crc32c(header) == header_crc and masked_crc32c(data) == crc
        found.append(event_pb2.Event.FromString(data))
        position += 16 + length
    return found


def curves(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: later files win, and a restart drops what came from its step on."""
    shown: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.session_log.status == event_pb2.SessionLog.START:
                for curve in shown.values():
                    for step in [step for step in curve if step >= event.step]:
                        del curve[step]
            for value in event.summary.value:
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


class TestTensorBoard:
    def test_numbers_arrive_under_split_and_name(self, tmp_path):
        board = TensorBoard(tmp_path)
        board.write(1, "train", {"loss": np.float32(2.5), "per_class": [0.1, 0.2], "note": "x"})
        board.write(2, "train", {"loss": jnp.float32(1.5), "learning_rate": None})
        board.write(2, "validation", {"accuracy": 0.75, "bins": np.zeros(3)})
        board.close()
        board.close()
        assert curves(tmp_path) == {
            "train/loss": {1: 2.5, 2: 1.5},
            "validation/accuracy": {2: 0.75},
        }

    def test_purge_step_hides_what_the_run_will_write_again(self, tmp_path):
        """Both files fall in the same second: the second must not overwrite the first."""
        board = TensorBoard(tmp_path)
        for step in (1, 2, 3):
            board.write(step, "train", {"loss": 1.0})
        board.close()
        board = TensorBoard(tmp_path, purge_step=3)
        board.write(4, "train", {"loss": 0.5})
        board.close()
        assert len(list(tmp_path.iterdir())) == 2
        assert curves(tmp_path) == {"train/loss": {1: 1.0, 2: 1.0, 4: 0.5}}

    def test_tensorflow_is_never_imported(self, tmp_path):
        writer = start(
            """
            import sys
            from distill_jax.training.logging import trackers
            assert "tensorboardX" not in sys.modules  # imported where it is used
            board = trackers.TensorBoard(sys.argv[1])
            board.write(1, "train", {"loss": 1.0})
            board.close()
            found = {"tensorflow", "tensorboard", "torch", "jax", "wandb"} & set(sys.modules)
            print("imported:", sorted(found))
            """,
            tmp_path,
        )
        output, errors = writer.communicate(timeout=60)
        assert output == "imported: []\n", errors

    def test_figures_are_images_and_samples_are_texts(self, tmp_path):
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[1, 2] = (255, 0, 10)
        board = TensorBoard(tmp_path)
        board.show_figure(3, "test/reliability", pixels)
        board.show_texts(3, "test/samples", [{"prompt": "a # b", "student": "<b>\n\n# no"}])
        board.close()
        (file,) = tmp_path.iterdir()
        values = {v.tag.split("/text_summary")[0]: v for e in events(file) for v in e.summary.value}
        image = PIL.Image.open(io.BytesIO(values["test/reliability"].image.encoded_image_string))
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
        text = values["test/samples"].tensor.string_val[0].decode()
        assert text == "**prompt**\n\n    a # b\n\n**student**\n\n    <b>\n    \n    # no"


class TestWandb:
    def test_without_the_package_the_error_names_the_key(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(
            UsageError, match=r"^logging\.wandb='project': the package wandb is not"
        ):
            Wandb("project", {}, tmp_path)

    def test_resumed_run_keeps_its_id_and_steps_are_our_own(self, tmp_path, monkeypatch):
        opened, logged, metrics, finished = [], [], [], []
        run = types.SimpleNamespace(
            log=logged.append,
            finish=lambda: finished.append(True),
            define_metric=lambda name, step_metric=None: metrics.append((name, step_metric)),
        )
        package = types.ModuleType("wandb")
        package.init = lambda **options: opened.append(options) or run
        monkeypatch.setitem(sys.modules, "wandb", package)
        for step in (5, 3):
            writer = Wandb("kd", {"seed": 1}, tmp_path / "wandb")
            writer.write(step, "train", {"loss": jnp.float32(0.5), "per_class": [1.0]})
            writer.close()
        assert logged == [{"train/loss": 0.5, "step": 5}, {"train/loss": 0.5, "step": 3}]
        assert ("*", "step") in metrics and len(finished) == 2
        assert opened[0]["id"] == opened[1]["id"] and len(opened[0]["id"]) == 12
        assert opened[0]["project"] == "kd" and opened[0]["config"] == {"seed": 1}
        assert opened[0]["resume"] == "allow"

    def test_figures_and_texts_are_its_own_kinds(self, tmp_path, monkeypatch):
        logged = []
        package = types.ModuleType("wandb")
        run = types.SimpleNamespace(log=logged.append, define_metric=lambda *a, **k: None)
        package.init = lambda **options: run
        package.Image = lambda pixels: ("image", pixels.shape)
        package.Table = lambda columns, data: ("table", columns, data)
        monkeypatch.setitem(sys.modules, "wandb", package)
        writer = Wandb("kd", {}, tmp_path)
        writer.show_figure(7, "test/reliability", np.zeros((2, 3, 3), np.uint8))
        writer.show_texts(7, "test/samples", [{"prompt": "p", "student": "s"}])
        assert logged == [
            {"test/reliability": ("image", (2, 3, 3)), "step": 7},
            {"test/samples": ("table", ["prompt", "student"], [["p", "s"]]), "step": 7},
        ]


class TestTrackio:
    def test_without_the_package_the_error_names_the_key(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "trackio", None)
        with pytest.raises(UsageError, match=r"^logging\.trackio='p': the package trackio is not"):
            Trackio("p", {}, tmp_path)

    def test_resumed_run_keeps_its_name_and_stdout_stays_clean(self, tmp_path, monkeypatch, capsys):
        opened, logged = [], []
        package = types.ModuleType("trackio")
        run = types.SimpleNamespace(
            log=lambda values, step: logged.append((values, step)),
            finish=lambda: print("finished"),
        )

        def init(**options):
            print("* Trackio project initialized")
            opened.append(options)
            return run

        package.init = init
        package.Image = lambda pixels: ("image", pixels.shape)
        package.Markdown = lambda text: ("text", text)
        monkeypatch.setitem(sys.modules, "trackio", package)
        for _ in range(2):
            writer = Trackio("kd", {"seed": 1}, tmp_path)
            writer.write(5, "train", {"loss": jnp.float32(0.5), "per_class": [1.0]})
            writer.show_figure(5, "test/a", np.zeros((2, 3, 3), np.uint8))
            writer.show_texts(5, "test/b", [{"prompt": "p"}])
            writer.close()
        assert logged[:3] == [
            ({"train/loss": 0.5}, 5),
            ({"test/a": ("image", (2, 3, 3))}, 5),
            ({"test/b": ("text", "**prompt**\n\n    p")}, 5),
        ]
        assert opened[0]["name"] == opened[1]["name"] and opened[0]["resume"] == "allow"
        assert capsys.readouterr().out == ""

    def test_the_real_package_without_a_network(self, tmp_path):
        """Where it is installed: a run in its own database, read back."""
        pytest.importorskip("trackio")
        writer = start(
            """
            import os, sys
            os.environ.update(TRACKIO_DIR=sys.argv[1], HF_HUB_OFFLINE="1")
            import numpy as np
            from distill_jax.training.logging.trackers import Trackio
            for step in (1, 2):
                tracker = Trackio("kd", {"seed": 1}, sys.argv[1])
                tracker.write(step, "train", {"loss": 0.5 / step})
                tracker.show_figure(step, "test/a", np.zeros((8, 8, 3), np.uint8))
                tracker.close()
            import sqlite3, glob
            query = "select run_name, step, metrics from metrics"
            rows = [
                row
                for path in glob.glob(sys.argv[1] + "/*.db")
                for row in sqlite3.connect(path).execute(query)
            ]
            print(len({row[0] for row in rows}), sorted({row[1] for row in rows}))
            assert any("train/loss" in str(row[2]) for row in rows), rows
            """,
            tmp_path,
        )
        output, errors = writer.communicate(timeout=120)
        assert output == "1 [1, 2]\n", errors


def test_lines_do_not_depend_on_the_clock(tmp_path):
    contents = []
    for name in ("a", "b"):
        with MetricsLog(tmp_path / name) as log:
            log.write(1, "train", {"loss": 0.5})
        contents.append((tmp_path / name).read_bytes())
        time.sleep(0.01)
    assert contents[0] == contents[1]
