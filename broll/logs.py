"""JSON logs, set up once by whoever starts a process. Secrets never get in: what looks like one is masked."""

import logging
import re
import sys
from typing import Any

import structlog

SECRET = re.compile(
    r"(broll_[0-9a-f]{10}_)[\w-]+|(whsec_)[\w+/=-]+|((?:sig|password)=)[^&\s]+|(://[^:/@\s]+:)[^@\s]+(?=@)"
)


def masked(text: str) -> str:
    return SECRET.sub(lambda m: next(g for g in m.groups() if g) + "***", text)


def _mask(_logger: Any, _method: str, event: Any) -> Any:
    return {key: masked(value) if isinstance(value, str) else value for key, value in event.items()}


def set_up(level: str = "info", stream: Any = None) -> None:
    """Structlog and the standard library's loggers, one JSON object a line on stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.WARNING
