"""Stage prepare of dvc.yaml."""

from installed import importing

with importing() as started:
    from bigstep.stages.prepare import main
    from bigstep.stages.quick_exit import exit_process

if __name__ == "__main__":
    exit_process(main(started))
