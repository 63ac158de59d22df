"""Stage evaluate of dvc.yaml."""

from installed import importing

with importing() as started:
    from bigstep.tracking.delivery_process import DeliveryProcess

    delivery = DeliveryProcess(expects_model=False)  # it imports MLflow meanwhile
    from bigstep.stages.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main(started, delivery))
