"""The project's own files that a script imports, for dvc.yaml; and the files that `bigstep init` takes from this project."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from bigstep.runs import import_closure as closures
from bigstep.runs.import_closure import imported_names

__all__ = ["ROOT", "TEMPLATE", "files_of", "import_closure", "imported_names", "template_pipeline", "write_dependencies"]

ROOT = Path(__file__).resolve().parents[1]
HOMES = (ROOT / "src", ROOT / "pipelines")
TEMPLATE = ROOT / "src" / "bigstep" / "template"


def import_closure(script: Path) -> set[str]:
    """Return the files below the project that ``script`` imports, itself included, as paths from the root."""
    return {path.relative_to(ROOT).as_posix() for path in closures.import_closure(script, HOMES)}


def files_of(name: str) -> Iterator[Path]:
    """Yield the project's files that importing a module runs."""
    return closures.files_of(name, HOMES)


def template_pipeline() -> str:
    """Return the dvc.yaml of a project that `bigstep init` makes: lists of installed code instead of files of src."""
    lines = []
    for line in (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("    cmd: "):
            stage = line.split("/")[1].removesuffix(".py")
        if line.strip() == "- pipelines/checkout.py":
            lines += [f"    - pipelines/code/{stage}.txt", "    - pipelines/installed.py"]
        elif not line.strip().startswith(("- src/", "# The pipeline.", "# learning sections")):
            lines.append(line)
    return "\n".join([*HEAD, *lines, ""])


HEAD = (
    "# The pipeline. Each stage lists your code, the code of bigstep that it runs (pipelines/code), and the sections of",
    "# params.yaml that it reads; `hardware` and `tracking` decide no result, so DVC does not follow them.",
)


def write_dependencies() -> None:
    """Write the closure of every stage's script into dvc.yaml, comments and other dependencies kept; then the template's."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    path = ROOT / "dvc.yaml"
    content = yaml.load(path)
    for stage in content["stages"].values():
        code = sorted(import_closure(ROOT / stage["cmd"].split()[1]))
        others = [item for item in stage["deps"] if not str(item).endswith(".py")]
        stage["deps"] = others + code
    yaml.dump(content, path)
    (TEMPLATE / "dvc.yaml.tpl").write_text(template_pipeline(), encoding="utf-8")
    shutil.copyfile(ROOT / "params.yaml", TEMPLATE / "params.yaml")


if __name__ == "__main__":
    write_dependencies()
