"""Where a run's history goes: nowhere, into memory, or to MLflow."""
