"""The pipeline, for MLproject: `bigstep repro` with the code of this checkout; options as in `bigstep repro --help`."""

import sys

from checkout import own_source

with own_source():
    from bigstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["repro", *sys.argv[1:]]))
