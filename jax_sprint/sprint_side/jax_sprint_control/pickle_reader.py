"""Reading the permitted subset of pickle: see `pickles.py`."""

import struct

import numpy as np

from .pickle_names import GLOBALS, MAX_DEPTH, ArrayState, DTypeState, FormatError, GlobalName, short

MAX_OPCODES = 1000000
_KEEP_AS_VIEW = 4096


class _Reader:
    """The stack machine.  One instance reads one pickle."""

    def __init__(self, data):
        self.data = memoryview(data).cast("B")
        self.pos = 0
        self.stack = []
        self.marks = []
        self.memo = {}
        # What may be copied in all.  Without it, naming one block of data a thousand times would
        # fill the memory from a small message.
        self.budget = 4 * len(self.data) + (1 << 20)

    def spend(self, size):
        self.budget -= size
        if self.budget < 0:
            raise FormatError("the message unfolds to far more than its own size")

    def take(self, size):
        start = self.pos
        if size > len(self.data) - start:
            raise FormatError(
                "an item claims %d bytes, but only %d are left" % (size, len(self.data) - start)
            )
        self.pos = start + size
        return self.data[start : self.pos]

    def number(self, code, size):
        return struct.unpack(code, self.take(size))[0]

    def line(self):
        for end in range(self.pos, min(self.pos + 256, len(self.data))):
            if self.data[end] == 10:
                return str(self.take(end + 1 - self.pos)[:-1], "utf-8")
        raise FormatError("a name is longer than 256 bytes or not terminated")

    def pop(self):
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise FormatError("the stack is empty")
        return self.stack.pop()

    def top(self):
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise FormatError("the stack is empty")
        return self.stack[-1]

    def pop_mark(self):
        if not self.marks:
            raise FormatError("no mark on the stack")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def text(self, size):
        return str(self.take(size), "utf-8", "surrogatepass")

    def blob(self, size):
        view = self.take(size)
        return view if size >= _KEEP_AS_VIEW else bytes(view)

    def long(self, size):
        if size > 33:
            raise FormatError("an integer of %d bytes is not permitted" % size)
        return int.from_bytes(self.take(size), "little", signed=True)

    def find(self, module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise FormatError("a name that is not a string")
        known = GLOBALS.get(module + "." + name)
        if known is None:
            raise FormatError(
                "the name %s is not permitted in a message; only arrays, numbers and strings are"
                % short(module + "." + name)
            )
        return known

    def reduce(self, function, args):
        if not isinstance(function, GlobalName) or function.make is None:
            raise FormatError("%s cannot be called" % short(function))
        if type(args) is not tuple:
            raise FormatError("arguments that are no tuple")
        try:
            made = function.make(*args)
        except TypeError:
            raise FormatError(
                "%s does not take %d arguments" % (function.name, len(args))
            ) from None
        if isinstance(made, (np.ndarray, bytes)):
            self.spend(made.nbytes if isinstance(made, np.ndarray) else len(made))
        return made

    def set_items(self, target, items):
        if type(target) is not dict or len(items) % 2:
            raise FormatError("items for something that is no dict")
        for index in range(0, len(items), 2):
            key, value = items[index : index + 2]
            if type(key) not in (str, bytes, int, float, bool, type(None)):
                raise FormatError("a dict key of type %s is not permitted" % type(key).__name__)
            target[key] = value

    def extend(self, target, items):
        if type(target) is not list:
            raise FormatError("items for something that is no list")
        target.extend(items)

    def build(self, state):
        target = self.top()
        if not isinstance(target, (DTypeState, ArrayState)):
            raise FormatError("no state can be set on %s" % short(target))
        target.build(state)
        if isinstance(target, ArrayState) and target.array is not None:
            self.spend(target.array.nbytes)

    def recall(self, index):
        if index not in self.memo:
            raise FormatError("memo entry %d does not exist" % index)
        return self.memo[index]

    def put_memo(self, index):
        self.memo[index] = self.top()

    def run(self):
        push = self.stack.append
        for _ in range(MAX_OPCODES):
            op = self.take(1)[0]
            if op == 0x2E:  # STOP
                result = self.pop()
                if self.stack or self.pos != len(self.data):
                    raise FormatError("something is left over behind the message")
                return _finish(result, {}, 0)
            action = _OPCODES.get(op)
            if action is None:
                raise FormatError("pickle opcode 0x%02x is not permitted" % op)
            kind, act = action
            if kind == "push":
                push(act(self))
            else:
                act(self)
        raise FormatError("more than %d items in one message" % MAX_OPCODES)


def _skip_frame(r):
    if r.number("<Q", 8) > len(r.data) - r.pos:
        raise FormatError("a pickle frame claims more bytes than there are")


def _protocol(r):
    version = r.take(1)[0]
    if version not in (2, 3, 4, 5):
        raise FormatError("pickle protocol %d is not permitted" % version)


def _mark(r):
    r.marks.append(len(r.stack))


def _tuple_of(count):
    def act(r):
        items = [r.pop() for _ in range(count)]
        return tuple(reversed(items))

    return act


def _reduce(r):
    args = r.pop()
    return r.reduce(r.pop(), args)


def _stack_global(r):
    name = r.pop()
    return r.find(r.pop(), name)


def _append(r):
    item = r.pop()
    r.extend(r.top(), [item])


def _set_item(r):
    value = r.pop()
    key = r.pop()
    r.set_items(r.top(), [key, value])


def _appends(r):
    items = r.pop_mark()
    r.extend(r.top(), items)


def _set_items(r):
    items = r.pop_mark()
    r.set_items(r.top(), items)


_OPCODES = {
    0x80: ("act", _protocol),
    0x95: ("act", _skip_frame),
    0x28: ("act", _mark),
    0x30: ("act", _Reader.pop),
    0x31: ("act", _Reader.pop_mark),
    0x4E: ("push", lambda r: None),
    0x88: ("push", lambda r: True),
    0x89: ("push", lambda r: False),
    0x4A: ("push", lambda r: r.number("<i", 4)),
    0x4B: ("push", lambda r: r.take(1)[0]),
    0x4D: ("push", lambda r: r.number("<H", 2)),
    0x8A: ("push", lambda r: r.long(r.take(1)[0])),
    0x8B: ("push", lambda r: r.long(r.number("<I", 4))),
    0x47: ("push", lambda r: r.number(">d", 8)),
    0x58: ("push", lambda r: r.text(r.number("<I", 4))),
    0x8C: ("push", lambda r: r.text(r.take(1)[0])),
    0x8D: ("push", lambda r: r.text(r.number("<Q", 8))),
    0x42: ("push", lambda r: r.blob(r.number("<I", 4))),
    0x43: ("push", lambda r: r.blob(r.take(1)[0])),
    0x8E: ("push", lambda r: r.blob(r.number("<Q", 8))),
    0x96: ("push", lambda r: r.blob(r.number("<Q", 8))),
    0x29: ("push", lambda r: ()),
    0x85: ("push", _tuple_of(1)),
    0x86: ("push", _tuple_of(2)),
    0x87: ("push", _tuple_of(3)),
    0x74: ("push", lambda r: tuple(r.pop_mark())),
    0x5D: ("push", lambda r: []),
    0x6C: ("push", lambda r: r.pop_mark()),
    0x61: ("act", _append),
    0x65: ("act", _appends),
    0x7D: ("push", lambda r: {}),
    0x73: ("act", _set_item),
    0x75: ("act", _set_items),
    0x63: ("push", lambda r: r.find(r.line(), r.line())),
    0x93: ("push", _stack_global),
    0x52: ("push", _reduce),
    0x62: ("act", lambda r: r.build(r.pop())),
    0x68: ("push", lambda r: r.recall(r.take(1)[0])),
    0x6A: ("push", lambda r: r.recall(r.number("<I", 4))),
    0x71: ("act", lambda r: r.put_memo(r.take(1)[0])),
    0x72: ("act", lambda r: r.put_memo(r.number("<I", 4))),
    0x94: ("act", lambda r: r.put_memo(len(r.memo))),
}


def _finish(value, done, depth):
    """Replaces what is under construction by what it became, and refuses everything internal.

    `done` remembers containers by identity (and keeps them alive): what is shared is visited once,
    so a small pickle cannot unfold into a huge object; what contains itself is refused.
    """
    if isinstance(value, ArrayState):
        if value.array is None:
            raise FormatError("an array without its data")
        return value.array
    if isinstance(value, memoryview):
        return bytes(value)
    if type(value) in (tuple, list, dict):
        if depth > MAX_DEPTH:
            raise FormatError("nested deeper than %d levels" % MAX_DEPTH)
        if id(value) in done:
            finished = done[id(value)][1]
            if finished is done:
                raise FormatError("something that contains itself")
            return finished
        done[id(value)] = (value, done)
        if type(value) is dict:
            result = {key: _finish(item, done, depth + 1) for key, item in value.items()}
        else:
            result = type(value)([_finish(item, done, depth + 1) for item in value])
        done[id(value)] = (value, result)
        return result
    if isinstance(value, (GlobalName, DTypeState)):
        raise FormatError("a bare %s is not permitted" % short(value))
    return value


def decode(data):
    """Reads one pickle of the permitted subset (protocols 2 to 5).

    Args:
        data: a bytes-like object that holds the pickle and nothing else.  If it is writable, large
            arrays in the result are views of it, where their alignment permits.

    Returns:
        Tuples, lists, dicts, str, bytes, numbers, bool, None, numpy scalars and numpy arrays
        (writable; of numbers or fixed-width strings).

    Raises:
        FormatError: the data are malformed, truncated, or hold anything else.
    """
    try:
        return _Reader(data).run()
    except FormatError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, struct.error) as error:
        raise FormatError("malformed message: %s" % error) from error
