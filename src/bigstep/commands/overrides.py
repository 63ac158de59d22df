"""What the command line overrides in params.yaml: a preset, --set and its short forms."""

import argparse
import logging
import shlex
from collections.abc import Iterable
from pathlib import Path

from bigstep.commands.arguments import short_forms
from bigstep.config.yaml_files import Override, parse_overrides
from bigstep.errors import ConfigError

__all__ = ["chosen_overrides", "read_preset"]

log = logging.getLogger(__name__)


def chosen_overrides(options: argparse.Namespace) -> tuple[Override, ...]:
    """Return the overrides of --set and its short forms.

    Raises:
        ConfigError: a key does not exist, or a value breaks a rule.
    """
    from bigstep.config.former_keys import update_overrides
    from bigstep.config.params import check_overrides

    short = short_forms(options.command)
    texts = [f"{target}={getattr(options, key)}" for key, target in short.items() if getattr(options, key, None) is not None]
    try:
        texts += shlex.split(getattr(options, "overrides", ""))
    except ValueError as error:
        raise ConfigError(f"--overrides: expected words as in a shell, got {str(error).lower()}; balance the quotes") from None
    found, lines = update_overrides(parse_overrides([*texts, *options.set]), "--set")
    _log(lines)
    check_overrides(found, "--set")
    return found


def read_preset(root: Path, name: str | None) -> tuple[Override, ...]:
    """Return the overrides of presets/NAME.yaml.

    Raises:
        ConfigError: there is no such preset, or it breaks a rule.
    """
    from bigstep.config.former_keys import update_content
    from bigstep.config.params import check_overrides
    from bigstep.config.yaml_files import nearest, read_yaml

    if name is None:
        return ()
    known = sorted(path.stem for path in (root / "presets").glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"--preset: expected the name of a file in presets/, got {name!r}; {nearest(name, known)}")
    content = read_yaml(root / "presets" / f"{name}.yaml")
    _log(update_content(content, f"presets/{name}.yaml"))
    for section, values in content.items():
        if not isinstance(values, dict | None):
            raise ConfigError(
                f"presets/{name}.yaml, {section}: expected a mapping of keys, got {values!r}; indent its keys below it"
            )
    found = tuple((section, key, value) for section, values in content.items() for key, value in (values or {}).items())
    check_overrides(found, f"presets/{name}.yaml")
    return found


def _log(lines: Iterable[str]) -> None:
    for line in lines:
        log.warning(line)
