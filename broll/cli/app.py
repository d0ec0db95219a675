"""`broll`: the commands, and how each ends.

    0 done   2 bad request   3 model files   4 not installed   5 output   6 memory   7 server
    130 Ctrl-C   143 SIGTERM

An error is one line on stderr, `broll: error [code]: message`; with --json also an object on stdout. Commands
import what they need when they run, so that `broll --help` answers at once.
"""

import contextlib
import errno
import json
import os
import sys
from typing import Annotated, Any

import typer

from broll import __version__
from broll.cli import bench, doctor, generate, inspect, jobs, loras, models, plan, prompt, serve
from broll.cli.output import one_line, say
from broll.errors import BadOption, BrollError, MissingExtra, OutputError

UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
SERVER = {
    "sqlalchemy", "alembic", "fastapi", "uvicorn", "structlog", "obstore", "limits", "prometheus_client", "starlette",
    "standardwebhooks", "python_multipart",
}  # fmt: skip
ENGINE = {
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "ftfy",
    "jaxtyping",
    "sentencepiece",
    "av",
    "cv2",
    "gguf",
}

app = typer.Typer(
    help="Your own video generation service: text or an image in, a finished clip out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", epilog=generate.EXAMPLES)(generate.generate)
app.command("plan")(plan.plan)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.add_typer(models.models_app, name="models")
app.add_typer(loras.loras_app, name="loras")
app.add_typer(bench.bench_app, name="bench")
app.add_typer(prompt.prompt_app, name="prompt")
app.add_typer(jobs.jobs_app, name="jobs")
app.add_typer(serve.keys_app, name="keys")
app.add_typer(serve.credits_app, name="credits")


class OutOfMemory(BrollError):
    """The memory does not suffice: choose a smaller --size, fewer --frames or a smaller --model."""

    code = "out_of_memory"
    exit_status = 6


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"broll {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Your own video generation service: text or an image in, a finished clip out."""


def main() -> None:
    """The program. It ends at once: taking torch apart would cost a second, and nothing is left to close."""
    status = run(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run one command and give its exit status."""
    try:
        return int(app(arguments, prog_name="broll", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `broll inspect FILE | head`
        return 0
    except Exception as error:
        known = translate(error)
        if known is None:
            raise
        return report(known, as_json="--json" in arguments)


def translate(error: Exception) -> BrollError | None:  # noqa: PLR0911  one line for each kind
    """What a user can understand and act on; None for a defect of broll, which keeps its traceback."""
    if isinstance(error, BrollError):
        return error
    if isinstance(error, UsageError):
        return BadOption(error.format_message() or "a command is missing: see broll --help")
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in ENGINE:
        return MissingExtra(f'{error.name} is not installed; to get it: pip install "broll[engine]"')
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in SERVER:
        return MissingExtra(f'{error.name} is not installed; to get it: pip install "broll[server]"')
    if isinstance(error, ImportError) and error.name == "psycopg":
        return MissingExtra('psycopg is not installed; to get it: pip install "broll[cluster]"')
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return OutOfMemory()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"cannot write {error.filename or 'a file'}: {error.strerror}")
    return None


def report(error: BrollError, *, as_json: bool) -> int:
    message = one_line(str(error))
    say(f"error [{error.code}]: {message}")
    if as_json:
        print(json.dumps({"error": {"code": error.code, "message": message}}))
    return error.exit_status
