"""Progress: whole lines in a log file, a bar on a terminal, an honest estimate of what is left."""

import io
import os
import pty
import re
import sys
import threading

import pytest

from distill_jax.training.logging.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


class TestPlain:
    def test_text_has_tokens_a_second_memory_and_what_samples_are_compared_with(self, clock):
        stream = io.StringIO()
        progress = Progress(2000, title="student", stream=stream, unit="rows", clock=clock)
        values = {"loss": 0.5, "agreement_with_own_samples": 0.75, "examples_per_second": 12.0}
        progress.update(20, values | {"tokens_per_second": 1234.4, "memory_bytes": 1.5e9})
        assert stream.getvalue() == (
            "student: step 20/2000 (1%)  loss 0.5  agreement with own samples 75.00%  12 rows/s  "
            "1,234 tokens/s  1.50 GB\n"
        )

    def test_line_holds_step_figures_and_eta(self, clock):
        stream = io.StringIO()
        progress = Progress(2000, title="student", stream=stream, clock=clock)
        values = {"loss": 0.43219, "accuracy": 0.9123, "examples_per_second": 12345.6}
        progress.update(100, values)
        clock.now += 10
        scores = {"validation_accuracy": 0.9, "validation_rouge_l": 0.256}
        progress.update(200, {**values, "learning_rate": 3e-4, **scores})
        assert stream.getvalue() == (
            "student: step 100/2000 (5%)  loss 0.4322  accuracy 91.23%  12,346 images/s\n"
            "student: step 200/2000 (10%)  loss 0.4322  accuracy 91.23%  "
            "validation accuracy 90.00%  validation ROUGE-L 25.60%  12,346 images/s  ETA 3:00\n"
        )

    def test_the_rates_shown_are_those_of_the_estimate(self, clock):
        """Images and tokens a second over the window of the ETA, evaluations included."""
        stream = io.StringIO()
        progress = Progress(1000, title="run", stream=stream, clock=clock, examples_per_step=64)
        values = {"examples_per_second": 640.0, "tokens_per_second": 6400.0}
        progress.update(100, values)
        clock.now += 50  # 2 steps a second, a half of the time spent in an evaluation
        progress.update(200, {"examples_per_second": 256.0, "tokens_per_second": 2560.0})
        first, second = stream.getvalue().splitlines()
        assert first.endswith("640 images/s  6,400 tokens/s")
        assert second.endswith("128 images/s  1,280 tokens/s  ETA 6:40")
        assert (1000 - 200) * 64 / 128 == 400  # the seconds of 6:40

    def test_what_is_no_step_is_named(self, clock):
        stream = io.StringIO()
        progress = Progress(12, title="demo", stream=stream, counted="run", clock=clock)
        progress.update(2.3, {"loss": 1.0})
        progress.update(12, {})
        assert stream.getvalue() == "demo: run 3/12 (19%)  loss 1\ndemo: run 12/12 (100%)\n"

    def test_at_most_one_line_in_five_seconds_plus_the_last(self, clock):
        stream = io.StringIO()
        with Progress(100, title="run", stream=stream, clock=clock) as progress:
            for step in range(1, 101):
                progress.update(step, {"loss": 1.0})
                clock.now += 0.1
        steps = re.findall(r"step (\d+)/", stream.getvalue())
        assert steps == ["1", "51", "100"]

    def test_close_shows_an_update_that_was_held_back_once(self, clock):
        stream = io.StringIO()
        progress = Progress(100, title="run", stream=stream, clock=clock)
        progress.update(1, {})
        progress.update(7, {})
        progress.close()
        progress.close()
        assert re.findall(r"step (\d+)/", stream.getvalue()) == ["1", "7"]

    def test_an_exception_passes_and_leaves_the_last_line(self, clock):
        stream = io.StringIO()
        with (
            pytest.raises(KeyboardInterrupt),
            Progress(10, title="run", stream=stream, clock=clock) as progress,
        ):
            progress.update(1, {})
            progress.update(2, {})
            raise KeyboardInterrupt
        assert stream.getvalue().endswith("run: step 2/10 (20%)\n")

    def test_no_control_characters_reach_a_log_file(self, clock, tmp_path, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        with (
            open(tmp_path / "slurm.out", "w+") as stream,
            Progress(2, title="[bold]run[/]", stream=stream, clock=clock) as progress,
        ):
            progress.update(1, {"loss": float("nan"), "gradient_norm": 1.0})
            progress.note("validation [red]0.5[/red]")
            progress.update(2, {})
            stream.seek(0)
            text = stream.read()
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
        assert text.splitlines() == [
            "[bold]run[/]: step 1/2 (50%)  loss nan",
            "validation [red]0.5[/red]",
            "[bold]run[/]: step 2/2 (100%)",
        ]

    def test_off_is_silent(self, clock):
        stream = io.StringIO()
        with Progress(2, title="run", stream=stream, style="off", clock=clock) as progress:
            progress.update(1, {"loss": 1.0})
            progress.note("something")
            progress.update(2, {"loss": 1.0})
        assert stream.getvalue() == ""

    def test_default_stream_is_standard_error(self, capsys):
        with Progress(1, title="run", style="plain") as progress:
            progress.update(1, {})
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err == "run: step 1/1 (100%)\n"

    def test_unknown_style_is_refused(self):
        with pytest.raises(ValueError, match="style='fancy': expected 'auto', 'plain' or 'off'"):
            Progress(1, title="run", style="fancy")


class TestSecondsLeft:
    def test_follows_the_recent_rate_from_any_first_step(self, clock):
        progress = Progress(10_000, title="run", stream=io.StringIO(), clock=clock)
        assert progress.seconds_left() is None
        clock.now += 60  # compilation
        progress.update(5000, {})  # resumed
        assert progress.seconds_left() is None
        for step in range(5010, 5510, 10):
            clock.now += 2
            progress.update(step, {})
        assert progress.seconds_left() == pytest.approx((10_000 - 5500) / 5)
        for step in range(5510, 6510, 10):  # twice as fast: the slow time leaves the average
            clock.now += 1
            progress.update(step, {})
        assert progress.seconds_left() == pytest.approx((10_000 - 6500) / 10)

    def test_many_quick_updates_are_averaged_over_a_longer_time(self, clock):
        progress = Progress(100_000, title="run", stream=io.StringIO(), clock=clock)
        for step in range(20_000):  # 20 s at 1,000 steps/s, then a stall of a second
            progress.update(step, {})
            clock.now += 0.001
        clock.now += 1
        progress.update(20_000, {})
        assert progress.seconds_left() == pytest.approx(80_000 / (20_000 / 21), rel=1e-3)

    def test_is_zero_beyond_the_end(self, clock):
        progress = Progress(10, title="run", stream=io.StringIO(), clock=clock)
        progress.update(5, {})
        clock.now += 1
        progress.update(12, {})
        assert progress.seconds_left() == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (200, "3:20"), (3600, "1:00:00"), (187_500, "2 d 4:05")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def on_a_terminal(act) -> str:
    """Runs act(stream) with a stream on a pseudo-terminal; returns what the terminal received."""
    controller, terminal = pty.openpty()
    received = []

    def collect():
        while True:
            try:
                block = os.read(controller, 4096)
            except OSError:  # the other end is closed
                return
            if not block:
                return
            received.append(block)

    reader = threading.Thread(target=collect)
    reader.start()
    with open(terminal, "w") as stream:
        act(stream)
    reader.join(timeout=10)
    os.close(controller)
    return b"".join(received).decode()


class TestTerminal:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "xterm-256color")

    def test_bar_moves_and_notes_stand_above_it(self, clock):
        def act(stream):
            with Progress(100, title="student [kd]", stream=stream, clock=clock) as progress:
                progress.update(10, {"loss": 2.0, "accuracy": 0.25})
                clock.now += 1
                progress.note("step 10: validation accuracy 30 % [best]")
                progress.update(20, {"loss": 1.0, "examples_per_second": 1000})

        output = on_a_terminal(act)
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
        assert "━" in text
        assert "student [kd]" in text and "step 10: validation accuracy 30 % [best]" in text
        assert re.search(r"10/100\s+loss 2  accuracy 25.00%", text)
        assert re.search(r"20/100\s+loss 1  1,000 images/s  ETA 0:08", text)
        assert "\x1b[?25l" in output and "\x1b[?25h" in output  # cursor hidden, and shown again

    def test_frames_are_limited(self, clock):
        def act(stream):
            with Progress(1000, title="run", stream=stream, clock=clock) as progress:
                for step in range(1000):
                    clock.now += 0.001
                    progress.update(step, {})

        shown = set(re.findall(r"(\d+)/1000", re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(act))))
        assert 8 <= len(shown) <= 12

    def test_plain_and_dumb_terminals_get_lines(self, clock, monkeypatch):
        def act(stream, style):
            with Progress(1, title="run", stream=stream, style=style, clock=clock) as progress:
                progress.update(1, {})

        assert on_a_terminal(lambda stream: act(stream, "plain")) == "run: step 1/1 (100%)\r\n"
        monkeypatch.setenv("TERM", "dumb")
        assert on_a_terminal(lambda stream: act(stream, "auto")) == "run: step 1/1 (100%)\r\n"

    def test_output_that_goes_elsewhere_stays_there(self, clock, monkeypatch):
        elsewhere = io.StringIO()
        monkeypatch.setattr(sys, "stdout", elsewhere)

        def act(stream):
            with Progress(1, title="run", stream=stream, clock=clock) as progress:
                print("a result for a file")
                progress.update(1, {})
                assert sys.stdout is elsewhere

        assert "a result" not in on_a_terminal(act)
        assert elsewhere.getvalue() == "a result for a file\n"
