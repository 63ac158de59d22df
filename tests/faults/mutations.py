"""Bytes of real files, damaged at random: each must be read, or be refused by one of our errors in one line."""

import contextlib
import copy
import json
import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigstep.errors import UserError

MUTATIONS = int(os.environ.get("BIGSTEP_MUTATIONS", "120"))
Damage = Callable[[bytes, random.Random], bytes]
VALUES: list[Any] = [
    *[None, True, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.0, -0.5, 1e308, 1e-320, math.nan, math.inf],
    *["", "x", "a\nb", "\x00", "\ud800", "x" * 10_000, "../../x", "1", [], [[]], [None], [1, 2, 3], {}, {"": {}}, {"x": 1}],
]


def mutated(content: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 8])):
        start = dice.randrange(len(damaged))
        kind = dice.randrange(3)
        damaged[start : start + kind * dice.randrange(1, 9)] = dice.randbytes(dice.randrange(0, 5))
        damaged = damaged if damaged else bytearray(b"x")
    return bytes(damaged)


def read_damaged(path: Path, read: Callable[[], object], damage: Damage = mutated) -> Counter[str]:
    """Damage the file many times, each time from its real content, and count what was read and what was refused."""
    content, dice, found = path.read_bytes(), random.Random(0), Counter[str]()
    for _ in range(MUTATIONS):
        path.write_bytes(damage(content, dice))
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                read()
            found["read"] += 1
        except UserError as error:
            found["refused" if len(str(error).splitlines()) == 1 else f"more than one line: {error}"] += 1
        found.update(f"warned: {item.message}" for item in warned)
    path.write_bytes(content)
    print(path.name, dict(found))
    assert not found.keys() - {"read", "refused"}
    return found


def mutated_json(content: bytes, dice: random.Random) -> bytes:
    """Change one to three values of a JSON record, at any depth, so that it is JSON still."""
    record = json.loads(content)
    for _ in range(dice.randrange(1, 4)):
        holder = dice.choice(list(_holders(record)))
        key = dice.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        change = dice.randrange(4)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[dice.choice(["", "x", f"{key} ", "\n\x00\ud800"])] = copy.deepcopy(dice.choice(VALUES))
        elif change == 2 and isinstance(holder[key], int | float):
            with contextlib.suppress(OverflowError):  # of an integer that no float can hold
                holder[key] = dice.choice([-1, 2, 0.5]) * holder[key] + dice.choice([0, 1, 0.5])
        else:
            holder[key] = copy.deepcopy(dice.choice(VALUES))
    return json.dumps(record).encode()


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _holders(item)
