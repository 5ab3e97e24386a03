"""Options, the ancestor's dict, and the command line made from them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jax_sprint.bridge import SprintOptions
from jax_sprint.bridge.command import build_command, build_environment, evaluate_config


def command(options: SprintOptions) -> list[str]:
    return build_command(
        options, build_environment(options), child_to_parent_fd=5, parent_to_child_fd=6
    )


def test_command_line_of_the_embedded_sprint() -> None:
    options = SprintOptions(
        config="--config=a.config --*.b=c", control_config={"verbose": True, "a": "b:c"}
    )
    side = str(Path(__file__).resolve().parents[2] / "jax_sprint" / "sprint_side")
    config = "c2p_fd:5,p2c_fd:6,minPythonControlVersion:2,a:b:c,verbose:True"
    assert command(options) == [
        sys.executable,
        "-P",
        "-m",
        "jax_sprint.embedded",
        "--*.python-control-enabled=true",
        f"--*.pymod-path={side}",
        "--*.pymod-name=jax_sprint_control",
        f"--*.pymod-config={config}",
        "--*.python-segment-order=true",
        f"--*.python-segment-order-pymod-path={side}",
        "--*.python-segment-order-pymod-name=jax_sprint_control",
        f"--*.python-segment-order-config={config}",
        "--*.python-segment-order-allow-copy=false",
        "--config=a.config",
        "--*.b=c",
    ]
    assert build_environment(options)["PYTHONPATH"].split(":")[0] == str(Path(side).parents[1])


def test_other_executable_and_module() -> None:
    options = SprintOptions(
        exec_path=["env", "-i", Path("/opt/sprint")],
        control_module=(Path("/returnn"), "returnn.sprint.control"),
        use_python_segment_order=False,
        min_python_control_version=4,
        env={"A": "1", "PATH": "/bin:/usr/bin", "HOME": None},
    )
    words = command(options)
    assert words[0].endswith("/env")
    assert words[1:] == [
        "-i",
        "/opt/sprint",
        "--*.python-control-enabled=true",
        "--*.pymod-path=/returnn",
        "--*.pymod-name=returnn.sprint.control",
        "--*.pymod-config=c2p_fd:5,p2c_fd:6,minPythonControlVersion:4",
    ]
    environment = build_environment(options)
    assert environment["A"] == "1"
    assert "HOME" not in environment


CONFIGS = [
    ("", []),
    ("--a --b='c d'", ["--a", "--b=c d"]),
    (["--a", "b c"], ["--a", "b c"]),
    (("--a",), ["--a"]),
    (lambda: "--a b", ["--a", "b"]),
    (lambda: lambda: ["--a", lambda: ["b", "c d"]], ["--a", "b", "c d"]),
    (["--x", lambda: "--a b", ["c"]], ["--x", "--a", "b", "c"]),
    ("$ARGS --x", ["--a", "b c", "--x"]),
    (["${ARGS}", "$DIR/x"], ["--a", "b c", "/some where/x"]),
    ("--*.y=$(x) --z=$DIR", ["--*.y=$(x)", "--z=$DIR"]),
    ("config:one", ["--one"]),
    ("config:two", ["--one", "--two"]),
    (lambda: "config:two", ["--one", "--two"]),
    (["--x", "config:two"], ["--x", "--one", "--two"]),
]
MAPPING = {"one": "--one", "two": lambda: ["config:one", "--two"], "loop": "config:loop"}
ENVIRONMENT = {"ARGS": "--a 'b c'", "DIR": "/some where"}


@pytest.mark.parametrize(("config", "words"), CONFIGS)
def test_config(config, words) -> None:
    assert evaluate_config(config, MAPPING, ENVIRONMENT) == words


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("$NOWHERE", "NOWHERE is not set"),
        ("config:three", "config_mapping holds loop, one, two"),
        ("config:loop", "refer to itself"),
        ("--a='b", "cannot be split"),
        (lambda: 7, "gave 7"),
    ],
)
def test_bad_config(config, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        evaluate_config(config, MAPPING, ENVIRONMENT)


def test_config_is_evaluated_when_the_child_is_started() -> None:
    calls = []
    options = SprintOptions(config=lambda: calls.append(1) or "--a")
    assert not calls
    assert command(options)[-1] == command(options)[-1] == "--a"
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"a": "b,c"}, "comma"),
        ({"a,b": "c"}, "comma"),
        ({"a:b": "c"}, "colon"),
        ({"": "c"}, "empty"),
        ({"a": "b\nc"}, "line break"),
        ({"c2p_fd": 3}, "the bridge itself sets"),
    ],
)
def test_control_config_that_cannot_be_expressed(config, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        command(SprintOptions(control_config=config))


def test_zero_character_in_an_argument() -> None:
    with pytest.raises(ValueError, match="zero character"):
        command(SprintOptions(config=["a\0b"]))


def test_ancestors_dict() -> None:
    options = SprintOptions.from_dict(
        {
            "sprintExecPath": "/opt/sprint",
            "sprintConfigStr": "config:args",
            "sprintControlConfig": {"verbose": True},
            "minPythonControlVersion": 4,
            "usePythonSegmentOrder": False,
            "numInstances": 3,
            "request_timeout": 7,
        },
        config_mapping={"args": "--a"},
    )
    assert options == SprintOptions(
        exec_path="/opt/sprint",
        config="config:args",
        config_mapping={"args": "--a"},
        control_config={"verbose": True},
        min_python_control_version=4,
        use_python_segment_order=False,
        num_instances=3,
        request_timeout=7,
    )
    assert SprintOptions.coerce(options) is options
    assert SprintOptions.coerce({"numInstances": "2"}).num_instances == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sprintExecpath": "x"}, "unknown key 'sprintExecpath'.*sprintExecPath.*exec_path"),
        ({"numInstances": 1, "num_instances": 2}, "num_instances is given twice"),
        ({"numInstances": "two"}, "num_instances must be a number"),
        (7, "must be a SprintOptions or a dict"),
    ],
)
def test_bad_dict(options, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SprintOptions.coerce(options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_instances", 0),
        ("num_instances", True),
        ("num_instances", 1.0),
        ("request_timeout", 0),
        ("request_timeout", float("inf")),
        ("start_timeout", "5"),
        ("batch_timeout", 0),
        ("batch_timeout", float("nan")),
        ("batch_timeout", True),
        ("max_retries", -1),
        ("on_error", "ignore"),
        ("exec_path", ""),
        ("exec_path", []),
        ("exec_path", [7]),
        ("exec_path", 7),
        ("config", 7),
        ("config", ["a", 7]),
        ("control_config", "a:b"),
        ("env", ["A=1"]),
        ("cwd", 7),
        ("log_dir", 7),
        ("control_module", "module"),
        ("use_python_segment_order", "yes"),
    ],
)
def test_bad_values(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        SprintOptions(**{name: value})


def test_identity() -> None:
    def lazy() -> str:
        return "--a"

    assert SprintOptions(config=["a"], cwd="x") == SprintOptions(config=("a",), cwd=Path("x"))
    assert hash(SprintOptions(env={"a": "1", "b": "2"})) == hash(
        SprintOptions(env={"b": "2", "a": "1"})
    )
    assert SprintOptions(config=lazy) == SprintOptions(config=lazy)
    assert SprintOptions(config=lazy) != SprintOptions(config=lambda: "--a")
    assert SprintOptions(control_config={"a": True}) != SprintOptions(control_config={"a": 1})
    assert SprintOptions() != 7
    with pytest.raises(AttributeError):
        SprintOptions().num_instances = 2  # type: ignore[misc]
    assert SprintOptions().replace(num_instances=2).num_instances == 2
