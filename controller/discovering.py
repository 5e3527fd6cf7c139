"""Sources that a node's ``spec.discover`` asks for: each query apart, and bounded in time.

A server that does not answer takes nothing away: what it told before stays, and only the condition
says that it is silent. One that hangs holds up no other, and is not asked a second time meanwhile.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from backends import errors
from backends.base import BackendContext
from backends.host import mounts
from backends.schema import Model
from backends.spec import DiscoveredSource, SourceQuery
from backends.support import find_sources
from controller.summarising import Aspect

log = logging.getLogger(__name__)

DEADLINE = 60.0
"""Seconds that a server may take."""

ASKED_EVERY = 600.0
"""Seconds between two times that a server is asked the same."""

TRIED_EVERY = 60.0
"""Seconds until one that did not answer is asked again."""

MAX_SOURCES = 256
MAX_SOURCE = 4096
"""Bounds of ``status.sources`` and of one of them in characters, as the model has them; what is
longer is left out."""

Find = Callable[[SourceQuery], Sequence[Model]]


@dataclass(slots=True)
class _Answer:
    """What is known of one query.

    :param sources: what was told last; None where nothing ever was.
    :param due: when to ask again, by the monotonic clock.
    """

    sources: tuple[DiscoveredSource, ...] | None = None
    error: errors.StorageError | None = None
    due: float = 0.0
    asking: bool = False
    answered: bool = field(default=False)


class Discoverer:
    """Asks in threads of its own. Safe for threads.

    :param news: called when an answer is there.
    """

    def __init__(
        self,
        context: BackendContext,
        news: Callable[[], None],
        *,
        deadline: float = DEADLINE,
        find: Find | None = None,
    ) -> None:
        self._news = news
        self._deadline = deadline
        self._find = find or (lambda query: find_sources(query.type, _asked(query), context))
        self._answers: dict[SourceQuery, _Answer] = {}
        self._request: str | None = None
        self._lock = threading.Lock()

    def ask(
        self,
        queries: Sequence[SourceQuery],
        former: Sequence[DiscoveredSource],
        *,
        request: str | None = None,
    ) -> None:
        """Ask what is due, and forget what is no longer asked for. It returns at once.

        :param former: what the status holds, which stands in for an answer until there is one.
        :param request: the annotation by which a user asks to look now.
        """
        present = time.monotonic()
        with self._lock:
            anew, self._request = request != self._request, request
            self._answers = {
                query: self._answers.get(query) or _Answer(sources=_of(query, former))
                for query in queries
            }
            due = [
                (query, answer)
                for query, answer in self._answers.items()
                if not answer.asking and (anew or answer.due <= present)
            ]
            for _, answer in due:
                answer.asking = True
        for query, answer in due:
            threading.Thread(
                target=self._answer, args=(query, answer), name=f"discover {_where(query)}",
                daemon=True,
            ).start()  # fmt: skip

    def _answer(self, query: SourceQuery, answer: _Answer) -> None:
        found: tuple[DiscoveredSource, ...] | None = None
        problem: errors.StorageError | None = None
        try:
            models = mounts.bounded(
                lambda: self._find(query), self._deadline, key=f"the sources of {_where(query)}"
            )
            found = tuple(_sources(query, models))
        except errors.StorageError as error:
            problem = error
        except Exception as error:
            log.exception("sources of %s: looking for them broke off", _where(query))
            problem = errors.SystemFailure(f"Looking broke off: {error}.")
        with self._lock:
            answer.sources = answer.sources if found is None else found
            answer.error = problem
            answer.due = time.monotonic() + (ASKED_EVERY if problem is None else TRIED_EVERY)
            answer.asking, answer.answered = False, True
        self._news()

    @property
    def sources(self) -> tuple[DiscoveredSource, ...]:
        """All that is known, in the order of the queries."""
        with self._lock:
            found = [item for answer in self._answers.values() for item in answer.sources or ()]
        return tuple(dict.fromkeys(found))[:MAX_SOURCES]

    def aspects(self) -> list[Aspect]:
        """``Discovered``: whether all that was asked gave an answer; none if nothing is asked."""
        with self._lock:
            answers = dict(self._answers)
            failed = {
                _where(query): answer.error
                for query, answer in answers.items()
                if answer.error is not None
            }
            waiting = [_where(query) for query, answer in answers.items() if not answer.answered]
            count = sum(len(answer.sources or ()) for answer in answers.values())
        if not answers:
            return []
        if failed:
            told = "; ".join(f"{where}: {error}" for where, error in failed.items())
            reason = next(iter(failed.values())).reason
            return [Aspect(type="Discovered", status="False", reason=reason, message=told[:1024])]
        if waiting:
            message = f"Not answered yet: {', '.join(waiting)}."[:1024]
            return [Aspect(type="Discovered", status="Unknown", reason="Asking", message=message)]
        message = (
            f"{count} found."
            if count <= MAX_SOURCES
            else (f"{count} found, of which {MAX_SOURCES} are shown.")
        )
        return [Aspect(type="Discovered", status="True", reason="Answered", message=message)]


def _asked(query: SourceQuery) -> SourceQuery | None:
    """As a backend is asked: nothing to look at the node itself."""
    return query if query.host is not None else None


def _of(
    query: SourceQuery, former: Sequence[DiscoveredSource]
) -> tuple[DiscoveredSource, ...] | None:
    server = _server(query)
    found = tuple(item for item in former if (item.type, item.server) == (query.type, server))
    return found or None


def _sources(query: SourceQuery, models: Sequence[Model]) -> Iterator[DiscoveredSource]:
    for model in models:
        text = json.dumps(model.dump(), sort_keys=True)
        if len(text) <= MAX_SOURCE:
            yield DiscoveredSource(type=query.type, server=_server(query), source=text)


def _server(query: SourceQuery) -> str | None:
    if query.host is None:
        return None
    return f"{query.host.name}:{query.host.port}" if query.host.port else query.host.name


def _where(query: SourceQuery) -> str:
    """A query for people."""
    server = _server(query)
    return f"{query.type} at {server}" if server else f"{query.type} on this node"
