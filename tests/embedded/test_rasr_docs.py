"""docs/rasr.md: its configurations and snippets are run with the embedded Sprint."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.config_store import ResourceStore

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "rasr.md"
EMBEDDED = [sys.executable, "-P", "-m", "jax_sprint.embedded"]
DEADLINE = 60.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read_blocks() -> dict[str, str]:
    """The named blocks: the first line of each is a comment that begins with its file name."""
    blocks = {}
    for language, text in BLOCK.findall(DOCUMENT.read_text()):
        if language == "sh":
            continue
        name = text.split()[1]
        assert text.startswith("# "), text
        assert name.endswith({"ini": ".config", "python": ".py"}[language]), name
        assert name not in blocks, name
        blocks[name] = text
    return blocks


BLOCKS = read_blocks()
CONFIGS = sorted(name for name in BLOCKS if name.endswith(".config"))


@pytest.fixture
def folder(tmp_path, golden_dir, monkeypatch) -> Path:
    """A working directory with corpus, lexicon, and everything that the document shows."""
    for name in ("corpus.xml", "lexicon.xml"):
        shutil.copy(golden_dir / name, tmp_path)
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def execute(*names: str, **values) -> dict:
    """Runs snippets, one after the other, as one program: `values` are set behind the first."""
    namespace: dict = {}
    for name in ("common.py", *names):
        exec(compile(BLOCKS[name], f"{DOCUMENT.name}: {name}", "exec"), namespace)
        if name == "common.py":
            namespace |= {"nn_trainer": None, "lattice_processor": None, **values}
    return namespace


def start(name: str) -> None:
    """What the document's shell lines do, with the other executable."""
    command = f"nn-trainer.linux-x86_64-standard --config={name}"
    assert ["sh", command + "\n"] in [list(block) for block in BLOCK.findall(DOCUMENT.read_text())]
    subprocess.run([*EMBEDDED, f"--config={name}"], check=True, timeout=DEADLINE)


def resources(*files: str) -> dict[str, str]:
    store = ResourceStore()
    for file in files:
        store.read_file(file, lambda text: text)
    assert not store.messages
    return {resource.name: resource.value for resource in store.resources()}


def ask_for(*arguments: str) -> Configuration:
    return Configuration.from_argv(list(arguments), environment={})


# -- the document itself -----------------------------------------------------------------------


def test_every_snippet_and_configuration_is_known_to_these_tests():
    assert sorted(BLOCKS) == [
        "ask_cross_entropy.py",
        "automata.py",
        "common.py",
        "control-loop.config",
        "cross-entropy.config",
        "in_process.py",
        "iterate-corpus.config",
        "iterate.py",
        "lattices.py",
        "layer.config",
        "longest_first.py",
        "me.config",
        "mmi.config",
        "model.config",
        "segment-order.config",
        "wrapper.py",
        "write_names.py",
    ]


def test_links_within_the_document_lead_somewhere():
    text = DOCUMENT.read_text()
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert links
    assert set(links) <= headings
    assert "(docs/rasr.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_well_formed(folder, name):
    assert resources(name)


@pytest.mark.parametrize("name", ["ask_cross_entropy.py", "longest_first.py", "write_names.py"])
def test_modules_for_the_python_of_rasr_are_python_38(name):
    import ast

    ast.parse(BLOCKS[name], feature_version=(3, 8))


# -- its routes --------------------------------------------------------------------------------


def test_the_control_loop_gives_automata(folder, golden_dir):
    found = execute("automata.py")
    want = np.load(golden_dir / "a_mono3_default.npz")
    here = want["edges"][3] < len(found["tags"])
    np.testing.assert_array_equal(found["edges"], want["edges"][:, here])
    np.testing.assert_allclose(found["weights"], want["weights"][here], rtol=1e-5, atol=1e-6)
    assert len(found["automata"]) == len(found["tags"])
    assert list((folder / "sprint-logs").iterdir())


def test_the_control_loop_s_configuration_is_the_one_that_rasr_answered(folder, golden_dir):
    recorded = str(golden_dir / "config" / "a_mono3_default.config")
    assert resources("control-loop.config") == resources(recorded)


def full_sum(found: dict) -> tuple[np.ndarray, np.ndarray]:
    """The same losses by the other route: automata, and the kernel."""
    import jax

    import jax_sprint as js

    with js.SprintInstancePool(js.SprintOptions(config="--config=control-loop.config")) as pool:
        automata = js.Automata.from_edges(*pool.get_automata_for_batch(found["tags"]))
    x = found["log_posteriors"]
    return jax.jit(
        lambda x: (
            js.full_sum_loss(x, found["lengths"], automata),
            jax.grad(lambda x: js.full_sum_loss(x, found["lengths"], automata).sum())(x),
        )
    )(x)


def test_iterate_corpus_and_the_layer_give_the_same_loss(folder):
    found = execute("iterate.py")
    loss, gradient = full_sum(found)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["error_signal"], gradient, atol=1e-4)
    # The embedded Sprint takes the place of RASR's sequence trainer, under the same name.
    (folder / "mmi.config").write_text(BLOCKS["layer.config"])
    layer = execute("iterate.py", "lattices.py")
    assert layer["options"].config == ["--config=mmi.config"]
    np.testing.assert_allclose(layer["loss"], found["loss"], rtol=1e-6)
    np.testing.assert_allclose(layer["error_signal"], found["error_signal"], atol=1e-6)


@pytest.mark.parametrize("name", ["mmi", "me"])
def test_lattice_configurations_are_those_that_rasr_answered(folder, golden_dir, name):
    recorded = resources(str(golden_dir / "mmi" / f"{name}.config"))
    assert len(recorded) > 40
    assert resources(f"{name}.config") == recorded


def test_segment_order_and_a_module_of_ones_own(folder):
    start("segment-order.config")
    lines = [line.split("\t") for line in (folder / "names.txt").read_text().splitlines()]
    assert [name for name, _ in lines] == ["tiny/rec3/long", "tiny/rec1/seg3", "tiny/rec1/seg1"]
    assert [text.strip() for _, text in lines][1:] == ["see bob see", "hello world"]


def test_cross_entropy(folder):
    start("cross-entropy.config")
    found = np.load(folder / "cross-entropy.npz")
    assert found["loss"] == pytest.approx(-np.log(0.5 * 0.75 * 0.875), rel=1e-6)
    np.testing.assert_allclose(
        found["error"], [[-0.5, 0.25, 0.125], [0.5, -0.25, -0.125]], atol=1e-6
    )


def test_a_wrapper(folder, monkeypatch):
    # A command list in front, as a container's; the last word is the executable.
    (folder / "trainer").write_text(f'#!/bin/sh\nexec {" ".join(EMBEDDED)} "$@"\n')
    (folder / "trainer").chmod(0o755)
    (folder / "apptainer").write_text(
        '#!/bin/sh\n[ "$1" = exec ] && [ "$2" = rasr.sif ] || exit 9\n'
        f'[ -z "$PYTHONPATH" ] || exit 8\nshift 2\nPYTHONPATH="{ROOT}" "$@"\n'
    )
    (folder / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    found = execute("wrapper.py", nn_trainer=str(folder / "trainer"))
    assert found["wrapped_edges"].shape[0] == 4


def test_librasr(folder, monkeypatch):
    from jax_sprint.embedded.callback import SprintCallback

    class FakeConfiguration:
        def __init__(self):
            self.arguments = []

        def set_from_file(self, path, /):
            self.arguments.append(f"--config={path}")
            return True

        def set(self, name, value, /):
            self.arguments.append(f"--.{name}={value}")

    class Builder:
        def __init__(self, config, /):
            self.callback = SprintCallback(ask_for(*config.arguments))

        def build_by_segment_name(self, name, /):
            return self.callback("export_allophone_state_fsa_by_segment_name", name)

    module = types.ModuleType("librasr")
    module.Configuration, module.AllophoneStateFsaBuilder = FakeConfiguration, Builder
    monkeypatch.setitem(sys.modules, "librasr", module)
    found, pool = execute("in_process.py"), execute("automata.py")
    np.testing.assert_array_equal(found["edges"], pool["edges"])


# -- what it says of traps -----------------------------------------------------------------------


def lexicon_of(*arguments: str) -> str:
    scope = ask_for(*arguments).select("alignment-fsa-exporter.model-combination.lexicon")
    return scope.get_str("file", "")


def test_the_tie_rule(folder):
    file = "--config=control-loop.config"
    assert lexicon_of(file, "--*.lexicon.file=other.xml") == "lexicon.xml"
    assert lexicon_of(file, "--*.model-combination.lexicon.file=other.xml") == "other.xml"
    Path("mine.config").write_text(
        "include control-loop.config\n[*.model-combination.lexicon]\nfile = other.xml\n"
    )
    assert lexicon_of("--config=mine.config") == "other.xml"


def test_the_tie_of_the_segment_order(folder):
    corpus = ask_for("--config=segment-order.config", "--*.python-segment-order-pymod-name=ours")
    name = corpus.select("corpus").get_str("python-segment-order-pymod-name", "")
    assert name == "longest_first"
    assert ask_for("--config=segment-order.config", "--*.pymod-name=ours").get_str("pymod-name", "")


def test_quotes_and_comments(folder):
    Path("quoted.config").write_text('[*.corpus]\nfile = "corpus.xml"\naudio-dir = a%b\n')
    corpus = ask_for("--config=quoted.config").select("corpus")
    assert corpus.get_str("file", "") == ""
    assert corpus.get_str("audio-dir", "") == "a"


def test_the_table_of_parameters_names_only_what_is_asked_for(folder):
    """Each parameter of the table is used by the embedded Sprint; nothing is reported unused."""
    text = DOCUMENT.read_text()
    section = text.split("## Parameters of the embedded Sprint")[1].split("\n## ")[0]
    names = re.findall(r"`(\*\.[^`]*)`", section)
    assert len(names) == 10
    np.save("prior.npy", np.zeros(43))
    values = {
        "*.training-criterion": "full-sum",
        "*.criterion.prior-file": "prior.npy",
        "*.load-at-start": "yes",
        "*.report-unused": "yes",
        "*.input-in-log-space": "no",
    }
    options = [f"--{name}={values.get(name, '1')}" for name in names]
    options += ["--*.python-control-enabled=yes", "--*.pymod-path=.", "--*.pymod-name=once"]
    options += ["--*.no-such-parameter=1"]
    (folder / "once.py").write_text(
        "import numpy as np\n"
        "class Control:\n"
        "    def init_segment(self, **others): pass\n"
        "    def notify_segment_loss(self, **others): pass\n"
        "    def exit(self): pass\n"
        "def init(**others): return Control()\n"
        "class SprintNnPythonLayer:\n"
        "    def __init__(self, config): pass\n"
        "    def setInputDimension(self, stream, size): pass\n"
        "    def setOutputDimension(self, size): pass\n"
        "    def initializeNetworkParameters(self): pass\n"
        "    def isTrainable(self): return True\n"
        "    def getNumberOfFreeParameters(self): return 0\n"
        "    def forward(self, input):\n"
        "        return np.full((43, input[0].shape[1]), -np.log(43), np.float32)\n"
        "    def backpropagate(self, errorSignalIn):\n"
        "        return (np.zeros((80, errorSignalIn.shape[1]), np.float32),)\n"
        "    def finalize(self): pass\n"
    )
    done = subprocess.run(
        [*EMBEDDED, "--config=layer.config", *options],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unused = re.findall(r"nothing asked for neural-network-trainer\.(\S+) =", done.stderr)
    assert "*.no-such-parameter" in unused
    assert not set(names) & set(unused)
