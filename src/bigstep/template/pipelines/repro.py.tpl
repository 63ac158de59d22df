"""The pipeline, for MLproject: `bigstep repro`; options as in `bigstep repro --help`."""

import sys

from installed import importing

with importing():
    from bigstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["repro", *sys.argv[1:]]))
