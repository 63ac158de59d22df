"""Stage evaluate of dvc.yaml."""

from installed import importing

with importing() as started:
    from bigstep.tracking.delivery_process import start_delivery

    delivery = start_delivery(expects_model=False)  # it imports MLflow meanwhile
    from bigstep.stages.evaluate import main
    from bigstep.stages.quick_exit import exit_process

if __name__ == "__main__":
    exit_process(main(started, delivery))
