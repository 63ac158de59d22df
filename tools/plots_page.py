"""Write the page of `dvc plots` with Vega in it, so that plots show without network; `make plots-page`, which needs npm.

DVC's own page loads Vega from another server. Ours has the versions that the installed dvc-render names, and their licences.
Beside it lies the template of curves over epochs, since DVC's own has ticks between whole numbers.
"""

import copy
import json
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvc_render.vega import VegaRenderer
from dvc_render.vega_templates import LinearTemplate, Template

from dvc_dependencies import ROOT, TEMPLATE

PAGE = TEMPLATE / "dot-dvc" / "plots.html"
EPOCHS = [folder / "plots" / "epochs.json" for folder in (TEMPLATE / "dot-dvc", ROOT / ".dvc")]
BUNDLED = re.compile(
    r"vega.*|d3-.*|topojson-client|delaunator|internmap|clone|fast-deep-equal|fast-json-.*|json-stringify-.*|semver|tslib"
)
HTML = """<!doctype html>
<html lang="en">
<!-- Written by `make plots-page`: the page of `dvc plots`, with
{versions}
and what they bundle, under these licences:

{licences}
-->
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
{{refresh_tag}}
<title>Plots</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1em auto; max-width: 1200px; padding: 0 1em }}
img {{ max-width: 100% }}
div[style*=nowrap] > div {{ box-sizing: border-box; vertical-align: top }}
div[style*=nowrap] > div:not(:only-of-type) {{ max-width: calc(50% - 12px) }}
</style>
{scripts}
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def named_versions() -> list[str]:
    """Return the packages that the installed DVC loads in its own page, such as ``vega@5.20.2``."""
    return re.findall(r"npm/([\w-]+@[\d.]+)", VegaRenderer.SCRIPTS)


def epochs_template() -> str:
    """Return DVC's template of curves with whole numbers on the axis of epochs, as JSON."""
    content = copy.deepcopy(LinearTemplate.DEFAULT_CONTENT)
    for axis in _axes(content, Template.anchor("x")):
        axis["axis"], axis["scale"] = {"tickMinStep": 1, "format": "d"}, {"zero": False, "nice": False}
    return json.dumps(content, indent=1) + "\n"


def _axes(part: Any, field: str) -> Iterator[dict[str, Any]]:
    """Yield the encodings of ``field`` that have a title."""
    if isinstance(part, list | dict):
        if isinstance(part, dict) and part.get("field") == field and "title" in part:
            yield part
        for item in part.values() if isinstance(part, dict) else part:
            yield from _axes(item, field)


def _read_licences(packages: Path) -> str:
    """Return each text once, below the copyrights of the packages that have it."""
    owners: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(packages.iterdir()):
        licence = next(folder.glob("[Ll][Ii][Cc][Ee][Nn]*"), None)
        if licence is None or not BUNDLED.fullmatch(folder.name):
            continue
        lines = [line.strip() for line in licence.read_text(encoding="utf-8").splitlines()]
        rights = [line for line in lines if re.match(r"(\(c\) |Copyright )", line)]
        rest = "\n".join(line for line in lines if line not in rights).strip()
        text = " ".join(rest.removeprefix("All rights reserved.").split())
        owners[text].append(f"{folder.name}: {'; '.join(rights)}")
    return "\n\n".join("\n".join([*names, text]) for text, names in owners.items())


def main() -> None:
    """Write the template; download the packages, and write the page."""
    for path in EPOCHS:
        path.parent.mkdir(exist_ok=True)
        path.write_text(epochs_template(), encoding="utf-8")
    versions = named_versions()
    with tempfile.TemporaryDirectory() as scratch:
        install = ["npm", "install", "--prefix", scratch, "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps"]
        subprocess.run([*install, "--silent", *versions], check=True, cwd=scratch)
        packages = Path(scratch) / "node_modules"
        names = [version.split("@")[0] for version in versions]
        sources = [(packages / name / "build" / f"{name}.min.js").read_text(encoding="utf-8") for name in names]
        licences = _read_licences(packages)
    scripts = "\n".join(f"<script>{re.sub(r'//# source.*', '', source).strip()}</script>" for source in sources)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HTML.format(versions=", ".join(versions), licences=licences, scripts=scripts), encoding="utf-8")


if __name__ == "__main__":
    main()
