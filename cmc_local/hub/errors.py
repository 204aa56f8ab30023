"""What goes wrong with a model hub, as one line: what it is, where, what to do next.

    with explained("user/repo"):
        ...                    # huggingface_hub's errors become InputErrors

It knows huggingface_hub's errors and HTTP's numbers, not what was being done.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cmc_local.errors import CmcError, InputError


class HubUnreachable(InputError):
    """No answer, or none that means anything: a copy in the cache may stand in."""


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn an error of the hub's library inside of the block into one about `place`."""
    try:
        yield
    except CmcError:
        raise
    except Exception as error:
        told = _explanation(error, place)
        if told is None:
            raise
        raise told from error


def _explanation(error: Exception, place: str) -> InputError | None:
    """The InputError to raise instead, or None for what has nothing to do with the hub."""
    from huggingface_hub import errors as known

    transport = known.HfHubHTTPError.__bases__[0]  # the base of httpx's errors, or of httpx2's
    unusable = OSError | RuntimeError | ValueError | TypeError | KeyError | known.XetDownloadError
    wrapped = isinstance(error, known.LocalEntryNotFoundError | RuntimeError)
    if wrapped and isinstance(error.__cause__, Exception):
        return _explanation(error.__cause__, place)
    match error:
        case known.GatedRepoError():
            return InputError(
                f"{place} is gated: accept its terms on its page at {_endpoint()}, and set HF_TOKEN"
            )
        case known.RepositoryNotFoundError():
            return InputError(
                f"{_endpoint()} has no {place} that you may read: check the name; "
                "a private one needs HF_TOKEN"
            )
        case known.RevisionNotFoundError():
            return InputError(f"there is no revision {place}: check what stands after the @")
        case known.EntryNotFoundError():
            return InputError(f"{place} is not there: look at the repository's files")
        case known.HfHubHTTPError():
            return _refusal(error, place)
        case known.OfflineModeIsEnabled():
            return HubUnreachable("the hub is switched off by the environment: unset it to fetch")
        case _ if isinstance(error, transport | ConnectionError | TimeoutError):
            return HubUnreachable(
                f"cannot reach {_endpoint()}: look at the network and run the same command again"
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return InputError(
                f"no room is left for {place}: make some, or name another folder with "
                "HF_HUB_CACHE, and run the same command again"
            )
        case OSError() if error.filename is not None:
            return None
        case _ if isinstance(error, unusable):
            return HubUnreachable(
                f"{_endpoint()} gave no usable answer about {place} ({_line(error)}): "
                "try again later, and look at HF_ENDPOINT"
            )
    return None


def _refusal(error: Exception, place: str) -> InputError:
    from huggingface_hub import get_token

    status = int(getattr(getattr(error, "response", None), "status_code", 0))
    if status == 401 and get_token() is None:
        return InputError(f"{_endpoint()} gives {place} to known users only: set HF_TOKEN")
    if status == 401:
        return InputError(f"{_endpoint()} does not accept the token: look at HF_TOKEN")
    if status == 403:
        return InputError(f"your token may not do that with {place}: it needs that permission")
    if status == 429:
        return HubUnreachable(f"{_endpoint()} was asked too often from here (429): try again later")
    if status >= 500:
        return HubUnreachable(f"{_endpoint()} failed ({status}): try again later")
    return InputError(f"{_endpoint()} refuses {place} ({status}): {_line(error)}")


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def _line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else words[:157] + "..."
