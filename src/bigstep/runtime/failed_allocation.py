"""Which errors are failed allocations, known by their texts: nothing here imports torch."""

__all__ = ["failed_allocation_line", "is_failed_allocation"]

TEXTS = (
    "can't allocate memory",
    "could not create a primitive",
    "std::bad_alloc",
    "not enough memory",
    "out of memory. Tried to allocate",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "backend out of memory",
)


def is_failed_allocation(error: BaseException) -> bool:
    """Return whether an error is a failed allocation: of the CPU's allocator, a GPU's, oneDNN's or Python's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS))


def failed_allocation_line(error: BaseException) -> str | None:
    """Return what to print for a failed allocation that nothing has caught; None for another error."""
    if not is_failed_allocation(error):
        return None
    problem = (str(error).splitlines() or [type(error).__name__])[0]
    return f"memory: expected model and data to fit, got: {problem}; use a smaller model or batch, or close other programs"
