"""Damage to any file that is read back: one line, or the very same figures. Never a traceback."""

import os
import pathlib
import random
import shutil

import bench as benches
import pytest

# The folder of the bench that is damaged, the commands that then read it, and files whose damage
# is noticed: a run's own figures in its manifest (versions, times) may differ without harm.
READERS = {
    "run": (
        ["eval", "--workdir={copy}"],
        ["report", "--workdir={copy}"],
        ["train", "--workdir={copy}"],
        [
            "store",
            "--config={bench}/images.py",
            "--workdir={out}",
            "--config.method.name=soft_target",
            "--config.teacher.path={copy}",
        ],
    ),
    "text_run": (["eval", "--workdir={copy}"], ["export", "--workdir={copy}", "--out={out}"]),
    "teacher": (
        [
            "generate",
            "--config={bench}/generate.py",
            "--workdir={out}",
            "--config.teacher.path={copy}",
        ],
    ),
    "store": (
        [
            "train",
            "--config={bench}/images.py",
            "--workdir={out}",
            "--config.method.name=soft_target",
            "--config.teacher.store={copy}",
        ],
    ),
}


def damage(file: pathlib.Path, draws: random.Random) -> str:
    """Damages a file in a way that is drawn; says which."""
    content = bytearray(file.read_bytes())
    way = draws.choice(["flip", "flip", "cut", "empty", "zeros", "longer", "gone", "text"])
    at = draws.randrange(len(content)) if content else 0
    if way == "flip" and content:
        content[at] ^= 1 << draws.randrange(8)
    elif way == "cut":
        del content[at:]
    elif way == "empty":
        content.clear()
    elif way == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif way == "longer":
        content += draws.randbytes(16)
    elif way == "text":
        content = bytearray(draws.choice([b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 10**5]))
    if way == "gone":
        file.unlink()
    else:
        file.write_bytes(content)
    return f"{file.name}: {way} at {at}"


@pytest.fixture(scope="module")
def folders(bench):
    """The folders to damage."""
    if not (bench / "store").exists():
        arguments = benches.command(benches.JOBS["store"], bench, bench / "store")
        assert benches.call(arguments)[0] == 0
    return {name: bench / name for name in READERS}


def figures(arguments: list[str], copy: pathlib.Path, out: pathlib.Path) -> tuple[int, str, str]:
    """Exit code, the figures that a command prints, and its errors. A traceback raises."""
    code, said, errors = benches.call(arguments)
    return code, said.replace(str(copy), "COPY").replace(str(out), "OUT"), errors


@benches.counts(8, 1000)
def test_damages(count, bench, folders, tmp_path):
    draws = random.Random(f"damages {count} {os.environ.get('DISTILL_JAX_SEED', 0)}")
    files = {
        name: sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file() and p.stat().st_size)
        for name, f in folders.items()
    }
    undamaged: dict[str, str] = {}
    refused = 0
    for number in range(-len(READERS), count):
        name = list(READERS)[number % len(READERS)]
        copy, out = tmp_path / f"copy{number}", tmp_path / f"out{number}"
        shutil.copytree(folders[name], copy)
        about = damage(copy / draws.choice(files[name]), draws) if number >= 0 else "none"
        for flags in READERS[name]:
            arguments = [flag.format(bench=bench, copy=copy, out=out) for flag in flags]
            code, said, errors = figures(arguments, copy, out)
            key = f"{name} {arguments[0]}"
            if number < 0:
                assert code == 0, (name, errors)
                undamaged[key] = said
            elif code:
                refused += 1
                assert code in (1, 2), (name, about)
                last = errors.strip().splitlines()[-1]
                assert last.startswith("distill-jax: "), (name, about, errors)
            elif name != "teacher":  # a foreign folder has nothing to compare it with
                assert said == undamaged[key], (name, about)
            shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(copy)
    print(f"damages: {count}; refused by {refused} commands")
