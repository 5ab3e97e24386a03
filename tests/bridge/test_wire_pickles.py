"""What may come over the wire and what may not, and that any numpy understands what we write."""

# ruff: noqa: E501

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_sprint.sprint_side.jax_sprint_control import pickles
from jax_sprint.sprint_side.jax_sprint_control.pickles import FormatError, decode, encode

SIDE = Path(pickles.__file__).parent


def joined(message: object) -> bytes:
    return b"".join(bytes(piece) for piece in encode(message))


def native(array: np.ndarray) -> np.ndarray:
    # numpy itself swaps to the native byte order while it unpickles.
    return array.astype(array.dtype.newbyteorder("="))


def same(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and native(left).dtype == native(right).dtype
            and left.shape == right.shape
            and native(left).tobytes() == native(right).tobytes()
        )
    if isinstance(left, (tuple, list)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return type(left) is type(right) and (left == right or (left != left and right != right))


arrays = hnp.arrays(
    dtype=st.one_of(
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        hnp.boolean_dtypes(),
        hnp.byte_string_dtypes(max_len=5),
        hnp.unicode_string_dtypes(max_len=5),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=5000),
    arrays,
)
messages = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers(0, 9)), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(messages)
def test_round_trip(message: object) -> None:
    raw = joined(message)
    assert same(message, decode(bytearray(raw)))
    # Any pickle implementation reads it: this is what the other side may use.
    assert same(message, pickle.loads(raw))


@settings(max_examples=150, deadline=None)
@given(messages, st.integers(2, 5))
def test_reads_what_pickle_writes(message: object, protocol: int) -> None:
    assert same(message, decode(pickle.dumps(message, protocol)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_format_error_or_another_harmless_message(data: st.DataObject) -> None:
    raw = bytearray(joined(("ok", 1.5, np.arange(12, dtype=np.float32).reshape(3, 4), {"a": [1]})))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with contextlib.suppress(FormatError):
        decode(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        decode(b"\x80\x04" + raw + b".")


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_of_both_numpys(core: str, protocol: int) -> None:
    message = ("ok", np.float32(2.5), np.arange(5, dtype=np.uint32), np.float64("nan"))
    raw = pickle.dumps(message, protocol)
    # Lengths of short strings are part of the stream, so rewrite it opcode by opcode.
    old, new = ("numpy._core", core) if b"numpy._core" in raw else ("numpy.core", core)
    text = bytearray()
    spans = [pos for _, _, pos in pickletools.genops(raw)] + [len(raw)]
    for (op, arg, start), end in zip(pickletools.genops(raw), spans[1:], strict=False):
        if op.name == "FRAME":
            continue
        if op.name == "SHORT_BINUNICODE" and old in arg:
            arg = arg.replace(old, new).encode()
            text += b"\x8c" + bytes([len(arg)]) + arg
        elif op.name == "GLOBAL" and old in arg:
            text += b"c" + arg.replace(old, new).replace(" ", "\n").encode() + b"\n"
        else:
            text += raw[start:end]
    assert same(message, decode(text))


def test_numpy_scalars_are_sent_as_plain_numbers() -> None:
    # RETURNN's child accepts the segment length as int only.
    values = decode(joined((np.int64(7), np.int32(7), np.float32(0.5), np.bool_(True))))
    assert [type(value) for value in values] == [int, int, float, bool]


def test_large_arrays_are_views_of_the_frame_and_writable() -> None:
    frame = bytearray(joined(("x", np.arange(100_000, dtype=np.float32))))
    array = decode(frame)[1]
    assert np.shares_memory(array, np.frombuffer(frame, np.uint8))
    assert array.flags.aligned
    array += 1


def test_any_strides_can_be_sent() -> None:
    base = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    for array in (base.T, base[:, 1], base[::-1, ::2], np.asfortranarray(base)):
        assert same(np.ascontiguousarray(array), decode(joined(array)))


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, np.array([object()]), 1j, np.zeros(1, "M8[s]"), 1 << 300]
)
def test_what_cannot_be_sent(value: object) -> None:
    with pytest.raises(FormatError, match="cannot send"):
        encode(("command", value))


def test_endless_nesting_cannot_be_sent() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises(FormatError, match="nested"):
        encode(loop)


# ------------------------------------------------------------------------------- hostile pickles


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *args: object) -> None:
        self.what = (function, args)

    def __reduce__(self) -> tuple:
        return self.what


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ARRAY = glob("returnn.util.task_system", "make_numpy_ndarray_fromstring")
HOSTILE = {
    "os.system": b"\x80\x02" + glob("os", "system") + b"X\x04\0\0\0true\x85R.",
    "builtins.eval": b"\x80\x02" + glob("builtins", "eval") + b"X\x01\0\0\x001\x85R.",
    "bare global": b"\x80\x02" + glob("numpy", "ndarray") + b".",
    "global in a tuple": b"\x80\x02" + glob("numpy", "ndarray") + b"\x85.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "stack global, not strings": b"\x80\x04K\x01K\x02\x93.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10dtype.__reduce__\x93.",
    "numpy.load": b"\x80\x02" + glob("numpy", "load") + b"X\x01\0\0\0x\x85R.",
    "fromstring itself": b"\x80\x02" + glob("numpy", "fromstring") + b")R.",
    "inst": b"\x80\x02(ios\nsystem\n.",
    "obj": b"\x80\x02(" + glob("os", "system") + b"o.",
    "newobj": b"\x80\x02" + glob("numpy", "ndarray") + b")\x81.",
    "newobj_ex": b"\x80\x04" + glob("numpy", "ndarray") + b")}\x92.",
    "ext1": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02Pabc\n.",
    "binary persistent id": b"\x80\x02K\x01Q.",
    "out of band buffer": b"\x80\x05\x97.",
    "set": b"\x80\x04\x8f.",
    "protocol 0": b"I1\n.",
    "protocol 9": b"\x80\x09N.",
    "reduce on a string": b"\x80\x02X\x01\0\0\0a)R.",
    "reduce without a tuple": b"\x80\x02" + glob("numpy", "dtype") + b"K\x01R.",
    "build on a dict": b"\x80\x02}}b.",
    "build on a global": b"\x80\x02" + glob("numpy", "dtype") + b"}b.",
    "empty": b"",
    "only stop": b"\x80\x02.",
    "left over": b"\x80\x02NN.",
    "trailing bytes": b"\x80\x02N.N",
    "no stop": b"\x80\x02N",
    "pop below a mark": b"\x80\x02N(\x85.",
    "mark alone": b"\x80\x02(.",
    "unknown memo": b"\x80\x02h\x07.",
    "huge memo index": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "string of 4 GB": b"\x80\x04X\xff\xff\xff\xffabc.",
    "bytes of 2**60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "bytearray of 2**60": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"abc.",
    "frame of 2**60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "integer of a megabyte": b"\x80\x02\x8b\x00\x00\x10\x00" + b"\1" * (1 << 20) + b".",
    "name without end": b"\x80\x02c" + b"a" * 1000 + b".",
    "not utf-8": b"\x80\x02X\x01\0\0\0\xff.",
    "list that contains itself": b"\x80\x02]q\x00h\x00a.",
    "dict that contains itself": b"\x80\x02}q\x00K\x01h\x00s.",
    "tuple as key": b"\x80\x02})K\x01s.",
    "odd items": b"\x80\x02}(K\x01u.",
    "appends to a tuple": b"\x80\x02)(K\x01e.",
    "deep nesting": b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".",
    "array: object dtype": b"\x80\x03" + ARRAY + b"C\x08" + b"A" * 8 + b"X\x01\0\0\0OK\x01\x85\x87R.",
    "array: record dtype": b"\x80\x03" + ARRAY + b"C\x08" + b"A" * 8 + b"X\x05\0\0\0i4,i4K\x01\x85\x87R.",
    "array: subarray dtype": b"\x80\x03" + ARRAY + b"C\x08" + b"A" * 8 + b"X\x05\0\0\0(2)i4K\x01\x85\x87R.",
    "array: dtype is a list": b"\x80\x03" + ARRAY + b"C\x04AAAA]K\x01\x85\x87R.",
    "array: too few bytes": b"\x80\x03" + ARRAY + b"C\x04AAAAX\x02\0\0\0f4K\x02\x85\x87R.",
    "array: negative shape": b"\x80\x03" + ARRAY + b"C\x04AAAAX\x02\0\0\0f4J\xff\xff\xff\xff\x85\x87R.",
    "array: shape of text": b"\x80\x03" + ARRAY + b"C\x04AAAAX\x02\0\0\0f4X\x01\0\0\0a\x85\x87R.",
    "array: 40 axes": b"\x80\x03" + ARRAY + b"C\x04AAAAX\x02\0\0\0f4(" + b"K\x01" * 40 + b"t\x87R.",
    "array: text as data": b"\x80\x03" + ARRAY + b"X\x04\0\0\0AAAAX\x02\0\0\0f4K\x01\x85\x87R.",
    "array: too many arguments": b"\x80\x03" + ARRAY + b"(NNNNNNt" + b"R.",
    "array: never filled": b"\x80\x03" + glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R.",
    "array: of a subclass": b"\x80\x03" + glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "matrix") + b"K\x00\x85C\x01b\x87R.",
    "bytes(10**12)": b"\x80\x02" + glob("builtins", "bytes") + b"\x8b\x06\0\0\0\0\0\0\0\0\1\x85R.",
    "codec": b"\x80\x02" + glob("_codecs", "encode") + b"X\x01\0\0\0aX\x03\0\0\0zip\x86R.",
    "scalar object": pickle.dumps(np.datetime64("2020-01-01")),
    "getattr": pickle.dumps(Calls(getattr, "a", "upper")),
    "system": pickle.dumps(Calls(os.system, "exit 1")),
    "exec": pickle.dumps(Calls(exec, "raise SystemExit")),
    "class instance": pickle.dumps(Path("/")),
    "object array": pickle.dumps(np.array([1, "a", None], dtype=object)),
    "record array": pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])),
    "date array": pickle.dumps(np.zeros(2, dtype="M8[s]")),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        decode(bytearray(HOSTILE[name]))
    # The peer does not get to fill the log either.
    assert len(str(caught.value)) < 300


def test_one_block_named_a_thousand_times() -> None:
    block = b"B" + struct.pack("<I", 1 << 22) + bytes(1 << 22)
    one = ARRAY + b"h\x00X\x02\0\0\0u1J" + struct.pack("<i", 1 << 22) + b"\x85\x87R"
    raw = bytearray(b"\x80\x03" + block + b"q\x000(" + one * 1000 + b"t.")
    with pytest.raises(FormatError, match="unfolds"):
        decode(raw)


def test_a_million_items() -> None:
    with pytest.raises(FormatError, match="more than"):
        decode(b"\x80\x04" + b"N0" * 600_000 + b"N.")


def test_shared_containers_are_not_unfolded() -> None:
    # "Billion laughs": 30 levels of (x, x).
    raw = b"\x80\x04N" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(30)) + b"."
    value = decode(raw)
    for _ in range(30):
        assert value[0] is value[1]
        value = value[0]


def test_the_ancestors_array_without_returnn() -> None:
    assert "returnn" not in sys.modules
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = (
        b"\x80\x03X\x02\0\0\0okG" + struct.pack(">d", 2.5) + ARRAY + b"C" + bytes([array.nbytes])
        + array.tobytes() + b"X\x07\0\0\0float32K\x02K\x03\x86\x87R\x87."
    )  # fmt: skip
    assert same(("ok", 2.5, array), decode(raw))
    assert "returnn" not in sys.modules


@pytest.mark.parametrize("path", sorted(SIDE.glob("*.py")), ids=lambda path: path.name)
def test_syntax_of_python_3_8_and_numpy_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    allowed = sys.stdlib_module_names | {"numpy"}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_importing_the_wire_starts_nothing_heavy() -> None:
    code = (
        "import sys; import jax_sprint.sprint_side.jax_sprint_control.wire; "
        "sys.exit('jax' in sys.modules or 'pickle' in sys.modules and 'numpy' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
