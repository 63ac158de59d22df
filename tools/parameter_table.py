"""The table of parameters in the README, from the schema."""

from bigstep.config.params import SECTIONS
from bigstep.config.section import rule_of
from bigstep.config.yaml_files import example_of
from dvc_dependencies import ROOT

BEGIN, END = "<!-- parameters: written by `make documentation` from the schema -->\n", "<!-- end of parameters -->\n"


def parameter_table() -> str:
    """Return the table in Markdown, a row for each key of params.yaml."""
    rows = ["| key | default | must be | what it does |", "| --- | --- | --- | --- |"]
    for section in SECTIONS:
        follows = "DVC follows it" if section.learning else "DVC does not follow it"
        rows.append(
            f"| **{section.title}** | | | {str(section.__doc__).splitlines()[0].partition(' (')[0].rstrip('.')}; {follows} |"
        )
        for key, field in section.model_fields.items():
            text = str(field.description).replace("|", "\\|")
            rows.append(f"| `{section.title}.{key}` | `{example_of(field.default)}` | {rule_of(field)} | {text} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """Return ``text`` with the table put between its two marks."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + parameter_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
