"""Accounts of Zoho CRM by Zoho's own SDK, on our session: `pip install penstock[zoho]`.

    Tier("sdk", by_sdk, needs="zohocrmsdk")

The SDK (read and tried, zohocrmsdk8_0 7.0.0, 2026-11) takes no session: it calls the module `requests`, with
no time-out. So the name `requests` in it is an object of ours, which hands each call to the session of its
thread. It keeps no token and asks for none: the session adds the credentials underneath.

Before the first records it asks what fields the module has, and keeps the answer in a file; that is once for
each process and address. It would ask the same of every module that a field points to, and of those behind
them. None of the fields that we read does, so that is answered here, without a call.

A process has one SDK: whoever uses it for something else finds that its calls need a session.
"""

import functools
import importlib
import threading
from collections.abc import Mapping
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

from resilience.errors import BadPayloadError, ConfigurationError, PenstockError
from tasks.collectors.rows import bad_payload
from tasks.collectors.values import Checkpoint, Fetched, Unit
from tasks.scratch import scratch

FIELDS = ("Account_Name", "Owner", "Industry", "Phone", "Website", "Created_Time", "Modified_Time")
SIZE = 200  # rows of a page, the most there are

_MODULE = "Accounts"
_SINCE = "If-Modified-Since"
_NO_CONTENT, _NOT_MODIFIED = 204, 304
_SHOWN_CHARACTERS = 300

# What the SDK trips over where an answer has another shape than it takes for granted.
_BY_SHAPE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)

_ROOT = "zohocrmsdk.src.com.zoho."
_USED: Mapping[str, tuple[str, ...]] = {
    "api.authenticator": ("oauth_token",),
    "api.authenticator.store": ("TokenStore",),
    "api.authenticator.token": ("Token",),
    "api.logger": ("Logger",),
    "crm.api": ("HeaderMap", "Initializer", "ParameterMap", "SDKConfig"),
    "crm.api.dc": ("DataCenter",),
    "crm.api.exception": ("SDKException",),
    "crm.api.header": ("Header",),
    "crm.api.record": ("GetRecordsParam", "RecordOperations", "ResponseWrapper"),
    "crm.api.users": ("MinifiedUser",),
    "crm.api.util": ("Choice", "api_http_connector"),
    "crm.api.util.datatype_converter": ("DataTypeConverter",),
}

_lock = threading.Lock()
_own = threading.local()  # .session: where the calls of this thread go


def by_sdk(unit: Unit, checkpoint: Checkpoint, session: Any) -> Fetched:
    """One page of accounts; the checkpoint is {} at first, then {"token": …}, or {"page": 2} without a token.

    Rows are as REST has them, {"id": "…", "Account_Name": "…", "Owner": {"name": "…", "id": "…"}, …}, with
    times in UTC. Where the unit has a start, only what was modified after it is asked for.

    Raises what the rules of the Api say of an answer, BadPayloadError where the SDK makes no records of one,
    and ConfigurationError where it is not installed.
    """
    sdk = _sdk()
    session.raises = False  # a 304 is none of our errors; what is one gets raised below
    _own.session = session
    try:
        _begin(sdk, session.base_url.removesuffix("/crm/v8"))
        answer = sdk.RecordOperations(_MODULE).get_records(*_asked(sdk, unit, checkpoint))
        return _page(sdk, answer, session)
    except sdk.SDKException as error:
        raise _meant(sdk, error, session) from error
    finally:
        _own.session = None


def _asked(sdk: Any, unit: Unit, checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Parameters and headers of one page."""
    params, headers = sdk.ParameterMap(), sdk.HeaderMap()
    params.add(sdk.GetRecordsParam.fields, ",".join(FIELDS))
    params.add(sdk.GetRecordsParam.per_page, SIZE)
    # By id, as by REST: what is modified while pages are read keeps its place.
    params.add(sdk.GetRecordsParam.sort_by, "id")
    params.add(sdk.GetRecordsParam.sort_order, "asc")
    if "token" in checkpoint:
        params.add(sdk.GetRecordsParam.page_token, checkpoint["token"])
    elif "page" in checkpoint:
        params.add(sdk.GetRecordsParam.page, checkpoint["page"])
    if unit.start is not None:
        # As text: a time would be written in the zone of this machine.
        since = unit.start.astimezone(UTC).isoformat(timespec="seconds")
        headers.add(sdk.Header(_SINCE, "String"), since)
    return params, headers


def _page(sdk: Any, answer: Any, session: Any) -> Fetched:
    if answer is None:
        raise _bad(session, "the SDK swallowed an error of its own")
    if answer.get_status_code() in {_NO_CONTENT, _NOT_MODIFIED}:
        return Fetched([])
    found = answer.get_object()
    if not isinstance(found, sdk.ResponseWrapper):
        raise _bad(session, f"the SDK makes {type(found).__name__} of it, and no records")
    records, info = found.get_data(), found.get_info()
    if records is None or info is None or info.get_more_records() is None:
        raise _bad(session, "it has no data, or does not say whether there is more")
    rows = [_row(sdk, record, session) for record in records]
    if not info.get_more_records():
        return Fetched(rows)
    token = info.get_next_page_token()
    return Fetched(rows, next={"token": token} if token else {"page": (info.get_page() or 1) + 1})


def _row(sdk: Any, record: Any, session: Any) -> dict[str, Any]:
    """A record as REST has it."""
    values = record.get_key_values()
    row = {"id": str(values["id"])} if values.get("id") is not None else {}
    return row | {name: _plain(sdk, values[name], session) for name in FIELDS if name in values}


def _plain(sdk: Any, value: Any, session: Any) -> Any:
    """A value as REST has it. What the fields say of themselves decides what the SDK makes of one."""
    match value:
        case None | str() | bool() | int() | float() | dict():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat()
        case date():
            return value.isoformat()
        case list():
            return [_plain(sdk, each, session) for each in value]
        case sdk.Choice():
            return value.get_value()
        case sdk.MinifiedUser():
            user = {"name": value.get_name(), "id": str(value.get_id()), "email": value.get_email()}
            return {name: each for name, each in user.items() if each is not None}
    raise _bad(session, f"a field is {type(value).__name__}")


def _meant(sdk: Any, error: Any, session: Any) -> Exception:
    """What stands behind an exception of the SDK: it wraps whatever it meets, ours and a worker's too."""
    found = error
    while isinstance(found, sdk.SDKException) and isinstance(found.cause, Exception):
        found = found.cause
    if isinstance(found, (sdk.SDKException, *_BY_SHAPE)) and not isinstance(found, PenstockError):
        said = f"{type(found).__name__}: {found}"[:_SHOWN_CHARACTERS]
        return _bad(session, f"the SDK cannot read it: {said}")
    return found  # type: ignore[no-any-return]


def _bad(session: Any, why: str) -> BadPayloadError:
    answer = session.calls.answer
    if answer is None:
        return BadPayloadError(f"zoho: {why}")
    return bad_payload("zoho", why, answer.body, answer.status)


class _Requests:
    """What the SDK takes for the module `requests`: calls go to the session of their thread, or nowhere."""

    def get(self, url: str, *, headers: Mapping[str, str], params: Mapping[str, str], **_options: Any) -> Any:
        """The response of a GET. Raises what the rules of the Api say of it."""
        session = getattr(_own, "session", None)
        if session is None:
            raise ConfigurationError("the SDK of Zoho calls through a guarded session only, and here is none")
        if url.endswith("/settings/fields") and params.get("module") != _MODULE:
            return SimpleNamespace(status_code=_NO_CONTENT, headers={})
        response = session.get(url, headers=headers, params=params)
        if response.status_code == _NOT_MODIFIED and _SINCE in headers:
            session.calls.failure = None  # what was asked for: not a redirect that leads nowhere
        elif session.calls.failure is not None:
            raise session.calls.failure
        return response

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(f"the SDK of Zoho reads only, and has no requests.{name} here")


def _begin(sdk: Any, base_url: str) -> None:
    """Let the SDK work in this process, if it does not yet, and let this thread call this address."""
    environment = sdk.DataCenter.Environment(base_url, "", "")
    with _lock:
        files = scratch() / "zoho"
        files.mkdir(exist_ok=True)
        known = sdk.Initializer.initializer
        if known is None or known.resource_path != str(files):
            sdk.Initializer.initialize(
                environment,
                sdk.token,
                store=sdk.store,
                sdk_config=sdk.SDKConfig(auto_refresh_fields=False, pick_list_validation=False),
                resource_path=str(files),
                logger=sdk.Logger.get_instance(sdk.Logger.Levels.CRITICAL),  # it logs nothing of that level
            )
        sdk.Initializer.switch_user(environment, sdk.token)


def _sdk() -> Any:
    with _lock:  # the first call of several threads
        return _imported()


@functools.cache
def _imported() -> Any:
    """What we use of the SDK, on our sessions from now on; a second and 45 MiB."""
    try:
        modules = {module: importlib.import_module(_ROOT + module) for module in _USED}
    except ImportError as error:
        raise ConfigurationError("zohocrmsdk is not installed: pip install 'penstock[zoho]'") from error
    sdk = SimpleNamespace(
        **{name: getattr(modules[module], name) for module, names in _USED.items() for name in names}
    )
    sdk.api_http_connector.requests = sdk.oauth_token.requests = _Requests()
    sdk.DataTypeConverter.init()  # of a table that another thread is about to fill it reads None
    sdk.token, sdk.store = _idle(sdk.Token), _idle(sdk.TokenStore)
    return sdk


def _idle(kind: Any) -> Any:
    """One of this abstract class that does nothing: the session has the credentials.

    Without a store of tokens the SDK would make a file in the working directory.
    """
    nothing = dict.fromkeys(kind.__abstractmethods__, lambda *_: None)
    return type(f"No{kind.__name__}", (kind,), nothing)()
