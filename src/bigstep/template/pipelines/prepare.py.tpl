"""Stage prepare of dvc.yaml."""

from installed import importing

with importing() as started:
    from bigstep.stages.prepare import main

if __name__ == "__main__":
    raise SystemExit(main(started))
