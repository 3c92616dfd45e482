"""Check the memo numbers of a pickle, by which it refers to objects, before unpickling it."""

from __future__ import annotations

import pickletools

from dens.safe.errors import BadRecord

# bytes after each opcode; -1 if they have to be looked at, None if there is no such opcode
_SIZES: list[int | None] = [None] * 256
_LENGTHS: dict[int, int] = {}  # bytes of the length in front of operands of any length
for _opcode in pickletools.opcodes:
    _size = 0 if _opcode.arg is None else _opcode.arg.n
    _SIZES[ord(_opcode.code)] = -1 if _opcode.name == "LONG_BINPUT" else max(_size, -1)
    if _size < -1:
        _LENGTHS[ord(_opcode.code)] = {-2: 1, -3: 4, -4: 4, -5: 8}[_size]
_PUT, _LONG_PUT, _GLOBAL, _INST, _STOP = b"prci."


def check_memo(payload: bytes) -> None:
    """Refuse a pickle with a memo number beyond its own length.

    The C unpickler allocates room for all smaller numbers, so that one changed bit takes 70 GB.

    Raises:
        BadRecord: there is such a number.
    """
    at, code = 0, None
    while code != _STOP:
        code = payload[at]
        at += 1
        size = _SIZES[code]
        if size is None:
            return  # the unpickler reports it
        at += size if size >= 0 else _operand_size(code, payload, at)


def _operand_size(code: int, payload: bytes, at: int) -> int:
    if code in _LENGTHS:
        prefix = _LENGTHS[code]
        return prefix + int.from_bytes(payload[at : at + prefix], "little")
    if code == _LONG_PUT:
        number, size = int.from_bytes(payload[at : at + 4], "little"), 4
    else:
        end = payload.index(b"\n", at) + 1
        if code in (_GLOBAL, _INST):  # two lines
            end = payload.index(b"\n", end) + 1
        number, size = int(payload[at:end]) if code == _PUT else 0, end - at
    if number > len(payload):
        raise BadRecord(f"not a pickled record: it numbers an object {number}")
    return size
