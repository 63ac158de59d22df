"""Peak bytes of torch's CPU allocator, from the profiler's allocation events."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object]) -> int:
    """Run ``function``, and give the largest sum of bytes allocated and not yet freed since its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    result = recorded.profiler.kineto_results
    held = peak = 0
    for event in sorted(_allocations(result.experimental_event_tree()), key=lambda event: event.start_time_ns):
        held += event.extra_fields.alloc_size
        peak = max(peak, held)
    return peak


def _allocations(events: list) -> list:
    found, waiting = [], list(events)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":
            found.append(event)
    return found
