"""What commands say on standard error: as text for people, or as the log lines of the other processes."""

from __future__ import annotations

import logging
import sys

from qwenvl.observability import LogFormat, LogLevel, configure_logging, default_log_format


logger = logging.getLogger(__name__)


class Console:
    """Standard error of a command that runs beside other processes with logs.

    Args:
        level: The lowest level that is logged.
        log_format: `json` or `text`; None = text on a terminal, JSON otherwise.
    """

    def __init__(self, level: LogLevel, log_format: LogFormat | None) -> None:
        configure_logging(process="qwenvl", level=level, log_format=log_format)
        self._as_text = (log_format or default_log_format()) == "text"

    def say(self, *lines: str) -> None:
        """Prints lines, or logs each of them."""
        if self._as_text:
            print(*lines, sep="\n", file=sys.stderr, flush=True)
            return
        for line in lines:
            logger.info(line)

    def complain(self, line: str) -> None:
        """As `say`, for an error."""
        if self._as_text:
            print(line, file=sys.stderr, flush=True)
        else:
            logger.error(line)
