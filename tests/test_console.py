import logging
from collections.abc import Iterator

import pytest

from bigstep.console import ConsoleHandler, show_log


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Leave the library's logger as it was."""
    logger = logging.getLogger("bigstep")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers, logger.level = [], logging.NOTSET
    yield logger
    logger.handlers, logger.level = handlers, level


def test_what_the_library_logs_is_a_line_of_the_console_once_an_entry_point_asked(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    child = logging.getLogger("bigstep.tracking.spool_delivery")
    child.warning("unseen [bold]")
    assert capsys.readouterr().out == ""
    show_log()
    show_log()
    child.info("model %s is champion [bold]", 7)
    child.debug("a detail")
    assert capsys.readouterr().out == "model 7 is champion [bold]\n"
    assert [type(handler) for handler in logger.handlers] == [ConsoleHandler]
