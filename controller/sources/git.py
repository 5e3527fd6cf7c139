"""Manifests in a git repository: a clone of our own, or a working copy of the user's.

A clone is fetched into a directory of ours and reset to what the branch is. A working copy is only
read, like any folder. git runs without prompts, hooks or other transports than those listed, and
credentials of a URL reach it by a file of mode 0600, never by an argument.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from backends import errors
from backends.host import commands
from controller.sources.base import Snapshot, Source
from controller.sources.directory import DirectorySource
from controller.sources.files import assemble, list_folder, read_file

SCHEMES = ("file", "git", "http", "https", "ssh")

FIRST_RETRY = 15.0
"""Seconds after a first failure; the time doubles up to the interval."""

_INHERITED = (
    "HOME", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
)  # fmt: skip
"""Variables of ours that tell git how to reach a server (git(1), gitcredentials(7))."""

_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.logAllRefUpdates=false",
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "submodule.recurse=false",
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCP_LIKE = re.compile(r"^([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*:[^:/].*$")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_COMMIT = re.compile(r"^[0-9a-f]{40}([0-9a-f]{24})?$")


def redact(text: str) -> str:
    """Text without the user names and passwords of the URLs in it."""
    return _CREDENTIALS.sub("***@", text)


def git_source(
    location: str,
    *,
    checkouts: Path,
    branch: str = "",
    path: str = "",
    interval: float = 60.0,
    timeout: float = 120.0,
) -> Source:
    """The source for a URL, or for a path: with a branch a clone of it, else the folder as it is.

    :param checkouts: where clones stand; each gets a directory of its own.
    :param path: a folder in the repository that holds the manifests; all of it if left out.
    :param interval: seconds between fetches.
    :param timeout: seconds that one command of git may take.
    :raises errors.InvalidSpec: for a location, branch or path that may not be used.
    """
    if not branch and os.path.isdir(location) and not is_bare(Path(location)):
        return working_copy(Path(location), path=path)
    remote = Remote.parse(location, branch=branch, path=path)
    return GitSource(remote, checkouts=checkouts, interval=interval, timeout=timeout)


def working_copy(folder: Path, *, path: str = "") -> DirectorySource:
    """A working copy of somebody else, read and never changed; its revision is what HEAD is."""
    _check_path(path)
    return DirectorySource(
        folder / path,
        within=folder,
        origin=_origin(str(folder), "", path),
        revision=lambda: head_commit(folder),
    )


def is_bare(folder: Path) -> bool:
    """Whether a folder is a repository without a working copy."""
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir()


def head_commit(folder: Path) -> str:
    """The commit that is checked out, read without starting git (gitrepository-layout(5)).

    Empty where nobody has committed yet, or the repository keeps its refs in another way.
    """
    try:
        store = folder / ".git"
        if store.is_file():
            store = folder / store.read_text().removeprefix("gitdir:").strip()
        head = (store / "HEAD").read_text().strip()
        common = store / "commondir"
        shared = store / common.read_text().strip() if common.is_file() else store
        return head if _COMMIT.match(head) else _ref(store, shared, head.removeprefix("ref: "))
    except (OSError, UnicodeDecodeError):
        return ""


def _ref(store: Path, shared: Path, name: str) -> str:
    for place in (store, shared):
        if (place / name).is_file():
            return (place / name).read_text().strip()
    lines = (shared / "packed-refs").read_text().splitlines()
    found = [line.split()[0] for line in lines if line.endswith(f" {name}")]
    return found[0] if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository to clone.

    :param url: without credentials.
    :param credentials: a line for git-credential-store(1); empty where there are none.
    :param branch: empty for the one that the server's HEAD names.
    :param path: the folder of manifests in it.
    """

    url: str
    credentials: str = dataclasses.field(default="", repr=False)
    branch: str = ""
    path: str = ""

    @classmethod
    def parse(cls, location: str, *, branch: str = "", path: str = "") -> Remote:
        """Check what a user gave.

        :raises errors.InvalidSpec: for what git could take for an option or another command, for
            other schemes than ``SCHEMES``, and for a path that leads out of the repository.
        """
        _check_branch(branch)
        _check_path(path)
        url, credentials = _split_url(location)
        return cls(url=url, credentials=credentials, branch=branch, path=path)

    @property
    def origin(self) -> str:
        return _origin(self.url, self.branch, self.path)

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}" if self.branch else "HEAD"


def _origin(url: str, branch: str, path: str) -> str:
    return f"git:{url}{f'#{branch}' if branch else ''}{f':{path}' if path else ''}"


def _split_url(location: str) -> tuple[str, str]:
    is_url = "://" in location
    if not location or location.startswith("-") or _CONTROL.search(location):
        raise _refused("git URL", "", "is empty, begins with '-' or has a control character")
    if is_url and " " in location:
        raise _refused("git URL", "", "has a space in it")
    shown = redact(location)
    if not is_url:
        if not location.startswith((".", "/")) and _SCP_LIKE.match(location):
            return location, ""
        if "::" in location:
            raise _refused("git URL", shown, f"is none of {', '.join(SCHEMES)}")
        return Path(location).absolute().as_uri(), ""
    try:
        parts = urllib.parse.urlsplit(location)
        port = parts.port
    except ValueError:
        raise _refused("git URL", "", "has no valid host and port") from None
    if parts.scheme not in SCHEMES:
        raise _refused("git URL", shown, f"is none of {', '.join(SCHEMES)}")
    if parts.scheme != "file" and (not parts.hostname or parts.hostname.startswith("-")):
        raise _refused("git URL", shown, "names no host")
    return _without_credentials(parts, port)


def _without_credentials(parts: urllib.parse.SplitResult, port: int | None) -> tuple[str, str]:
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https"):
        # ssh takes a user name and never a password from the URL.
        name = user.partition(":")[0]
        return parts._replace(netloc=f"{name}@{host}" if name else host).geturl(), ""
    url = parts._replace(netloc=host).geturl()
    if not user:
        return url, ""
    login = user if ":" in user else f"{user}:"
    return url, f"{parts.scheme}://{login}@{host}"


def _check_branch(branch: str) -> None:
    # git-check-ref-format(1)
    if branch.startswith(("-", "/", ".")) or branch.endswith(("/", ".", ".lock")):
        raise _refused("branch", branch, "is not a name of a branch")
    if _CONTROL.search(branch) or re.search(r"\.\.|//|@\{|[ ~^:?*\[\\]", branch):
        raise _refused("branch", branch, "is not a name of a branch")


def _check_path(path: str) -> None:
    parts = PurePosixPath(path)
    if parts.is_absolute() or {"..", ".git"} & set(parts.parts) or "\0" in path:
        raise _refused("path", path, "does not lead into the repository")


def _refused(what: str, value: str, why: str) -> errors.InvalidSpec:
    return errors.InvalidSpec(f"The {what} {value!r} {why}." if value else f"The {what} {why}.")


class GitSource:
    """A clone of a repository that is fetched from time to time.

    :param checkouts: where clones stand; this one gets a directory of its own.
    :param interval: seconds between fetches.
    :param timeout: seconds that one command of git may take.
    """

    def __init__(
        self,
        remote: Remote,
        *,
        checkouts: Path,
        interval: float = 60.0,
        timeout: float = 120.0,
    ) -> None:
        self.remote = remote
        self.origin = remote.origin
        self._interval = interval
        self._stopping = threading.Event()
        self._changed: Callable[[], None] = lambda: None
        self._clone = _Clone(remote, checkouts, timeout, self._stopping)
        self._last: Snapshot | None = None
        self._good: Snapshot | None = None
        self._failures = 0
        self._next = float("-inf")

    def start(self, changed: Callable[[], None]) -> None:
        """There is nothing to watch: a server reports nothing."""
        self._stopping.clear()
        self._changed = changed

    def stop(self) -> None:
        """End a running fetch."""
        self._stopping.set()
        self._changed()

    def wake(self) -> None:
        """Let the next poll fetch, however lately the last one did."""
        self._next = float("-inf")
        self._changed()

    def delay(self) -> float:
        """Seconds until the next fetch."""
        return max(0.0, self._next - time.monotonic())

    def poll(self) -> Snapshot | None:
        """Fetch if it is time to; None where there is nothing new."""
        if time.monotonic() < self._next:
            return None
        try:
            snapshot = self._fetched()
        except errors.Cancelled:
            return None
        if snapshot.says_the_same(self._last):
            return None
        self._last = snapshot
        return snapshot

    def _fetched(self) -> Snapshot:
        try:
            with self._clone.locked():
                commit = self._clone.update(check=not self._failures)
                if self._good is None or self._good.revision != commit:
                    self._good = self._read(commit)
        except errors.Cancelled:
            raise
        except errors.StorageError as error:
            self._failures += 1
            wait = min(self._interval, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
            self._next = time.monotonic() + wait
            return self._as_before(redact(str(error)))
        self._failures = 0
        self._next = time.monotonic() + self._interval
        return self._good

    def _read(self, commit: str) -> Snapshot:
        tree = self._clone.tree
        listing = list_folder(tree / self.remote.path, within=tree)
        return assemble(
            self.origin,
            [read_file(file, shown=str(file.relative_to(tree))) for file in listing.files],
            problems=[_shown_below(tree, problem) for problem in listing.problems],
            revision=commit,
        )

    def _as_before(self, reason: str) -> Snapshot:
        """What was last read, or still stands in the clone after a restart; not complete."""
        if self._good is None:
            with contextlib.suppress(errors.StorageError), self._clone.locked():
                commit = self._clone.restore()
                self._good = self._read(commit) if commit else None
        known = self._good or Snapshot(origin=self.origin, declared=())
        return dataclasses.replace(known, complete=False, reason=reason)


def _shown_below(tree: Path, problem: errors.InvalidManifest) -> errors.InvalidManifest:
    return type(problem)(
        problem.message,
        hint=problem.hint,
        file=os.path.relpath(problem.file, tree),
        line=problem.line,
    )


class _Clone:
    """A directory of ours: ``tree`` is the clone, beside it a lock and the credentials."""

    def __init__(
        self, remote: Remote, checkouts: Path, timeout: float, cancel: threading.Event
    ) -> None:
        name = hashlib.sha256(f"{remote.url}\0{remote.branch}".encode()).hexdigest()[:16]
        self._remote = remote
        self._directory = checkouts / name
        self._timeout = timeout
        self._cancel = cancel
        self._checked_out = ""
        self.tree = self._directory / "tree"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the clone."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open(self._directory / "lock", "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise errors.from_os_error(error, doing=f"open {self._directory}") from error
        with lock:
            deadline = time.monotonic() + self._timeout
            while not _lock(lock.fileno()):
                if self._cancel.wait(0.1) or time.monotonic() > deadline:
                    raise errors.InUse(f"Another process works on the clone {self.tree}.")
            yield

    def update(self, *, check: bool) -> str:
        """Bring the clone to what the branch is now; the commit.

        :param check: where that fails, look whether the clone is damaged, and make it anew.
        """
        try:
            return self._update()
        except errors.CommandFailed:
            if not check or not self.tree.exists() or self._is_sound():
                raise
        self._discard()
        return self._update()

    def restore(self) -> str:
        """Bring the files back to the commit that was fetched last; empty where there is none."""
        self._remove_stale_locks()
        commit = head_commit(self.tree)
        if commit:
            self._check_out(commit)
        return commit

    def _update(self) -> str:
        if not (self.tree / ".git" / "HEAD").is_file():
            self._discard()
            self._run(("init", "--quiet", "--template=", "--", str(self.tree)))
        self._remove_stale_locks()
        self._git(
            "fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--no-recurse-submodules",
            "--", self._remote.url, self._remote.ref,
        )  # fmt: skip
        commit = self._fetched()
        if commit != self._checked_out:
            self._check_out(commit)
        return commit

    def _fetched(self) -> str:
        try:
            return (self.tree / ".git" / "FETCH_HEAD").read_text().split()[0]
        except (OSError, IndexError) as error:
            raise errors.CommandFailed(f"git fetched nothing from {self._remote.url}.") from error

    def _check_out(self, commit: str) -> None:
        self._git("reset", "--quiet", "--hard", commit)
        self._git("clean", "--quiet", "-ffdx")
        self._checked_out = commit

    def _is_sound(self) -> bool:
        try:
            self._git("fsck", "--no-dangling", "--no-progress")
        except errors.CommandFailed:
            return False
        return True

    def _discard(self) -> None:
        self._checked_out = ""
        try:
            if self.tree.exists():
                shutil.rmtree(self.tree)
        except OSError as error:
            raise errors.from_os_error(error, doing=f"remove the clone {self.tree}") from error

    def _remove_stale_locks(self) -> None:
        # Left by a git that was killed. Nobody else works here while we hold our own lock.
        for stale in (self.tree / ".git").rglob("*.lock"):
            stale.unlink(missing_ok=True)

    def _git(self, *arguments: str) -> str:
        places = (f"--git-dir={self.tree / '.git'}", f"--work-tree={self.tree}")
        return self._run((*places, *arguments))

    def _run(self, arguments: tuple[str, ...]) -> str:
        settings = [*_SETTINGS, *self._credential_settings()]
        command = ("git", *(item for setting in settings for item in ("-c", setting)), *arguments)
        verb = next(item for item in arguments if not item.startswith("-"))
        try:
            completed = commands.run(
                command,
                timeout=self._timeout,
                expected=range(-64, 256),
                cancel=self._cancel,
                environment=_environment(),
            )
        except errors.Timeout:
            raise errors.Timeout(
                f"git {verb} of {self._remote.url} did not end within {self._timeout:g} s.",
                hint="Check the server and the network.",
            ) from None
        if completed.status:
            raise errors.CommandFailed(
                f"git {verb} of {self._remote.url} failed: {_said(completed)}"
            )
        return completed.stdout

    def _credential_settings(self) -> tuple[str, ...]:
        if not self._remote.credentials:
            return ()
        file = self._directory / "credentials"
        # Written each time: git takes out what a server has refused once.
        try:
            with open(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as store:
                store.write(f"{self._remote.credentials}\n")
        except OSError as error:
            raise errors.from_os_error(error, doing=f"write {file}") from error
        # The first, empty one puts out helpers that the user has set up for other servers.
        return "credential.helper=", f"credential.helper=store --file={shlex.quote(str(file))}"


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        "GIT_ASKPASS": "",
        **inherited,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(SCHEMES),
        "GIT_LFS_SKIP_SMUDGE": "1",
    }


def _said(completed: commands.Completed) -> str:
    """The line of git that says why."""
    lines = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return redact(next(iter(fatal or lines), f"status {completed.status}"))
