"""Configuration into networks."""
