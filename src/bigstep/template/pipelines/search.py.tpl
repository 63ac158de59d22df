"""The search, for MLproject: `bigstep search`; options as in `bigstep search --help`."""

import sys

from installed import importing

with importing():
    from bigstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["search", *sys.argv[1:]]))
