"""The training loop: it yields frozen records, and knows no file, no MLflow and no Optuna."""
