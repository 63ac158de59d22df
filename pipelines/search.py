"""The search, for MLproject: `bigstep search` with this checkout's code; options as in `bigstep search --help`."""

import sys

from checkout import own_source

with own_source():
    from bigstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["search", *sys.argv[1:]]))
