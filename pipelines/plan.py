"""The plan of the slicing, for MLproject: `bigstep plan` with this checkout's code; options as in `bigstep plan --help`."""

import sys

from checkout import own_source

with own_source():
    from bigstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["plan", *sys.argv[1:]]))
