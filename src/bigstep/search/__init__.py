"""The search: what to try next, and what is known of what was tried."""
