"""Hypothesis strategies."""

from hypothesis import strategies as st

sizes = st.integers(1, 97)
