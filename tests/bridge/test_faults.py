"""Everything that can go wrong with a child, each with its outcome, against real processes.

What can go wrong, what comes of it, and where it is tested (here, less its `test_`, unless a file
is named).  In a pool a segment that failed is asked again on a fresh child, up to `max_retries`
times; what is left is raised or, with `on_error="mask"`, masked (`test_retries.py`); inside
`jax.shard_map` it is NaN, and `pool.check()` raises it (`losses/test_peers.py`).

===============================  =========================================  =======================
fault                            outcome                                    test
===============================  =========================================  =======================
*at the start*
never answers the handshake      SprintTimeoutError, start_timeout          start[silent]
exits before or during it        SprintStartError, status, stderr           start[dies, exits...]
closes its pipes, runs on        SprintStartError, "closed its pipe"        start[closes pipes]
another protocol version         SprintProtocolError, which one             start[version, ...]
garbage, another's words         SprintProtocolError                        start[garbage, ...]
cannot be executed               SprintStartError, what to do               executable
out of file descriptors          SprintStartError, ulimit -n; the pool      out_of_..., a_pool_
                                 recovers                                   out_of_...
*with a request*
dies before, in the middle of,   SprintCrashError, status or signal,        test_deaths.py
after reading it, in its reply   stderr, segment
is stopped for ever, hangs       SprintTimeoutError, and it is killed       request[stop, hang]
does not read a large request    SprintTimeoutError, "does not read"        a_stopped_child_does...
is slow, but alive               its answer                                 slow_is_not_dead
writes garbage                   SprintProtocolError                        request[garbage, ...]
answers twice, another's reply   SprintProtocolError, nothing is mistaken   an_answer_too_many...,
                                                                            test_protocol_v2.py
claims 2 GB, or less than none   SprintProtocolError, no memory is taken    a_frame_is_bounded...
wrong shape or dtype             SprintProtocolError, what was wanted       request[shape, ...]
loss NaN, inf                    that loss, error signal zero               a_loss_that_is_not...
finite loss, NaN error signal    SprintProtocolError                        request[nan error]
1 GB on stdout or stderr         nothing: swallowed, its end kept           a_gigabyte_of_output...
closes one pipe only             SprintCrashError, "though it was running"  request[close],
                                                                            a_request_that_nobody...
truncates the shared memory      impossible: sealed                         test_protocol_v2.py
sends a hostile pickle           SprintProtocolError, nothing is executed   request[hostile],
                                                                            test_wire_pickles.py
refuses the request              SprintRequestError, the child lives on     a_refused_request...
dies between two requests        the pool replaces it unasked               test_deadlines.py
starts grandchildren             they end with it                           grandchildren_end...
will not exit                    killed after exit_timeout                  a_child_that_will_not...
*in the parent*: `test_parent.py`
kill -9                          children, computing or stopped, wrappers   kill_9_of_the_parent
                                 and grandchildren are gone within 2 s,
                                 and so is the memory
Ctrl-C in a step                 KeyboardInterrupt; the pool goes on        ctrl_c_...
exit without close()             as with it                                 interpreter_exit
os.fork by others                the fork's use is an error, and its life   os_fork_by_others,
                                 keeps no child                             a_fork_that_lives...
the guardian is killed           another one is started                     a_killed_guardian...
*in JAX*
repeats, drops, overlaps calls   the same values                            losses/test_callback_...
a peer waits in a collective     NaN in time, no abort                      losses/test_peers.py
*for days*
a child killed every 200th       every reply right, nothing grows           test_soak.py,
request                                                                     benchmarks/soak.py
===============================  =========================================  =======================
"""

from __future__ import annotations

import re
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
from processes import assert_gone

from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintStartError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def posteriors(length: int = 4, labels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, labels)).astype(np.float32)


def ask(instance: SprintSubprocessInstance, name: str, length: int = 4) -> tuple:
    instance.get_loss_and_error_signal__send(name, length, posteriors(length))
    return instance.get_loss_and_error_signal__read()


START = {
    # fault: (error, exit status, what the message says)
    "dies": (SprintStartError, 3, "cannot open my licence file"),
    "nonsense": (SprintStartError, 0, "Usage: something else entirely"),
    "silent": (SprintTimeoutError, None, "start_timeout = 1.0 s"),
    "garbage": (SprintProtocolError, None, "no valid answer to the handshake.*HTTP"),
    "closes pipes": (SprintStartError, None, "closed its pipe before it answered"),
    "exits in handshake": (SprintStartError, 4, "exited with status 4"),
    "version": (SprintProtocolError, None, "speaks protocol version 7"),
    "refuses": (SprintProtocolError, None, "refused the handshake: need new Sprint"),
    "wrong answer": (SprintProtocolError, None, "answer to the handshake is"),
    "hostile": (SprintProtocolError, None, "print.* is not permitted"),
}


@pytest.mark.parametrize("fault", START)
def test_start(options, fault: str) -> None:
    kind, status, text = START[fault]
    quick = {"start_timeout": 1.0} if fault == "silent" else {}
    with pytest.raises(SprintError) as caught:
        SprintSubprocessInstance(options(fault, **quick))
    assert type(caught.value) is kind
    assert caught.value.exit_status == status
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)


REQUEST = {
    "exit": (SprintCrashError, 5, "exited with status 5.*lattice not found"),
    "kill": (SprintCrashError, -signal.SIGKILL, "SIGKILL"),
    "segv": (SprintCrashError, -signal.SIGSEGV, "SIGSEGV.*about to touch null"),
    "half": (SprintCrashError, 6, r"after \d+ of \d+ bytes"),
    "garbage": (SprintProtocolError, None, "is no valid message"),
    "huge": (SprintProtocolError, None, "claims 2147483647 bytes"),
    "negative": (SprintProtocolError, None, "claims -1 bytes"),
    "hostile": (SprintProtocolError, None, "system.* is not permitted"),
    "hang": (SprintTimeoutError, None, "request_timeout = 1.0 s"),
    "stop": (SprintTimeoutError, None, "request_timeout = 1.0 s"),
    "shape": (SprintProtocolError, None, r"must be \(4, 3\), got \(3, 3\)"),
    "transposed": (SprintProtocolError, None, r"got \(3, 4\); it is transposed"),
    "dtype": (SprintProtocolError, None, "array of floats, got an array int32"),
    "text": (SprintProtocolError, None, "loss must be a number, got '1.0'"),
    "short": (SprintProtocolError, None, "has 1 parts"),
    "status": (SprintProtocolError, None, "neither ok nor exception"),
    "nan error": (SprintProtocolError, None, "holds NaN or infinity"),
    "close": (SprintCrashError, None, "closed its pipe, though it was running"),
}


@pytest.mark.parametrize("fault", REQUEST)
def test_request(options, fault: str) -> None:
    kind, status, text = REQUEST[fault]
    name = f"corpus/{fault}/1"
    quick = {"request_timeout": 1.0} if fault in ("hang", "stop") else {}
    with SprintSubprocessInstance(options(**quick)) as instance:
        with pytest.raises(SprintError) as caught:
            ask(instance, name)
        error = caught.value
        assert type(error) is kind
        assert error.exit_status == status
        assert error.segment == name
        assert name in str(error)
        assert re.search(text, str(error), re.DOTALL), str(error)
        # The child is gone, and says so instead of serving a stale answer...
        assert not instance.is_calculating
        with pytest.raises(SprintClosedError, match=r"init\(\) starts a new one"):
            ask(instance, "corpus/fine/2")
        # ...until it is started again.
        instance.init()
        assert ask(instance, "corpus/fine/2")[0] == "corpus/fine/2"


@pytest.mark.parametrize(
    ("fault", "text"), [("unknown", "not in the corpus"), ("no reason", "gave")]
)
def test_a_refused_request_leaves_the_child_alive(options, fault: str, text: str) -> None:
    with SprintSubprocessInstance(options()) as instance:
        pid = instance.pid
        with pytest.raises(SprintRequestError, match=text) as caught:
            ask(instance, f"corpus/{fault}/1")
        assert caught.value.segment == f"corpus/{fault}/1"
        assert ask(instance, "corpus/fine/2")[0] == "corpus/fine/2"
        assert instance.pid == pid


@pytest.mark.parametrize(("fault", "loss"), [("nan", np.nan), ("inf", np.inf)])
def test_a_loss_that_is_not_finite_has_no_error_signal(options, fault: str, loss: float) -> None:
    with SprintSubprocessInstance(options()) as instance:
        _, got, error_signal = ask(instance, f"corpus/{fault}/1")
    np.testing.assert_equal(got, loss)
    np.testing.assert_array_equal(error_signal, np.zeros((4, 3), np.float32))


def test_a_float64_error_signal_is_accepted(options, fake) -> None:
    with SprintSubprocessInstance(options()) as instance:
        _, loss, error_signal = ask(instance, "corpus/float64/1")
    want = fake.expected("corpus/float64/1", posteriors())
    assert loss == want[0]
    assert error_signal.dtype == np.float32
    np.testing.assert_array_equal(error_signal, want[1])


def test_an_answer_too_many_is_not_taken_for_the_next_segments(options, fake) -> None:
    with SprintSubprocessInstance(options()) as instance:
        ask(instance, "corpus/twice/1")
        assert instance._child is not None
        assert instance._child.channel.poll(5.0)
        with pytest.raises(SprintProtocolError, match="nobody asked for"):
            ask(instance, "corpus/fine/2")


def test_a_child_that_dies_between_requests(options) -> None:
    with SprintSubprocessInstance(options()) as instance:
        psutil.Process(instance.pid).kill()
        assert instance._child is not None
        assert instance._child.wait(5.0)
        with pytest.raises(SprintCrashError, match="SIGKILL"):
            ask(instance, "corpus/fine/1")


def test_a_request_that_nobody_reads(options) -> None:
    # More than the pipe holds, and the child has closed its end.
    with SprintSubprocessInstance(options()) as instance:
        assert ask(instance, "corpus/close input/1")[0] == "corpus/close input/1"
        with pytest.raises(SprintCrashError, match="closed"):
            ask(instance, "corpus/fine/2", length=1_000_000)


def test_a_stopped_child_does_not_take_a_large_request(options) -> None:
    with SprintSubprocessInstance(options(request_timeout=1.0)) as instance:
        psutil.Process(instance.pid).suspend()
        with pytest.raises(SprintTimeoutError, match="does not read"):
            ask(instance, "corpus/fine/2", length=1_000_000)


def test_slow_is_not_dead(options) -> None:
    with SprintSubprocessInstance(options("slow start", "--sleep=0.7")) as instance:
        instance.get_loss_and_error_signal__send("corpus/slow/1", 4, posteriors())
        assert instance.is_calculating
        assert not instance.get_loss_and_error_signal__have_data()
        assert instance.get_loss_and_error_signal__read()[0] == "corpus/slow/1"


@pytest.mark.parametrize("fault", ["states", "edges"])
def test_a_wrong_automaton(options, fault: str) -> None:
    with (
        SprintSubprocessInstance(options()) as instance,
        pytest.raises(SprintProtocolError) as caught,
    ):
        instance.export_allophone_state_fsa_by_segment_name(f"corpus/{fault}/1")
    assert caught.value.segment == f"corpus/{fault}/1"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_gigabyte_of_output_takes_no_memory(options, fake, stream: str) -> None:
    name = f"corpus/gigabyte on {stream}/1"
    with SprintSubprocessInstance(options(request_timeout=120.0)) as instance:
        drain = instance._child.drain
        tracemalloc.start()
        try:
            assert ask(instance, name)[1] == fake.expected(name, posteriors())[0]
            # What is still in the pipe belongs to it.
            deadline = time.monotonic() + 20
            while drain.count(stream) < 1000 << 20 and time.monotonic() < deadline:
                time.sleep(0.01)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert drain.count(stream) == (1000 << 20) + (14 if stream == "stderr" else 0)
        assert peak < 4 << 20
        assert len(drain.tail(stream)) < 20_000
        assert ask(instance, "corpus/fine/2")[0] == "corpus/fine/2"


@pytest.mark.parametrize("fault", ["huge", "negative"])
def test_a_frame_is_bounded_before_memory_is_taken_for_it(options, fault: str) -> None:
    with SprintSubprocessInstance(options()) as instance:
        tracemalloc.start()
        try:
            with pytest.raises(SprintProtocolError, match="claims"):
                ask(instance, f"corpus/{fault}/1")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_a_flood_of_output_blocks_nobody_and_is_logged(options, tmp_path: Path) -> None:
    logged = options("noisy start", log_dir=tmp_path / "logs")
    with SprintSubprocessInstance(logged) as instance:
        assert ask(instance, "corpus/flood/1")[0] == "corpus/flood/1"
        with pytest.raises(SprintCrashError) as caught:
            ask(instance, "corpus/exit/1")
    assert "the last line\nlattice not found" in caught.value.stderr_tail
    assert len(caught.value.stderr_tail) < 20_000
    (stdout,) = (tmp_path / "logs").glob("*.stdout")
    (stderr,) = (tmp_path / "logs").glob("*.stderr")
    assert stdout.stat().st_size == 20_000_000 + 17 * 100_000
    assert stderr.read_bytes().endswith(b"the last line\nlattice not found\n")


def test_a_log_directory_that_cannot_be_made(options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SprintStartError, match="log_dir"):
        SprintSubprocessInstance(options(log_dir=tmp_path / "file" / "logs"))


def test_grandchildren_end_as_well(options) -> None:
    with SprintSubprocessInstance(options()) as instance:
        ask(instance, "corpus/grandchild/1")
        (grandchild,) = psutil.Process(instance.pid).children()
    assert_gone([grandchild], 10)


def test_a_child_that_will_not_exit_is_killed(options) -> None:
    instance = SprintSubprocessInstance(options("will not exit", exit_timeout=0.5))
    child = psutil.Process(instance.pid)
    instance.exit_handler()
    assert not child.is_running()
    instance.exit_handler()


EXECUTABLES = {
    "missing": ("/no/such/sprint", "does not exist"),
    "not in PATH": ("no-such-sprint", "not found in PATH"),
    "not executable": (__file__, "chmod"),
    "a directory": (str(Path(__file__).parent), "not a file"),
}


@pytest.mark.parametrize("case", EXECUTABLES)
def test_executable(case: str) -> None:
    path, text = EXECUTABLES[case]
    with pytest.raises(SprintStartError, match=text):
        SprintSubprocessInstance(SprintOptions(exec_path=path))
    with SprintInstancePool({"sprintExecPath": path}) as pool:
        with pytest.raises(SprintStartError, match=text) as caught:
            pool.get_automata_for_batch(["a/b/c"])
        assert caught.value.segment == "a/b/c"


def test_an_executable_that_the_system_refuses(tmp_path: Path) -> None:
    path = tmp_path / "sprint"
    path.write_text("neither a binary nor a script")
    path.chmod(0o755)
    with pytest.raises(SprintStartError, match="#! line"):
        SprintSubprocessInstance(SprintOptions(exec_path=path))


def test_a_working_directory_that_is_missing(options) -> None:
    with pytest.raises(SprintStartError, match="cwd"):
        SprintSubprocessInstance(options(cwd="/no/such/directory"))


def test_out_of_file_descriptors(options) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = psutil.Process().num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, limits[1]))
    try:
        with pytest.raises(SprintStartError, match="ulimit -n"):
            SprintSubprocessInstance(options())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_pool_out_of_file_descriptors_recovers(options, fake) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with SprintInstancePool(options(num_instances=2)) as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 5, limits[1]))
        try:
            with pytest.raises(SprintStartError, match="ulimit -n"):
                pool.get_automata_for_batch(["a/b/1"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        edges, _, _ = pool.get_automata_for_batch(["a/b/1"])
        assert edges.shape[1] == fake.expected_automaton("a/b/1")[1]


def test_usage_errors(options) -> None:
    with SprintSubprocessInstance(options()) as instance:
        with pytest.raises(SprintError, match="no request was sent"):
            instance.get_loss_and_error_signal__read()
        instance.get_loss_and_error_signal__send("corpus/fine/1", 4, posteriors())
        with pytest.raises(SprintError, match="was not read yet"):
            instance.get_loss_and_error_signal__send("corpus/fine/2", 4, posteriors())
        assert instance.get_loss_and_error_signal__read()[0] == "corpus/fine/1"
        for arguments, text in (
            (("", 4, posteriors()), "non-empty"),
            ((b"a", 4, posteriors()), "non-empty"),
            (("a", 5, posteriors()), "must have seg_len = 5"),
            (("a", 0, posteriors(0)), "at least 1"),
            (("a", 4.0, posteriors()), "must be an int"),
            (("a", 4, posteriors()[None]), r"\[T, L\]"),
            (("a", 4, posteriors().astype(int)), "floating point"),
        ):
            with pytest.raises(ValueError, match=text):
                instance.get_loss_and_error_signal__send(*arguments)
        assert ask(instance, "corpus/fine/3")[0] == "corpus/fine/3"


def test_a_wrapper_command(options) -> None:
    fake = options().exec_path
    with SprintSubprocessInstance(options(exec_path=["env", "WRAPPED=1", *fake])) as instance:
        assert ask(instance, "corpus/fine/1")[0] == "corpus/fine/1"


def test_a_wrapper_that_stays_in_between(options) -> None:
    # The wrapper is the leader of the group; Sprint is its child.
    code = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], close_fds=False))"
    wrapper = [sys.executable, "-S", "-c", code]
    with SprintSubprocessInstance(options(exec_path=[*wrapper, *options().exec_path])) as instance:
        assert ask(instance, "corpus/fine/1")[0] == "corpus/fine/1"
        instance.options = instance.options.replace(request_timeout=0.5)
        (sprint,) = psutil.Process(instance.pid).children()
        with pytest.raises(SprintTimeoutError):
            ask(instance, "corpus/hang/1")
    assert_gone([sprint], 10)
