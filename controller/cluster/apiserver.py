"""The Kubernetes API: requests that wait when told to, and try again.

The one module that imports the Kubernetes client. What it can't do raises an error of the taxonomy:
``NotFound`` for 404, ``Conflict`` for 409 and a test of a patch that failed, ``PermissionRefused``
for 401 and 403, ``Inaccessible`` for a server that does not answer.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import email.utils
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import httpx2
import lightkube
from lightkube import operators
from lightkube.config.models import User
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.types import PatchType

from backends import errors
from backends.spec import LabelSelector
from controller.resources import DEFAULT_NAMESPACE, GROUP, VERSION, Key, Kind, kinds

log = logging.getLogger(__name__)

Object = dict[str, Any]
JsonPatch = list[dict[str, Any]]
T = TypeVar("T")

MANAGER = "poolkeeper"
"""Field manager of all writes."""

ATTEMPTS = 5
"""Tries of one request; after that the pass that needed it is tried again, with its backoff."""

FIRST_DELAY = 0.2
"""Seconds before the second try; doubled for each further one."""

LONGEST_WAIT = 30.0
"""Seconds that ``Retry-After`` may ask for at most."""

PAGE = 500
"""Objects in one answer to a list, as client-go asks for."""

REQUEST_TIMEOUT = 15.0
WATCH_SECONDS = 290
"""Seconds after which the server ends a watch, to be begun anew."""

_BUSY = frozenset({429, 500, 502, 503, 504})
_GONE = 410
_UNAUTHORIZED = 401
RENEWED_WITHIN = 5.0
"""Seconds between two readings of credentials that were refused."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Objects of a list and the resource version at which they were all as given."""

    objects: tuple[Object, ...]
    version: str


class ApiServer:
    """A client of the API server that kubeconfig or service account name. Safe for threads.

    :param stop: once set, nothing is waited for and no request is tried again.
    :ivar answers: number of requests, but for watches, by verb and status code; the latter is
        ``none`` where there was no answer.
    :ivar problem: what kept the last request from being answered; empty once one was.
    :raises errors.Inaccessible: where nothing says how to reach a server.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.problem = ""
        self._connect()

    def _connect(self) -> None:
        """Read kubeconfig or service account anew; requests under way keep what they have."""
        try:
            self._client = lightkube.Client(
                field_manager=MANAGER, timeout=httpx2.Timeout(REQUEST_TIMEOUT)
            )
        except (lightkube.ConfigError, OSError, ValueError) as error:
            raise errors.Inaccessible(
                f"No Kubernetes API server is known: {error}.",
                hint="Set KUBECONFIG, or run in a pod with a service account.",
            ) from error
        self._connected = time.monotonic()

    def _renew(self) -> None:
        """Read credentials that may have been replaced since, but not all the time."""
        with self._lock:
            if time.monotonic() - self._connected >= RENEWED_WITHIN:
                log.info("credentials for the API server are read anew")
                self._connect()

    def close(self) -> None:
        """End the connections; a watch that is under way ends with an error."""
        self._client.close()

    def get(self, key: Key) -> Object | None:
        """The object of that key, or None where there is none."""
        arguments = _named(key)
        try:
            return self._plain(
                "get", f"read {key}", lambda: self._client.get(_class(key), **arguments)
            )
        except errors.NotFound:
            return None

    def list(
        self,
        kind: Kind,
        selector: Mapping[str, str] | None = None,
        *,
        excluding: Mapping[str, Collection[str]] | None = None,
        labels: LabelSelector | None = None,
    ) -> Listed:
        """All objects of a kind that the server selects.

        :param selector: values that fields have.
        :param excluding: values that fields have not.
        """
        chosen: dict[str, Any] = dict(selector or {})
        for field, values in (excluding or {}).items():
            chosen |= {field: operators.not_in(sorted(values))} if values else {}

        def ask() -> Listed:
            found = self._client.list(
                _resource(kind.name),
                fields=chosen,
                labels=_labels(labels),
                chunk_size=PAGE,
                **_everywhere(kind),
            )
            objects = tuple(dict(item) for item in found)
            return Listed(objects, found.resourceVersion)

        return self._patiently("list", f"list {kind.plural}", ask)

    def first(self, kind: Kind, wanted: Callable[[Object], bool], *, page: int) -> Object | None:
        """The first object of a kind, in the server's order, that is wanted.

        :param page: objects that are asked for at once.
        """

        def ask() -> Object | None:
            listed = self._client.list(_resource(kind.name), chunk_size=page, **_everywhere(kind))
            return next((found for item in listed if wanted(found := dict(item))), None)

        return self._patiently("list", f"list {kind.plural}", ask)

    def watch(
        self, kind: Kind, selector: Mapping[str, str], version: str
    ) -> Iterator[tuple[bool, Object]]:
        """Changes after that version, until the connection ends: whether it went, and the object.

        :raises errors.NotFound: the server no longer knows that version; list anew.
        """
        try:
            for name, found in self._client.watch(
                _resource(kind.name),
                fields=dict(selector),
                resource_version=version,
                server_timeout=WATCH_SECONDS,
                **_everywhere(kind),
            ):
                yield name == "DELETED", dict(found)
        except lightkube.ApiError as error:
            if error.status.code == _UNAUTHORIZED:
                self._renew()
            if error.status.code == _GONE:
                raise errors.NotFound("The version to watch from is too old.") from error
            raise _translated(f"watch {kind.plural}", error) from error
        except httpx2.HTTPError as error:
            raise _unreachable(f"watch {kind.plural}", error) from error

    def patch(self, key: Key, patch: JsonPatch, *, status: bool = False) -> Object:
        """Apply a JSON patch (RFC 6902), to the status where asked; the object as it is then.

        :raises errors.Conflict: a ``test`` of the patch does not hold.
        :raises errors.NotFound: there is no such object.
        """
        target = _class(key).Status if status else _class(key)
        arguments: dict[str, Any] = {**_named(key), "obj": patch, "patch_type": PatchType.JSON}
        what = f"write the status of {key}" if status else f"write {key}"
        return self._plain("patch", what, lambda: self._client.patch(target, **arguments))

    def merge(self, key: Key, patch: Object) -> Object:
        """Apply a merge patch (RFC 7386); the object as it is then."""
        arguments: dict[str, Any] = {**_named(key), "obj": patch, "patch_type": PatchType.MERGE}
        return self._plain(
            "patch", f"write {key}", lambda: self._client.patch(_class(key), **arguments)
        )

    def apply(self, key: Key, wanted: Object) -> Object:
        """Server-side apply without force; the object as it is then.

        :raises errors.Conflict: somebody else set one of the fields to another value.
        """
        arguments: dict[str, Any] = {**_named(key), "obj": wanted, "patch_type": PatchType.APPLY}
        return self._plain(
            "apply", f"apply {key}", lambda: self._client.patch(_class(key), **arguments)
        )

    def create(self, key: Key, wanted: Object) -> Object:
        """Make an object; the object as it is then.

        :raises errors.Conflict: there is one of that name.
        """
        arguments: dict[str, Any] = {"namespace": key.namespace} if key.namespace else {}
        made = _class(key)(wanted)
        return self._plain("create", f"make {key}", lambda: self._client.create(made, **arguments))

    def delete(self, key: Key) -> bool:
        """Ask for deletion; whether there was such an object."""
        arguments = _named(key)
        try:
            self._patiently(
                "delete", f"delete {key}", lambda: self._client.delete(_class(key), **arguments)
            )
        except errors.NotFound:
            return False
        return True

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """The data of a Secret, each value in base64; None where there is none."""
        try:
            found = self._plain(
                "get",
                f"read Secret {namespace}/{name}",
                lambda: self._client.get(_resource("Secret"), name, namespace=namespace),
            )
        except errors.NotFound:
            return None
        return dict(found.get("data") or {})

    def may(self, token: str, verb: str, key: Key) -> bool:
        """Whether the bearer of a token may do this to an object, as the server decides it.

        It is asked over a connection of its own and with that token alone: none of the agent's
        credentials goes with it (SelfSubjectAccessReview, authorization.k8s.io/v1).

        :raises errors.Unauthenticated: the server knows no bearer of that token.
        """
        kind = kinds()[key.kind]
        attributes = {
            "group": GROUP,
            "resource": kind.plural,
            "verb": verb,
            "namespace": key.namespace,
            "name": key.name,
        }
        review = _resource(_REVIEW)({"spec": {"resourceAttributes": attributes}})
        try:
            with _client_of(token) as client:
                answer = self._counted("create", lambda: dict(client.create(review)))
        except httpx2.HTTPStatusError as error:
            if error.response.status_code == _UNAUTHORIZED:
                raise errors.Unauthenticated("The API server does not know the token.") from None
            raise _translated("review an access", error) from None
        except httpx2.HTTPError as error:
            raise _unreachable("review an access", error) from None
        return bool(answer.get("status", {}).get("allowed"))

    def persistent_volume(self, name: str) -> Object | None:
        """A PersistentVolume by its name, or None where there is none."""
        return self._cluster_object("PersistentVolume", name)

    def apply_persistent_volume(self, wanted: Object) -> Object:
        """Server-side apply of a PersistentVolume without force.

        :raises errors.Conflict: somebody else set one of the fields to another value.
        """
        name = wanted["metadata"]["name"]
        return self._plain(
            "apply",
            f"apply PersistentVolume {name}",
            lambda: self._client.patch(
                _resource("PersistentVolume"), name, wanted, patch_type=PatchType.APPLY
            ),
        )

    def delete_persistent_volume(self, name: str) -> None:
        """Ask for the deletion of a PersistentVolume; gone already is success."""
        with contextlib.suppress(errors.NotFound):
            self._patiently(
                "delete",
                f"delete PersistentVolume {name}",
                lambda: self._client.delete(_resource("PersistentVolume"), name),
            )

    def node_label(self, node: str, label: str) -> str | None:
        """A label of a Node; None where there is no such node or label."""
        found = self._cluster_object("Node", node) or {}
        value = found.get("metadata", {}).get("labels", {}).get(label)
        return None if value is None else str(value)

    def _cluster_object(self, kind: str, name: str) -> Object | None:
        try:
            return self._plain(
                "get", f"read {kind} {name}", lambda: self._client.get(_resource(kind), name)
            )
        except errors.NotFound:
            return None

    def create_event(self, event: Object) -> None:
        """Make an Event (core/v1).

        :raises errors.Conflict: there is one of that name.
        """
        made = _resource("Event")(event)
        self._patiently("create", "post an event", lambda: self._client.create(made))

    def get_event(self, namespace: str, name: str) -> Object | None:
        """An Event by its name, or None where there is none."""
        try:
            return self._plain(
                "get",
                "read an event",
                lambda: self._client.get(_resource("Event"), name, namespace=namespace),
            )
        except errors.NotFound:
            return None

    def merge_event(self, namespace: str, name: str, patch: Object) -> None:
        """Change an Event by a merge patch."""
        self._patiently(
            "patch",
            "count an event",
            lambda: self._client.patch(
                _resource("Event"), name, patch, namespace=namespace, patch_type=PatchType.MERGE
            ),
        )

    def _plain(self, verb: str, what: str, ask: Callable[[], Any]) -> Object:
        return dict(self._patiently(verb, what, ask))

    def _patiently(self, verb: str, what: str, ask: Callable[[], T]) -> T:
        """Ask until there is an answer, the server says no, or tries or patience are at an end."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._counted(verb, ask)
            except httpx2.HTTPStatusError as error:
                problem, delay = _translated(what, error), _retry_after(error.response)
                if error.response.status_code == _UNAUTHORIZED and attempt == 1:
                    self._renew()
                elif not isinstance(problem, errors.Inaccessible):
                    raise problem from error
            except httpx2.HTTPError as error:
                problem, delay = _unreachable(what, error), None
            if attempt == ATTEMPTS:
                raise problem
            wait = delay if delay is not None else FIRST_DELAY * 2 ** (attempt - 1)
            log.debug("%s; again in %.1f s", problem, wait)
            if self._stop.wait(wait * random.uniform(1.0, 1.1)):  # noqa: S311
                raise problem
        raise AssertionError("unreachable")

    def _counted(self, verb: str, ask: Callable[[], T]) -> T:
        """Ask once, and keep in mind what kind of answer came."""
        code, problem = "2xx", ""
        try:
            return ask()
        except httpx2.HTTPStatusError as error:
            code = str(error.response.status_code)
            problem = str(_translated(verb, error)) if int(code) in _BUSY else ""
            raise
        except httpx2.HTTPError as error:
            code, problem = "none", str(_unreachable(verb, error))
            raise
        finally:
            with self._lock:
                self.answers[verb, code] += 1
                self.problem = problem


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3: a number or a date)."""
    text = response.headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (until - datetime.datetime.now(until.tzinfo)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _translated(what: str, error: httpx2.HTTPStatusError) -> errors.StorageError:
    code = error.response.status_code if error.response is not None else 0
    said = str(error).splitlines()[0].rstrip(".")
    message = f"The API server refused to {what}: {said}."
    if code == 404 and _names_an_object(error):
        return errors.NotFound(message)
    if code in (409, _GONE) or (code == 422 and "the server rejected our request" in said):
        return errors.Conflict(message)
    if code in (401, 403):
        return errors.PermissionRefused(message, hint="Look at the agent's roles and its token.")
    if code in _BUSY or code == 404:
        return errors.Inaccessible(f"The API server did not {what}: {said}.")
    return errors.SystemFailure(message)


def _names_an_object(error: httpx2.HTTPStatusError) -> bool:
    """Whether a 404 says that an object is not there. A server that starts says it of the kind."""
    if not isinstance(error, lightkube.ApiError):
        return False
    details = error.status.details
    return error.status.reason == "NotFound" and bool(details and details.name)


def _unreachable(what: str, error: Exception) -> errors.Inaccessible:
    said = str(error).rstrip(".") or type(error).__name__
    return errors.Inaccessible(f"The API server can't be reached to {what}: {said}.")


_CORE = {"Event": "events", "Secret": "secrets"}
_REVIEW = "SelfSubjectAccessReview"
_CORE_OF_CLUSTER = {"Node": "nodes", "PersistentVolume": "persistentvolumes"}


_making = threading.Lock()


def _resource(kind: str) -> Any:
    """The client's class for a kind, which the client lets be made once only."""
    with _making:
        return _made(kind)


@cache
def _made(kind: str) -> Any:
    """The client's class for a kind of ours, or for one of core/v1."""
    if kind in _CORE:
        return create_namespaced_resource("", "v1", kind, _CORE[kind])
    if kind == _REVIEW:
        return create_global_resource(
            "authorization.k8s.io", "v1", _REVIEW, "selfsubjectaccessreviews"
        )
    if kind in _CORE_OF_CLUSTER:
        return create_global_resource("", "v1", kind, _CORE_OF_CLUSTER[kind])
    found = kinds()[kind]
    create = create_namespaced_resource if found.namespaced else create_global_resource
    return create(GROUP, VERSION, found.name, found.plural)


@contextlib.contextmanager
def _client_of(token: str) -> Iterator[lightkube.Client]:
    """A client of the same server with a user's token and nothing of the agent's own."""
    try:
        config = lightkube.KubeConfig.from_env().get()
        if config is None:
            raise lightkube.ConfigError("kubeconfig has no context")
        theirs = config._replace(user=User(token=token))
        client = lightkube.Client(
            config=theirs, field_manager=MANAGER, timeout=httpx2.Timeout(REQUEST_TIMEOUT)
        )
    except (lightkube.ConfigError, OSError, ValueError) as error:
        raise errors.Inaccessible("No Kubernetes API server is known.") from error
    try:
        yield client
    finally:
        client.close()


def _class(key: Key) -> Any:
    return _resource(key.kind)


def _named(key: Key) -> dict[str, Any]:
    if kinds()[key.kind].namespaced:
        return {"name": key.name, "namespace": key.namespace or DEFAULT_NAMESPACE}
    return {"name": key.name}


def _labels(selector: LabelSelector | None) -> Any:
    """A selector as the client takes it: pairs, for two may be of one key."""
    if selector is None:
        return None
    wanted: builtins.list[tuple[str, Any]] = [*(selector.match_labels or {}).items()]
    for item in selector.match_expressions:
        wanted.append((item.key, _OPERATORS[item.operator](item.values)))
    return wanted


_OPERATORS: Mapping[str, Callable[[tuple[str, ...]], Any]] = {
    "In": operators.in_,
    "NotIn": operators.not_in,
    "Exists": lambda values: operators.exists(),
    "DoesNotExist": lambda values: operators.not_exists(),
}


def _everywhere(kind: Kind) -> dict[str, Any]:
    return {"namespace": lightkube.ALL_NS} if kind.namespaced else {}
