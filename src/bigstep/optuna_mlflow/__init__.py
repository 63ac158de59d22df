"""MLflow runs for the trials of any Optuna study."""
