"""Pages as a person sees them: headless Chromium, its screenshots and what the page says."""

import shutil
import subprocess
from pathlib import Path

import pytest

HOW = "Chromium must be there for this test: apt-get install chromium"


def look(address: str, screenshot: Path, seconds: float = 15, size: str = "1500,1300", *, dark: bool = False) -> str:
    """Open a page, write a screenshot, and give the page's elements as text once it is drawn."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(HOW)
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}",
        f"--virtual-time-budget={int(1000 * seconds)}", f"--user-data-dir={screenshot.parent / 'profile'}",
        f"--screenshot={screenshot}", "--dump-dom", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    output = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout
    assert screenshot.stat().st_size > 20_000
    return output
