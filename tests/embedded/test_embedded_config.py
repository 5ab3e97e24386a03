"""RASR's configuration language: sections, wildcards, precedence, references, typed values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jax_sprint.embedded.arithmetic import evaluate
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import ConfigurationError


def read(tmp_path: Path, text: str, *arguments: str, environment=None) -> Configuration:
    file = tmp_path / "test.config"
    file.write_text(text)
    return Configuration.from_argv([f"--config={file}", *arguments], environment=environment or {})


def test_sections_prefix_names_and_comments_end_values(tmp_path):
    config = read(
        tmp_path,
        "# comment\n; comment\n   % comment\n\n"
        "[*.corpus]\nfile = a.xml   # behind a value\n"
        "flag\nother.flag ; a comment\n"
        "[*]\nname=joined words \n",
    )
    assert config.select("corpus").get_str("file") == "a.xml"
    assert config.select("corpus").get_bool("flag", False)
    assert config.select("corpus.other").get_bool("flag", False)
    assert config.get_str("name") == "joined words"
    assert config.messages == []


@pytest.mark.parametrize("order", [1, -1])
def test_more_specific_resources_win_whatever_their_order(tmp_path, order):
    lines = [
        "*.loop = 1",
        "*.tdp.*.loop = 2",
        "*.tdp.silence.loop = 3",
        "*.am.tdp.silence.loop = 4",
    ]
    config = read(tmp_path, "[]\n" + "\n".join(lines[::order]))
    tdp = config.select("am.tdp")
    assert tdp.select("silence").get_float("loop", 0.0) == 4.0
    assert tdp.select("state-0").get_float("loop", 0.0) == 2.0
    assert config.select("tdp.silence").get_float("loop", 0.0) == 3.0
    assert config.select("elsewhere").get_float("loop", 0.0) == 1.0


def test_equally_specific_resources_first_name_wins_with_a_warning(tmp_path):
    config = read(tmp_path, "[]\n*.b.*.x = second\n*.a.*.x = first\n")
    assert config.select("a.b").get_str("x") == "first"
    assert any("equally specific" in message for message in config.messages)


def test_a_wildcard_stands_for_no_component_too_and_needs_a_match_elsewhere(tmp_path):
    config = read(tmp_path, "[]\nneural-network-trainer.*.x = 1\n*.y.* = 2\n")
    assert config.get_int("x", 0) == 1
    assert config.select("y").get_int("anything", 0) == 2
    assert config.get_int("anything", 0) == 0


def test_command_line_beats_the_file_by_its_application_prefix(tmp_path):
    text = "[*.corpus]\nfile = file.xml\nencoding = latin1\n"
    config = read(tmp_path, text, "--*.corpus.file=argument.xml", "--*.encoding=utf-8")
    assert config.select("corpus").get_str("file") == "argument.xml"
    # Two components matched on either side: the first name in the order of the alphabet.
    assert config.select("corpus").get_str("encoding") == "latin1"


def test_command_line_forms(tmp_path):
    config = read(
        tmp_path, "", "--*.a", "1", "--*.flag", "--.*.b=2", "--*.quoted='x y'", "--*.last"
    )
    assert config.get_int("a", 0) == 1
    assert config.get_bool("flag", False)
    assert config.get_bool("last", False)
    assert config.get_int("b", 0) == 2
    assert config.get_str("quoted") == "x y"


def test_a_later_resource_of_the_same_name_replaces(tmp_path):
    assert read(tmp_path, "x = 1\nx = 2\n").get_int("x", 0) == 2


def test_include_keeps_the_section_and_is_found_beside_the_including_file(tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "inner.config").write_text("inside = 1\n[*.other]\nelsewhere = 2\n")
    config = read(tmp_path, "[*.corpus]\ninclude more/inner.config\nbehind = 3\n")
    assert config.select("corpus").get_int("inside", 0) == 1
    assert config.select("other").get_int("elsewhere", 0) == 2
    assert config.select("corpus").get_int("behind", 0) == 3


def test_include_as_an_ordinary_name(tmp_path):
    assert read(tmp_path, "include = 5\n").get_int("include", 0) == 5


def test_references_are_resolved_from_the_inside_out(tmp_path):
    text = (
        "[]\n*.base = /data\n*.corpus.base = /corpus\n*.corpus.file = $(base)/x.$(kind)\n"
        "*.lexicon.file = $(base)/$(HOME)\n*.kind = x$(suffix)\n*.suffix = ml\n"
    )
    config = read(tmp_path, text, environment={"HOME": "me"})
    assert config.select("corpus").get_str("file") == "/corpus/x.xml"
    assert config.select("lexicon").get_str("file") == "/data/me"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$[1 + 2 * 3]", "7.000000"),
        ("a$[2 ^ 3 ^ 2, int]b", "a512b"),
        ("$[-2 ^ 2, i]", "-4"),
        ("$[(8 - 2) / 4, f]", "1.500000"),
        ("$[sqrt(16) + exp(0), int]", "5"),
    ],
)
def test_arithmetic(text, expected):
    assert Configuration.from_dict({"*.x": text}).get_str("x") == expected


@pytest.mark.parametrize("text", ["1 +", "(1", "2 3", "system(1)", "1 / 0", "__import__", ""])
def test_bad_arithmetic_is_an_error(text):
    with pytest.raises((ValueError, ArithmeticError)):
        evaluate(text)
    with pytest.raises(ConfigurationError):
        Configuration.from_dict({"*.x": f"$[{text}]"}).get_str("x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, True) for text in ("1", "yes", " true ", "on")],
        *[(text, False) for text in ("0", "no", "false", "off")],
    ],
)
def test_booleans(text, value):
    assert Configuration.from_dict({"*.x": text}).get_bool("x", not value) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("infinity", math.inf),
        ("-infinity", -math.inf),
        ("unlimited", math.inf),
        ("+inf", math.inf),
        ("2.5e1", 25.0),
        (" -3 ", -3.0),
    ],
)
def test_floats(text, value):
    assert Configuration.from_dict({"*.x": text}).get_float("x", 0.0) == value


def test_lists_and_choices():
    config = Configuration.from_dict({"*.x": " a  b c ", "*.y": "1, 2,3", "*.z": "hmm "})
    assert config.get_list("x") == ["a", "b", "c"]
    assert config.get_list("y", delimiter=",") == ["1", "2", "3"]
    assert config.get_list("none", ["d"]) == ["d"]
    assert config.get_choice("z", ["hmm", "ctc"], "ctc") == "hmm"


@pytest.mark.parametrize(
    ("getter", "value", "accepted"),
    [
        (lambda c: c.get_bool("x", True), "True", "yes"),
        (lambda c: c.get_int("x", 1), "3.0", "an integer"),
        (lambda c: c.get_int("x", 1, minimum=2), "1", "at least 2"),
        (lambda c: c.get_int("x", 1, minimum=2, maximum=4), "5", "from 2 to 4"),
        (lambda c: c.get_float("x", 1.0), "nan", "a number"),
        (lambda c: c.get_float("x", 1.0), "1_0", "a number"),
        (lambda c: c.get_choice("x", ["ctc", "hmm"], "hmm"), "rna", "ctc, hmm"),
    ],
)
def test_a_bad_value_names_parameter_value_and_what_is_accepted(getter, value, accepted):
    config = Configuration.from_dict({"*.tdp.x": value}).select("am.tdp")
    with pytest.raises(ConfigurationError) as caught:
        getter(config)
    for part in ("neural-network-trainer.am.tdp.x", repr(value), accepted, "*.tdp.x"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = $(y)\ny = $(x)", "refers to itself"),
        ("x = $(nothing)", "matches nothing"),
        ("x = $(open", "unclosed"),
        ("x = $(a..b)", "malformed reference"),
        ("x = $[1, complex]", "unknown format"),
    ],
)
def test_bad_references(tmp_path, text, message):
    config = read(tmp_path, text)
    with pytest.raises(ConfigurationError, match=message):
        config.get_str("x")


def test_bad_files(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot read the configuration file"):
        Configuration.from_argv([f"--config={tmp_path}/missing.config"], environment={})
    with pytest.raises(ConfigurationError, match=r"line 2: include file 'gone' does not exist"):
        read(tmp_path, "\ninclude gone\n")
    with pytest.raises(ConfigurationError, match="nested deeper"):
        read(tmp_path, f"include {tmp_path}/test.config\n")
    with pytest.raises(ConfigurationError, match="malformed section"):
        read(tmp_path, "[*.a..b]\n")
    with pytest.raises(ConfigurationError, match="malformed resource name"):
        read(tmp_path, "a..b = 1\n")


def test_what_rasr_only_grumbles_about_is_kept_as_a_message(tmp_path):
    config = read(tmp_path, 'x =\ny z = 1\nq = "quoted"\n', "stray")
    assert not config.has("x")
    assert config.get_str("q", "default") == ""
    text = "\n".join(config.messages)
    assert "line 1: syntax error" in text
    assert "line 2: syntax error" in text
    assert "double quote" in text
    assert "stray" in text


def test_unused_resources_are_reported(tmp_path):
    config = read(tmp_path, "used = 1\nnot-used = 2\n", environment={"HOME": "me"})
    config.get_int("used", 0)
    names = [resource.name for resource in config.unused()]
    assert names == ["*.not-used"]


def test_all_golden_configurations_are_read(golden_dir, monkeypatch):
    monkeypatch.chdir(golden_dir)
    files = sorted(Path("config").glob("*.config"))
    assert len(files) > 20
    for file in files:
        config = Configuration.from_argv([f"--config={file}"], environment={})
        model = config.select("alignment-fsa-exporter.model-combination")
        assert config.select("corpus").get_path("file").startswith("corpus")
        assert model.select("lexicon").get_path("file").startswith("lexicon")
        assert model.select("acoustic-model.tdp.entry-m1").get_float("loop", 0.0) == math.inf
        assert config.messages == []
