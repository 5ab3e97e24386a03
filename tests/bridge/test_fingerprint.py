"""What a fingerprint notices, and what it does not mind."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from jax_sprint.bridge import SprintOptions
from jax_sprint.bridge import fingerprint as module
from jax_sprint.bridge.fingerprint import Inspector
from jax_sprint.bridge.source_files import UncertainSources

MAIN = """
# a comment
[*]
base = lists
include $(part).config
[*.corpus]
file = corpus.xml.gz   # the corpus
segments.file = $(base)/$(which).txt
[*.lexicon]
file = bin:lexicon.xml
[*.log-channel]
file = progress.txt
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lists").mkdir()
    (tmp_path / "more").mkdir()
    for name, text in {
        "main.config": MAIN,
        "shared.config": "[*.state-tying]\nfile = tying.lut\ntdp = 3.5",
        "lists/train.txt": "a/b/1",
        "lists/dev.txt": "a/b/2",
        "lexicon.xml": "<lexicon/>",
        "tying.lut": "a 0",
        "progress.txt": "0 %",
        "unrelated.txt": "x",
        "more/corpus.xml": "<corpus name='a'/>",
    }.items():
        (tmp_path / name).write_text(text)
    corpus = "<?xml version='1.0'?>" + " " * 5000 + "<corpus><include file='more/corpus.xml'/>"
    (tmp_path / "corpus.xml.gz").write_bytes(gzip.compress(corpus.encode()))
    return tmp_path


def inspector(folder: Path, *more: str, **attributes) -> Inspector:
    config = ["--config=main.config", "--*.part=shared", "--*.which=train", *more]
    settings = {"env": {"NOT_USED": "1"}, "cwd": folder, "config": config, **attributes}
    return Inspector(SprintOptions(**settings))


def names(folder: Path, fingerprint: module.Fingerprint) -> set[str]:
    return {
        os.path.relpath(file.path, folder)
        for file in fingerprint.files
        if file.path.startswith(str(folder))
    }


def test_the_files_that_are_found(folder: Path) -> None:
    assert names(folder, inspector(folder)()) == {
        "main.config",
        "shared.config",
        "corpus.xml.gz",
        "more/corpus.xml",
        "lists/train.txt",
        "lexicon.xml",
        "tying.lut",
    }


@pytest.mark.parametrize(
    "name", ["main.config", "shared.config", "lexicon.xml", "tying.lut", "lists/train.txt"]
)
def test_a_change_of_content_is_noticed_even_with_the_same_size_and_time(
    folder: Path, name: str
) -> None:
    inspect = inspector(folder)
    before = inspect()
    path = folder / name
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = inspect()
    assert after.digest != before.digest
    assert before.changed(after) == [str(path)]


def test_a_file_that_another_file_includes(folder: Path) -> None:
    inspect = inspector(folder)
    before = inspect()
    (folder / "more/corpus.xml").write_text("<corpus name='b'/>")
    assert inspect().digest != before.digest


def test_what_does_not_matter(folder: Path) -> None:
    inspect = inspector(folder)
    before = inspect()
    for name in ("progress.txt", "unrelated.txt", "lists/dev.txt"):
        (folder / name).write_text("something else")
    os.utime(folder / "lexicon.xml")
    after = inspect()
    assert after.digest == before.digest
    assert before.changed(after) == [str(folder / "lexicon.xml")]


def test_a_file_that_was_missing(folder: Path) -> None:
    inspect = inspector(folder, "--*.prior-file=prior.txt")
    before = inspect()
    (folder / "prior.txt").write_text("0.5")
    assert inspect().digest != before.digest


def test_arguments_and_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = inspector(folder)().digest
    assert inspector(folder)().digest == usual
    assert inspector(folder, "--*.tdp=4")().digest != usual
    assert inspector(folder, env={"NOT_USED": "2"})().digest != usual
    assert inspector(folder, control_config={"verbose": 1})().digest != usual
    monkeypatch.setenv("TYING", "one.lut")
    inspect = inspector(folder, "--*.tying.file=$(TYING)")
    before = inspect().digest
    monkeypatch.setenv("UNHEARD_OF", "1")
    assert inspect().digest == before
    monkeypatch.setenv("TYING", "two.lut")
    assert inspect().digest != before


def test_the_executable(folder: Path) -> None:
    script = folder / "sprint"
    script.write_text("#!/bin/sh\nexit 1")
    script.chmod(0o755)
    inspect = inspector(folder, exec_path=[script, "lists/dev.txt"])
    before = inspect().digest
    (folder / "lists/dev.txt").write_text("as an argument of the executable")
    assert (second := inspect().digest) != before
    script.write_text("#!/bin/sh\nexit 2")
    assert inspect().digest != second


def test_a_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = 1_000_000_000
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(old, old))
    read: list[str] = []
    real = module._read
    monkeypatch.setattr(module, "_read", lambda path, size: read.append(path) or real(path, size))
    monkeypatch.setattr(module, "_RACY_NS", -1)
    inspect = inspector(folder)
    inspect()
    assert str(folder / "lexicon.xml") in read
    read.clear()
    inspect()
    assert read == []
    (folder / "lexicon.xml").write_text("<lexicon> </lexicon>")
    inspect()
    assert read == [str(folder / "lexicon.xml")]


def test_large_files_count_by_their_status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_HASHED", 2)
    (folder / "tying.lut").write_text("anything but XML")
    (folder / "lexicon.xml").write_text("<lexicon> still read </lexicon>")
    states = {os.path.basename(file.path): file.digest for file in inspector(folder)().files}
    assert states["tying.lut"].startswith("by its status")
    assert not states["lexicon.xml"].startswith("by its status")


def test_references_to_themselves_and_to_nothing(folder: Path) -> None:
    (folder / "shared.config").write_text("[*]\na = $(b)\nb = x$(a)\nc = $(nothing)/tying.lut")
    assert "main.config" in names(folder, inspector(folder)())


def test_too_many_meanings(folder: Path) -> None:
    many = "\n".join(f"[*.s{i}]\nv = {i}" for i in range(20))
    (folder / "shared.config").write_text(many + "\n[*]\nfile = $(v)x$(v)\nf = $(s)$(t)$(v)")
    assert inspector(folder)().digest  # the same name twice is the same value twice
    more = many.replace("v =", "w =")
    (folder / "shared.config").write_text(many + "\n" + more + "\n[*]\nfile = $(v)x$(w)")
    with pytest.raises(UncertainSources, match="256"):
        inspector(folder)()


def test_an_include_that_only_sprint_can_resolve(folder: Path) -> None:
    (folder / "lexicon.xml").write_text("<lexicon><include file='$(x).xml'/></lexicon>")
    with pytest.raises(UncertainSources, match="only Sprint"):
        inspector(folder)()


def test_it_is_hashed_only_when_something_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "here").mkdir()
    (folder / "there").mkdir()
    link = folder / "link"
    link.symlink_to(folder / "here")
    inspect = inspector(folder, "--*.tying.file=$(TYING)", cwd=link)
    monkeypatch.setenv("TYING", "one.lut")
    first = inspect()
    assert inspect() is first
    monkeypatch.setenv("TYING", "two.lut")
    assert inspect().digest != first.digest
    monkeypatch.delenv("TYING")
    assert inspect().digest != first.digest
    monkeypatch.setenv("TYING", "one.lut")
    assert inspect() == first
    # The same name, but another directory.
    link.unlink()
    link.symlink_to(folder / "there")
    assert inspect().digest != first.digest
    (folder / "there" / "one.lut").write_text("a 0")
    with_file = inspect()
    (folder / "there" / "one.lut").write_text("a 1")
    assert inspect().digest != with_file.digest
