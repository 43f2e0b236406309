"""A server's answers other than 200, as the errors that the same call raises in process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from featurestore import errors

if TYPE_CHECKING:
    import httpx

_ERRORS: Mapping[str, type[errors.FeatureStoreError]] = {
    "not_found": errors.NotFoundError,
    "entity_key": errors.EntityKeyError,
    "value_type": errors.ValueTypeError,
    "output_name_clash": errors.OutputNameClashError,
    "on_demand_failed": errors.OnDemandError,
    "invalid_input": errors.InputError,
    "code_mismatch": errors.CodeMismatchError,
    "online_store_unavailable": errors.OnlineStoreUnavailableError,
    "online_store_full": errors.OnlineStoreFullError,
    "online_store_failed": errors.OnlineStoreError,
    "offline_store_unavailable": errors.OfflineStoreError,
    "disk_full": errors.DiskFullError,
    "mismatch": errors.MismatchError,
    "damaged_record": errors.DamagedRecordError,
    "registry_unavailable": errors.RegistryUnavailableError,
}
"""The server's name of an error -> its class in process."""

_TRY_AGAIN = frozenset({408, 429, 502, 503, 504})
_NOT_THE_REQUEST = frozenset({404, 405})


class _Told(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: dict[str, Any] = {}


class _ErrorBody(msgspec.Struct):
    error: _Told


def error_of(url: str, response: httpx.Response, body: bytes) -> errors.FeatureStoreError:
    """Return an answer other than 200 as the error that it stands for."""
    status = response.status_code
    try:
        told = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeError):  # not ours: a proxy's page, most likely
        told = _Told(message=f"{url} answered {status} {response.reason_phrase}.")
    error: errors.FeatureStoreError
    if status in (401, 403):
        error = errors.AuthError(told.message, status=status)
    elif told.type in _ERRORS:
        error = _ERRORS[told.type](told.message)
    elif status in _TRY_AGAIN:
        error = errors.ServerUnavailableError(told.message)
    elif 400 <= status < 500 and status not in _NOT_THE_REQUEST:
        error = errors.InputError(told.message)
    else:
        error = errors.ServerError(told.message)
    error.details = {"request_id": response.headers.get("x-request-id"), **told.details, "status": status}
    return error
