"""Stage prepare of dvc.yaml."""

from checkout import own_source

with own_source() as started:
    from bigstep.stages.prepare import main

if __name__ == "__main__":
    raise SystemExit(main(started))
