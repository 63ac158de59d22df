"""Stage train of dvc.yaml."""

from checkout import own_source

with own_source() as started:
    from bigstep.tracking.delivery_process import start_delivery

    delivery = start_delivery(expects_model=True)  # it imports MLflow meanwhile
    from bigstep.stages.quick_exit import exit_process
    from bigstep.stages.train import main

if __name__ == "__main__":
    exit_process(main(started, delivery))
