"""Several trained models as one: which to take, how to weigh them, and what that gains."""
