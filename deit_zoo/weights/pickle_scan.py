"""What a pickle would make, known from its opcodes before anything of it is made.

A few bytes can spell a tuple of a billion items, for a thing that is named twice is stored once, or
call for a container of all the numbers of a view of one. So everything is counted as if nothing
were shared, and functions get only what the pickle itself spells out.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO

from deit_zoo.errors import CheckpointError

# Values and letters that each byte of a pickle may stand for; real ones stay under ten.
_SPELLED_PER_BYTE, _SPELLED_AT_LEAST = 64, 1 << 20
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"  # calls what it is given
_TENSORS = frozenset(
    (
        "torch.nn.parameter.Parameter",
        *(
            f"torch._utils._rebuild_{kind}"
            for kind in (
                *("tensor", "tensor_v2", "tensor_v3", "meta_tensor_no_storage"),
                *("parameter", "parameter_with_state"),
            )
        ),
    )
)
# They go through all of what they are given, which a tensor would be without end.
_PLAIN = frozenset(
    (
        *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex"),
        *("torch.Size", "torch.device", "torch.serialization._get_layout", "_codecs.encode"),
    )
)
# How many values an opcode takes from the stack; three take all since the last mark.
_TAKEN = dict(
    TUPLE1=1, TUPLE2=2, TUPLE3=3, REDUCE=2, NEWOBJ=2, BINPERSID=1, APPEND=1, SETITEM=2, BUILD=1
)
_TAKEN_TO_MARK = ("TUPLE", "APPENDS", "SETITEMS")


@dataclass(slots=True)
class _Value:
    """Something on the stack: what it spells in all, and what is known of it."""

    size: int = 1
    text: str = ""  # a text's own, or the name of what was asked for
    items: Sequence[_Value] | None = None  # of a tuple
    is_made: bool = False  # by a function, or a number beyond 64 bits


def scan_pickle(stream: IO[bytes], where: str, allowed: Collection[str]) -> set[str]:
    """Read the opcodes of one pickle, as torch's unpickler would. It may call what is `allowed`.

    Returns the names of the classes and functions that it mentions, without those of which tensors
    are made.

    Raises CheckpointError where what it makes does not follow from its size, UnpicklingError where
    it calls anything else, and other errors for what is no whole pickle.
    """
    stack: list[_Value] = []
    marks: list[list[_Value]] = []
    memo: dict[object, _Value] = {}
    named: set[str] = set()
    start, spelled = stream.tell(), 0
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _TAKEN_TO_MARK:
            items, stack = stack, marks.pop()
        elif name in _TAKEN:
            items = [stack.pop() for _ in range(_TAKEN[name])][::-1]
        else:
            if name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name not in ("PROTO", "STOP"):
                stack.append(_literal(name, argument))
                if name == "GLOBAL":
                    named.add(stack[-1].text)
            continue
        size = sum(item.size for item in items)
        spelled += size
        if spelled > _SPELLED_AT_LEAST + _SPELLED_PER_BYTE * (stream.tell() - start):
            raise CheckpointError(
                f"{where} names the same things again and again, so that far more would be made "
                "of it than it holds; give a safetensors file"
            )
        if name in ("REDUCE", "NEWOBJ"):
            _check_call(items[0], items[1], where, allowed)
            if items[0].text == _FROM_TYPE and items[1].items:
                named.discard(items[1].items[1].text)
        if name == "BUILD" and items[0].is_made:
            raise _unbounded("a state that a function makes", where)
        if name.startswith("SETITEM") and any(
            key.is_made or key.items is not None for key in items[::2]
        ):  # of which many can have one hash, or each be nested without end
            raise _unbounded("a key that is neither text nor a plain number", where)
        if name.startswith("TUPLE"):
            stack.append(_Value(size + 1, items=items))
        elif name in ("REDUCE", "NEWOBJ", "BINPERSID"):
            stack.append(_Value(size + 1, is_made=True))
        else:
            stack[-1].size += size
    return named


def _literal(name: str, argument: object) -> _Value:
    text = argument if isinstance(argument, str) else ""
    if isinstance(argument, int) and argument.bit_length() > 64:
        return _Value(is_made=True)
    if name == "GLOBAL":
        module, _, qualname = text.partition(" ")
        if (module, qualname) in NAME_MAPPING:
            module, qualname = NAME_MAPPING[module, qualname]
        return _Value(text=f"{IMPORT_MAPPING.get(module, module)}.{qualname}")
    return _Value(1 + len(text), text, items=() if name == "EMPTY_TUPLE" else None)


def _check_call(function: _Value, arguments: _Value, where: str, allowed: Collection[str]) -> None:
    name, items = function.text, arguments.items
    if function.is_made or items is None:
        raise _unbounded("a call of what a function makes", where)
    if name == _FROM_TYPE:
        _check_call(items[0], items[2], where, _TENSORS)
    elif name in _PLAIN:
        if any(item.is_made for item in items) or (
            name == "_codecs.encode" and items[1].text not in ("latin1", "latin-1")
        ):
            raise _unbounded(f"a call of {name} with such arguments", where)
    elif name not in allowed and name not in _TENSORS:
        is_layer = name.startswith("torch.nn.")  # code, as that of any other package
        if (name.startswith("torch.") and not is_layer) or name == "builtins.bytearray":
            raise _unbounded(f"a call of {name}", where)
        raise UnpicklingError(f"GLOBAL {name.removeprefix('builtins.')} is called")


def _unbounded(what: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"{where} holds {what}, which could take any amount of memory, so it was not read; give a "
        "safetensors file of plain tensors"
    )
