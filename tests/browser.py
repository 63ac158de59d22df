"""Pages as a person sees them: headless Chromium, its screenshots and what the page says."""

import shutil
import subprocess
from pathlib import Path

import pytest

HOW = "Chromium must be there for this test: apt-get install chromium"


def look(address: str, screenshot: Path, seconds: float | None = 15, size: str = "1500,1300", *, dark: bool = False) -> str:
    """Open a page, write a screenshot, and return its elements: after ``seconds`` of its clock, or at its load event."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(HOW)
    clock = [] if seconds is None else [f"--virtual-time-budget={int(1000 * seconds)}"]
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}",
        *clock, f"--user-data-dir={screenshot.parent / 'profile'}",
        f"--screenshot={screenshot}", "--dump-dom", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    output = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout
    assert screenshot.stat().st_size > 20_000
    return output
