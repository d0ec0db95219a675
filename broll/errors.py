"""Every error a user can meet, each with a code that never changes.

    BrollError
    ├── BadRequest           exit 2   what was asked for cannot be asked
    │   ├── UnsupportedShape          size or length
    │   ├── BadPrompt                 empty or over-long
    │   ├── BadImage                  not a picture, or a dangerous one
    │   ├── BadOption                 any other option
    │   ├── UnknownModel              no such name
    │   ├── UnsafeUrl                 a link that may not be followed
    │   ├── FetchFailed               a link that led nowhere
    │   └── WrongTask                 the model cannot do this with these inputs
    ├── ModelError           exit 3   the files on disk
    │   ├── ModelMissing              not installed
    │   ├── BadCheckpoint             corrupted, truncated, or of another model
    │   ├── BadSnapshot               cannot be continued
    │   ├── HubUnreachable            a hub of models does not answer, or must not be asked
    │   ├── HubNotFound               it has no such repository, revision or file
    │   ├── HubRefused                it wants a token, or its terms accepted
    │   └── BadDownload               what it sent is not what it lists
    ├── MissingExtra         exit 4   a part of broll that is not installed
    ├── OutputError          exit 5   disk full, folder not writable, codec missing
    ├── ServiceError         exit 7   what a server answers a client
    │   ├── NotAuthenticated          no key, or one that does not count
    │   ├── Forbidden                 a key without this scope
    │   ├── NotFound                  no such thing, or another tenant's
    │   ├── NoCredits                 not enough of them
    │   ├── Conflict                  not in this state
    │   ├── KeyInFlight               the same Idempotency-Key is being worked on
    │   ├── KeyReused                 the same Idempotency-Key with other parameters
    │   ├── TooMany                   requests or jobs at a time
    │   ├── TooLarge                  a body over the limit
    │   ├── NotSupported              a part of a foreign API that broll does not have
    │   └── Unavailable               draining, or the database is away
    ├── StorageError         exit 5   artifacts cannot be kept
    ├── ArtifactMissing      exit 5   an artifact that should be there is not
    ├── GroupLost            exit 7   another process that makes the same clip is gone
    ├── ExecutorDied         exit 7   (jobs/executor) the process that ran a job is gone
    ├── ClusterUnreachable   exit 7   (jobs/ray_cluster)
    ├── InsecureCluster      exit 7   (jobs/ray_cluster) no token authentication
    └── LeaseLost            exit 7   another dispatcher has this job now; nothing was written

The class docstring is the default text. A message says what was got and what is possible.
"""

from collections.abc import Mapping
from typing import Any

SHOWN = 100  # letters of what was got


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


class UnsafeUrl(BadRequest):
    """This URL may not be fetched."""

    code = "unsafe_url"


class FetchFailed(BadRequest):
    """This URL could not be fetched."""

    code = "fetch_failed"


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


class HubUnreachable(ModelError):
    """The hub does not answer."""

    code = "hub_unreachable"


class HubNotFound(ModelError):
    """The hub does not have this."""

    code = "hub_not_found"


class HubRefused(ModelError):
    """The hub wants to know who asks."""

    code = "hub_refused"


class BadDownload(ModelError):
    """What was downloaded is not what the hub lists."""

    code = "bad_download"


class MissingExtra(BrollError):
    """A part of broll is not installed."""

    code = "missing_extra"
    exit_status = 4


class OutputError(BrollError):
    """The result cannot be written."""

    code = "output_error"
    exit_status = 5


class GroupLost(BrollError):
    """Another process of the group that makes this clip is gone."""

    code = "group_lost"
    exit_status = 7


class ServiceError(BrollError):
    """The server refused."""

    code = "service_error"
    exit_status = 7


class NotAuthenticated(ServiceError):
    """An API key is needed: Authorization: Bearer KEY."""

    code = "not_authenticated"


class Forbidden(ServiceError):
    """This key may not do that."""

    code = "forbidden"


class NotFound(ServiceError):
    """There is no such thing."""

    code = "not_found"


class NoCredits(ServiceError):
    """There are not enough credits."""

    code = "no_credits"


class Conflict(ServiceError):
    """That is not possible in this state."""

    code = "conflict"


class KeyInFlight(ServiceError):
    """A request with this Idempotency-Key is being worked on."""

    code = "idempotency_in_flight"


class KeyReused(ServiceError):
    """This Idempotency-Key was used with other parameters."""

    code = "idempotency_mismatch"


class TooMany(ServiceError):
    """Too many requests or jobs; try again later."""

    code = "too_many"

    def __init__(self, message: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLarge(ServiceError):
    """The request is too large."""

    code = "too_large"


class NotSupported(ServiceError):
    """broll does not have this."""

    code = "not_supported"


class Unavailable(ServiceError):
    """The service is not available at the moment; try again soon."""

    code = "unavailable"


class StorageError(BrollError):
    """An artifact cannot be stored."""

    code = "storage_error"
    exit_status = 5


class ArtifactMissing(BrollError):
    """An artifact is not there."""

    code = "artifact_missing"
    exit_status = 5


class LeaseLost(BrollError):
    """Another dispatcher has this job now."""

    code = "lease_lost"
    exit_status = 7


def wrong(name: str, found: Mapping[str, Any]) -> str:
    """What pydantic found first, in one line: the field, what it got and what is possible."""
    if found["type"] == "missing":
        return f"{name} is missing"
    got, message = repr(found.get("input")), found["msg"]
    shown = got if len(got) <= SHOWN else got[:SHOWN] + "..."
    return f"{name[:SHOWN]} is {shown}: {message[0].lower()}{message[1:]}"
