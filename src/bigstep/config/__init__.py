"""params.yaml as frozen, typed, validated objects: one module a section, so that each stage depends on its own only."""
