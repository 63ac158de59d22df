"""The stages of dvc.yaml: values in, files and history out."""
