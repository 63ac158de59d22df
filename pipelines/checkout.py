"""Run the code of this checkout: the `src` beside this folder, whatever else the environment holds.

MLflow keeps environments and reuses them, so one made for another checkout may have that one's `bigstep` installed.
"""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["own_source"]

SOURCE = Path(__file__).resolve().parents[1] / "src"


@contextmanager
def own_source() -> Iterator[float]:
    """Import `bigstep` from this checkout within the block; exit with code 2 and one line where that cannot be.

    The garbage collector rests within the block, and never looks at what was imported: it would search millions of objects
    that stay, again and again.

    Yields:
        The time, as of ``time.time()``, before the first import.
    """
    started = time.time()
    sys.path.insert(0, str(SOURCE))
    gc.disable()
    try:
        import bigstep

        yield started
    except ModuleNotFoundError as error:
        _refuse(
            f"{sys.executable}: expected all requirements, got no module {error.name!r}; "
            "run `make install` and `. .venv/bin/activate`, or pip install -r requirements.txt"
        )
    finally:
        gc.freeze()
        gc.enable()
    if Path(bigstep.__file__).resolve().parents[1] != SOURCE:
        _refuse(f"bigstep: expected the code of {SOURCE}, got {bigstep.__file__}; use another environment")


def _refuse(line: str) -> None:
    print(f"bigstep: {line}", file=sys.stderr)
    raise SystemExit(2)
