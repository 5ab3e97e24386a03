"""Trains on two hosts, each with Sprints of its own for its own part of the batch.

    python examples/two_hosts.py

Here both "hosts" are processes of this machine that find each other by `jax.distributed` on the
loopback interface, and each has two devices; on a cluster you would start one process per host with
`--process` and `--address`.  Each process

1. opens a pool, and starts its children before the first step (`pool.start()`), because the first
   collective between processes gives up after 30 s;
2. makes its own part of the global batch; T, B and the tags' width are the same everywhere;
3. runs the same jitted step, in which `sharded_sprint_loss` asks each process's pool about the
   shards that it holds, and the gradient of the replicated weights is summed over all of them;
4. calls `pool.check()` after the step: inside `shard_map` a failing Sprint raises nothing, since
   the peers would wait in the next collective until XLA ends the program.

`--stop 1` stops the Sprints of process 1 before the second step, as a full disk or a debugger may:
that process's losses are NaN then, its `pool.check()` tells why, and everybody goes on.

At the end process 0 computes the whole batch alone, and compares the gradients.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

STEPS, BATCH, FEATURES = 30, 8, 12
WORDS = {"yes": "J E S", "no": "N O", "stop": "S T O P", "on": "O N"}
PHONES = sorted({phone for word in WORDS.values() for phone in word.split()})
LABELS = 1 + len(PHONES)  # one state each, and silence

CONFIG = """\
[*]
encoding = utf-8
action = python-control
python-control-loop-type = python-control-loop
extract-features = no
[*.corpus]
file = corpus.xml
[*.model-combination.lexicon]
file = lexicon.xml
[*.model-combination.acoustic-model]
state-tying.type = monophone
phonology.history-length = 1
phonology.future-length = 1
hmm.states-per-phone = 1
hmm.state-repetitions = 1
hmm.across-word-model = no
allophones.add-from-lexicon = yes
tdp.applicator-type = corrected
tdp.entry-m1.loop = infinity
tdp.entry-m2.loop = infinity
[*.allophone-state-graph-builder]
topology = hmm
orthographic-parser.allow-for-silence-repetitions = no
"""


def write_files(folder: Path) -> None:
    """What Sprint reads: configuration, lexicon, and a corpus of `BATCH` segments."""
    phonemes = "".join(
        f"<phoneme><symbol>{p}</symbol><variation>context</variation></phoneme>" for p in PHONES
    )
    lemmas = "".join(
        f"<lemma><orth>{word}</orth><phon>{phones}</phon></lemma>" for word, phones in WORDS.items()
    )
    (folder / "lexicon.xml").write_text(
        "<lexicon><phoneme-inventory><phoneme><symbol>sil</symbol><variation>none</variation>"
        f"</phoneme>{phonemes}</phoneme-inventory><lemma special='silence'><orth>[SILENCE]</orth>"
        f"<orth></orth><phon>sil</phon><synt/></lemma>{lemmas}</lexicon>"
    )
    words = list(WORDS)
    recordings = "".join(
        f"<recording name='r{b}' audio='r{b}.wav'><segment name='s' start='0' end='1'>"
        f"<orth>{words[b % 4]} {words[b * 3 % 4]}</orth></segment></recording>"
        for b in range(BATCH)
    )
    (folder / "corpus.xml").write_text(f"<corpus name='calls'>{recordings}</corpus>")
    (folder / "sprint.config").write_text(CONFIG)


def run_process(process: int, given: argparse.Namespace) -> None:
    """What each host runs."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import jax_sprint as js

    jax.distributed.initialize(given.address, given.processes, process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    options = js.SprintOptions(
        config="--config=sprint.config", cwd=given.folder, num_instances=2, batch_timeout=5.0
    )
    with js.SprintInstancePool(options) as pool:
        pool.start()
        # Synthetic features; every process knows all of them, and uses its own part.
        rng = np.random.default_rng(0)
        features = rng.normal(size=(STEPS, BATCH, FEATURES)).astype(np.float32)
        lengths = rng.integers(STEPS // 2, STEPS + 1, BATCH).astype(np.int32)
        # The width must be the same on all hosts, whatever names their parts have.
        tags = js.encode_tags([f"calls/r{b}/s" for b in range(BATCH)], max_len=32)
        mine = slice(process * BATCH // given.processes, (process + 1) * BATCH // given.processes)

        def spread(local: np.ndarray, spec: P) -> jax.Array:
            return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), local)

        batch = (
            spread(features[:, mine], P(None, "data")),
            spread(lengths[mine], P("data")),
            spread(tags[mine], P("data")),
        )
        weights = spread(np.zeros((FEATURES, LABELS), np.float32), P())

        def total(weights, features, lengths, tags):
            log_posteriors = jax.nn.log_softmax(features @ weights)
            loss, valid = js.sharded_sprint_loss(
                log_posteriors, lengths, tags, sprint=pool, mesh=mesh, return_valid=True
            )
            return jnp.sum(jnp.where(valid, loss, 0.0)), loss

        @jax.jit
        def step(weights, *batch):
            (value, loss), gradient = jax.value_and_grad(total, has_aux=True)(weights, *batch)
            return weights - 0.01 * gradient, value, gradient, loss

        for number in range(given.steps):
            if number == 1 and given.stop == process:
                stop_children()
            before = weights
            weights, value, gradient, loss = jax.block_until_ready(step(weights, *batch))
            own = np.concatenate([shard.data for shard in loss.addressable_shards])
            say(f"process {process}, step {number}: total {value:.3f}, own {own}")
            try:
                pool.check()
            except js.SprintError as error:
                say(f"process {process}: {type(error).__name__}: {error.message}")
                # Not during the next step, where starting counts.
                pool.start()
        if process == 0:

            def alone(weights):
                log_posteriors = jax.nn.log_softmax(features @ weights)
                return jnp.sum(js.sprint_loss(log_posteriors, lengths, tags, sprint=pool))

            want = jax.jit(jax.grad(alone))(np.asarray(before))
            difference = np.max(np.abs(np.asarray(gradient) - want)) / np.max(np.abs(want))
            assert difference < 1e-5, f"the gradients differ by {difference}"
            say(f"gradient as that of one process; largest relative difference {difference:.1e}")
    jax.distributed.shutdown()


def say(line: str) -> None:
    """Prints a line in one piece, so that the processes' lines do not mix."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def stop_children() -> None:
    """Stops this process's Sprints, as SIGSTOP does; they do not die, they only do not answer."""
    from jax_sprint import ReaderThread

    for thread in threading.enumerate():
        if isinstance(thread, ReaderThread) and thread.instance and thread.instance.pid:
            os.kill(thread.instance.pid, signal.SIGSTOP)


def start_all(given: argparse.Namespace) -> int:
    """Starts the processes here, and waits for them; returns an exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.devices}"
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        common = ["--address", f"127.0.0.1:{port}", "--folder", folder]
        common += [f"--{name}={getattr(given, name)}" for name in ("processes", "steps", "stop")]
        children = [
            subprocess.Popen(
                [sys.executable, __file__, *common, f"--process={number}"], env=environment
            )
            for number in range(given.processes)
        ]
        try:
            statuses = [child.wait(timeout=200) for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
    return max(map(abs, statuses))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="of each process")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--stop", type=int, default=-1, help="whose Sprints to stop in step 1")
    parser.add_argument(
        "--process", type=int, help="which one this is; all are started if left out"
    )
    parser.add_argument("--address", help="host and port of process 0")
    parser.add_argument("--folder", type=Path, help="where corpus and configuration are")
    given = parser.parse_args(arguments)
    if BATCH % (given.processes * given.devices):
        parser.error(f"{given.processes} x {given.devices} devices do not divide {BATCH} segments")
    if given.process is None:
        return start_all(given)
    run_process(given.process, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
