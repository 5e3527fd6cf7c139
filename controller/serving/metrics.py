"""What the agent counts and measures, for Prometheus. docs/metrics.md has the names.

Pools and volumes are shown as the last pass over each found them, so that a scrape costs neither a
look at the host nor a read of the store. Everything else is read, when it is asked for, from where
it is counted anyway.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from backends import errors
from backends.host import commands
from backends.spec import PoolStatus, StatusBase
from controller.engine import Outcome
from controller.jobs import Jobs
from controller.planning import Action
from controller.release import release
from controller.steps import Look, Observer
from controller.workers import Workers

STATES = ("Inactive", "Building", "Running", "Degraded", "Inaccessible")
TRUTHS = ("True", "False", "Unknown")

PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds: a look at an unchanged pool takes milliseconds, a pass that copies images minutes."""

STEP_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800, 7200)

Families = Iterable[Metric]

# A second series for each counter says no more than the start of the process does.
_without_creation_times: Callable[[], None] = prometheus_client.disable_created_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What the API server was asked, and what became of events.

    :param answers: number of requests by verb and status code, ``none`` for no answer.
    """

    answers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    events_posted: int = 0
    events_dropped: int = 0
    events_waiting: int = 0


class Metrics:
    """The metrics of one agent, in a registry of their own. Safe for threads.

    :ivar observer: for the engine, which tells it of looks and steps.
    """

    def __init__(self, *, ready: Callable[[], bool] = lambda: False) -> None:
        _without_creation_times()
        self.registry = CollectorRegistry()
        self.observer = Observer(began=self._began, ended=self._ended, looked=self._looked)
        self._ready = ready
        self._workers: Workers | None = None
        self._jobs: Jobs | None = None
        self._requests: Callable[[], Requests] | None = None
        self._looks: dict[str, Look] = {}
        self._begun: dict[int, float] = {}
        self._lock = threading.Lock()
        self._passes = CounterMetric(
            "poolkeeper_reconciles",
            "Passes over a pool and its volumes.",
            ("pool", "result"),
            registry=self.registry,
        )
        self._pass_seconds = Histogram(
            "poolkeeper_reconcile_duration_seconds",
            "Time of a pass.",
            buckets=PASS_BUCKETS,
            registry=self.registry,
        )
        self._step_seconds = Histogram(
            "poolkeeper_step_duration_seconds",
            "Time of a step on the host.",
            ("step", "result"),
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self._errors = CounterMetric(
            "poolkeeper_errors",
            "Steps and passes that failed.",
            ("reason",),
            registry=self.registry,
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def timed(self, reconcile: Callable[[str], Outcome]) -> Callable[[str], Outcome]:
        """The same pass over a pool, counted and timed."""

        def timed(name: str) -> Outcome:
            began = time.monotonic()
            result = "error"
            try:
                outcome = reconcile(name)
                result = "retry" if outcome.retry else "done"
            except errors.StorageError as error:
                self._errors.labels(error.reason).inc()
                raise
            except Exception:
                self._errors.labels("Broken").inc()
                raise
            finally:
                self._pass_seconds.observe(time.monotonic() - began)
                self._passes.labels(name, result).inc()
            return outcome

        return timed

    def watch(self, workers: Workers) -> None:
        """Show these workers' states, and of pools only those that they work on."""
        self._workers = workers

    def watch_jobs(self, jobs: Jobs) -> None:
        """Show what runs apart from passes."""
        self._jobs = jobs

    def watch_requests(self, requests: Callable[[], Requests]) -> None:
        """Show what the API server is asked."""
        self._requests = requests

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the form that an ``Accept`` header asks for, and its content type."""
        encode, kind = choose_encoder(accept)
        return encode(self.registry), kind

    def _began(self, action: Action) -> None:
        self._begun[id(action)] = time.monotonic()

    def _ended(self, action: Action, error: errors.StorageError | None) -> None:
        began = self._begun.pop(id(action), None)
        if error is not None:
            self._errors.labels(error.reason).inc()
        if began is not None:
            self._step_seconds.labels(str(action.verb), "failed" if error else "done").observe(
                time.monotonic() - began
            )

    def _looked(self, look: Look) -> None:
        with self._lock:
            self._looks[look.name] = look

    def describe(self) -> Families:
        """Nothing: what there is shows when it is collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """For the registry: everything that is not counted as it happens."""
        yield InfoMetricFamily(
            "poolkeeper_build",
            "The agent's release.",
            {"version": release() or "unknown", "python": platform.python_version()},
        )
        yield GaugeMetricFamily(
            "poolkeeper_ready", "Whether the agent knows what is declared.", float(self._ready())
        )
        yield from _of_workers(self._workers)
        yield from _of_jobs(self._jobs)
        yield from _of_pools(self._current())
        yield from _of_commands()
        yield from _of_requests(self._requests() if self._requests else Requests())

    def _current(self) -> list[Look]:
        """The last look at each pool that is worked on still."""
        names = self._workers.names() if self._workers else set()
        with self._lock:
            self._looks = {name: look for name, look in self._looks.items() if name in names}
            return [self._looks[name] for name in sorted(self._looks)]


def _of_workers(workers: Workers | None) -> Families:
    states = workers.states() if workers else []
    gauge = GaugeMetricFamily("poolkeeper_workers", "Workers, one a pool.", labels=("state",))
    for state in ("busy", "retrying", "idle"):
        gauge.add_metric((state,), states.count(state))
    depth = workers.queue_depth() if workers else 0
    queue = GaugeMetricFamily("poolkeeper_queue_depth", "Pools that wait for a pass.", depth)
    return gauge, queue


def _of_jobs(jobs: Jobs | None) -> Families:
    ended = jobs.counts() if jobs else {}
    running = Counter(item.task.verb for item in jobs.snapshot()) if jobs else Counter[str]()
    gauge = GaugeMetricFamily(
        "poolkeeper_jobs", "Long steps that run apart from passes.", labels=("step",)
    )
    for verb in sorted({verb for verb, _ in ended} | running.keys()):
        gauge.add_metric((verb,), running[verb])
    counter = CounterMetricFamily(
        "poolkeeper_jobs_ended", "Jobs that ended.", labels=("step", "result")
    )
    for (verb, result), number in sorted(ended.items()):
        counter.add_metric((verb, result.lower()), number)
    return gauge, counter


def _of_pools(looks: list[Look]) -> Families:
    sizes = {
        name: GaugeMetricFamily(f"poolkeeper_pool_{name}_bytes", text, labels=("pool",))
        for name, text in (
            ("capacity", "Size of a pool."),
            ("allocation", "Bytes in use in a pool."),
            ("available", "Bytes free in a pool."),
        )
    }
    state = GaugeMetricFamily(
        "poolkeeper_pool_state", "1 for the state of a pool.", labels=("pool", "type", "state")
    )
    condition = GaugeMetricFamily(
        "poolkeeper_pool_condition",
        "1 for the status of a condition of a pool.",
        labels=("pool", "condition", "status"),
    )
    found = GaugeMetricFamily(
        "poolkeeper_pool_volumes", "Volumes found in a pool.", labels=("pool", "managed")
    )
    for look in looks:
        if isinstance(look.status, PoolStatus):
            for name, gauge in sizes.items():
                if (size := getattr(look.status, name)) is not None:
                    gauge.add_metric((look.name,), size)
            for known in STATES:
                state.add_metric((look.name, look.type, known), look.status.state == known)
            for given, count in _counted([look.status]).items():
                condition.add_metric((look.name, *given), count)
            if look.status.volumes is not None:
                found.add_metric((look.name, "true"), look.status.volumes.managed)
                found.add_metric((look.name, "false"), look.status.volumes.unmanaged)
    return *sizes.values(), state, condition, found, _of_volumes(looks)


def _of_volumes(looks: list[Look]) -> Metric:
    gauge = GaugeMetricFamily(
        "poolkeeper_volumes",
        "Declared volumes by the status of a condition.",
        labels=("pool", "condition", "status"),
    )
    for look in looks:
        for given, count in _counted(look.volumes).items():
            gauge.add_metric((look.name, *given), count)
    return gauge


def _counted(statuses: Iterable[StatusBase]) -> dict[tuple[str, str], int]:
    """How many have each condition in each status; 0 for those that none has."""
    counts: Counter[tuple[str, str]] = Counter(
        (item.type, item.status) for status in statuses for item in status.conditions
    )
    return {(type, truth): counts[type, truth] for type, _ in counts for truth in TRUTHS}


def _of_commands() -> Families:
    runs = CounterMetricFamily(
        "poolkeeper_commands", "Programs of the host that were run.", labels=("program", "result")
    )
    seconds = CounterMetricFamily(
        "poolkeeper_command_seconds", "Time that these took together.", labels=("program",)
    )
    for program, usage in sorted(commands.usage().items()):
        runs.add_metric((program, "done"), usage.runs - usage.failed)
        runs.add_metric((program, "failed"), usage.failed)
        seconds.add_metric((program,), usage.seconds)
    return runs, seconds


def _of_requests(requests: Requests) -> Families:
    answers = CounterMetricFamily(
        "poolkeeper_api_requests", "Requests to the API server.", labels=("verb", "code")
    )
    for (verb, code), number in sorted(requests.answers.items()):
        answers.add_metric((verb, code), number)
    return (
        answers,
        CounterMetricFamily(
            "poolkeeper_events_posted", "Events that were posted.", requests.events_posted
        ),
        CounterMetricFamily(
            "poolkeeper_events_dropped",
            "Events that were too many to be posted.",
            requests.events_dropped,
        ),
        GaugeMetricFamily(
            "poolkeeper_events_waiting", "Events that wait to be posted.", requests.events_waiting
        ),
    )
