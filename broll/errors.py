"""Every error a user can meet, each with a code that never changes.

    BrollError
    ├── BadRequest           exit 2   what was asked for cannot be asked
    │   ├── UnsupportedShape          size or length
    │   ├── BadPrompt                 empty or over-long
    │   ├── BadImage                  not a picture, or a dangerous one
    │   ├── BadOption                 any other option
    │   ├── UnknownModel              no such name
    │   └── WrongTask                 the model cannot do this with these inputs
    ├── ModelError           exit 3   the files on disk
    │   ├── ModelMissing              not installed
    │   ├── BadCheckpoint             corrupted, truncated, or of another model
    │   └── BadSnapshot               cannot be continued
    ├── MissingExtra         exit 4   a part of broll that is not installed
    └── OutputError          exit 5   disk full, folder not writable, codec missing

The class docstring is the default text. A message says what was got and what is possible.
"""


class BrollError(Exception):
    """Something went wrong."""

    code = "error"
    exit_status = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class BadRequest(BrollError):
    """What was asked for cannot be asked."""

    code = "bad_request"
    exit_status = 2


class UnsupportedShape(BadRequest):
    """This size or length cannot be generated."""

    code = "unsupported_shape"


class BadPrompt(BadRequest):
    """This prompt cannot be used."""

    code = "bad_prompt"


class BadImage(BadRequest):
    """This file cannot be used as a picture."""

    code = "bad_image"


class BadOption(BadRequest):
    """This option has a value that cannot be used."""

    code = "bad_option"


class UnknownModel(BadRequest):
    """There is no model of this name."""

    code = "unknown_model"


class WrongTask(BadRequest):
    """This model cannot do that with these inputs."""

    code = "wrong_task"


class ModelError(BrollError):
    """A model's files cannot be used."""

    code = "model_error"
    exit_status = 3


class ModelMissing(ModelError):
    """This model is not on this machine."""

    code = "model_missing"


class BadCheckpoint(ModelError):
    """A checkpoint is damaged, or belongs to another model."""

    code = "bad_checkpoint"


class BadSnapshot(ModelError):
    """A snapshot cannot be continued."""

    code = "bad_snapshot"


class MissingExtra(BrollError):
    """A part of broll is not installed."""

    code = "missing_extra"
    exit_status = 4


class OutputError(BrollError):
    """The result cannot be written."""

    code = "output_error"
    exit_status = 5
