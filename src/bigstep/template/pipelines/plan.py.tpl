"""The plan of the slicing, for MLproject: `bigstep plan`; options as in `bigstep plan --help`."""

import sys

from installed import importing

with importing():
    from bigstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["plan", *sys.argv[1:]]))
