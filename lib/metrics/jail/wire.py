"""Converts plain Python values to JSON and back, and sends them over pipes: data crosses the wall, never code.

Decoding makes built-in values only, so a returned object can't bring its own `__eq__` to a test.
"""

import json
import math
import os
import struct
from collections import abc

LIMIT = 1 << 26  # bytes of one message
_EXACT = 1 << 53


class Opaque:
    """Stands for a value that is not plain; equal to nothing but itself, as most objects are."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self):
        return f"<{self.kind} object>"


def encode(value):
    """JSON-able form of a value: scalars as they are, everything else as [tag, content]."""
    if value is None or isinstance(value, bool | str):
        return value if not isinstance(value, str) else str.__str__(value)
    if isinstance(value, int):
        return int(value) if abs(value) < _EXACT else ["int", hex(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else ["float", repr(float(value))]
    if isinstance(value, complex):
        return ["complex", [encode(value.real), encode(value.imag)]]
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(content)] for key, content in dict.items(value)]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(each) for each in value]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, abc.Iterator):
        return ["iterator", [encode(each) for each in value]]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encode(value.item())
    return ["object", type(value).__name__]


_DECODERS = {
    "int": lambda content: int(content, 16),
    "float": float,
    "complex": lambda content: complex(*map(decode, content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "dict": lambda content: {decode(key): decode(value) for key, value in content},
    "list": lambda content: [decode(each) for each in content],
    "tuple": lambda content: tuple(decode(each) for each in content),
    "set": lambda content: {decode(each) for each in content},
    "frozenset": lambda content: frozenset(decode(each) for each in content),
    "range": lambda content: range(*content),
    "iterator": lambda content: iter([decode(each) for each in content]),
    "object": Opaque,
}


def decode(form):
    """The value of an encoded form; raises ValueError, TypeError or KeyError for a form that `encode` never makes."""
    if not isinstance(form, list):
        return form
    tag, content = form
    return _DECODERS[tag](content)


def send(handle: int, message):
    """Write one message: its length in 8 bytes, then JSON."""
    content = json.dumps(message).encode()
    data = memoryview(struct.pack("=Q", len(content)) + content)
    while data:
        data = data[os.write(handle, data) :]


def receive(handle: int):
    """The next message; raises EOFError where the other side is gone, ValueError for a message over `LIMIT`."""
    (length,) = struct.unpack("=Q", _exactly(handle, 8))
    if length > LIMIT:
        raise ValueError(f"a message of {length} bytes; at most {LIMIT} are allowed; return less.")
    return json.loads(_exactly(handle, length))


def _exactly(handle: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(handle, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
