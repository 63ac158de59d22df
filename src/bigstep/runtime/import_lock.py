"""A lock for imports that take seconds and may happen on two threads at once.

Python lets a thread have a half imported module rather than wait for one that waits for it: MLflow (with pandas) on the thread
of a run's delivery and matplotlib on the main thread must not meet.
"""

import threading

__all__ = ["import_lock"]

import_lock = threading.RLock()
