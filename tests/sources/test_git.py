"""Manifests in real git repositories."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from backends import errors
from controller.sources.base import Snapshot
from controller.sources.directory import DirectorySource
from controller.sources.git import GitSource, Remote, git_source, head_commit, redact

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

Text = Callable[..., str]


class Repository:
    """A repository of the user, with a working copy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        settings = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
        done = subprocess.run(
            ["git", *settings, *arguments],
            cwd=self.path,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        )
        return done.stdout.strip()

    def commit(self, **files: str | None) -> str:
        """Write files (``a__b`` is a/b.yaml; None removes) and commit them; the commit."""
        for name, text in files.items():
            path = self.path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        return self.commit_all()

    def commit_all(self) -> str:
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message=change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "a repository")


@pytest.fixture
def open_source(tmp_path: Path, repository: Repository) -> Callable[..., GitSource]:
    def make(location: str = "", *, branch: str = "main", **options: Any) -> GitSource:
        source = git_source(
            location or str(repository.path),
            checkouts=tmp_path / "state/git",
            branch=branch,
            **options,
        )
        assert isinstance(source, GitSource)
        return source

    return make


def poll(source: GitSource) -> Snapshot | None:
    source.wake()
    return source.poll()


def snapshot_of(source: GitSource) -> Snapshot:
    found = poll(source)
    assert found is not None
    return found


def names(snapshot: Snapshot) -> list[str]:
    return sorted(item.metadata.name for item in snapshot.declared)


def test_a_branch_is_cloned_and_followed(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    first = repository.commit(one=pool_yaml("one"), deep__two=pool_yaml("two"))
    source = open_source()

    snapshot = snapshot_of(source)
    assert names(snapshot) == ["one", "two"]
    assert snapshot.complete
    assert snapshot.revision == first
    assert {item.file for item in snapshot.declared} == {"one.yaml", "deep/two.yaml"}

    assert poll(source) is None
    second = repository.commit(one=None, three=pool_yaml("three"))
    snapshot = snapshot_of(source)
    assert (names(snapshot), snapshot.revision) == (["three", "two"], second)


def test_fetches_are_an_interval_apart(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    repository.commit(one=pool_yaml("one"))
    source = open_source(interval=3600.0)
    assert source.poll() is not None
    repository.commit(two=pool_yaml("two"))
    assert source.poll() is None
    assert 3000 < source.delay() <= 3600


def test_other_branches_and_working_files_do_not_count(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    repository.commit(one=pool_yaml("one"))
    repository.git("checkout", "--quiet", "-b", "next")
    repository.commit(two=pool_yaml("two"))
    (repository.path / "loose.yaml").write_text(pool_yaml("loose"))
    assert names(snapshot_of(open_source(branch="main"))) == ["one"]
    assert names(snapshot_of(open_source(branch="next"))) == ["one", "two"]


def test_without_a_branch_a_server_chooses(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text, tmp_path: Path
) -> None:
    repository.commit(one=pool_yaml("one"))
    repository.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    assert names(snapshot_of(open_source(f"file://{tmp_path}/bare.git", branch=""))) == ["one"]
    assert names(snapshot_of(open_source(f"{tmp_path}/bare.git", branch=""))) == ["one"]


def test_a_rewritten_branch_is_followed(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    repository.commit(one=pool_yaml("one"))
    repository.commit(two=pool_yaml("two"))
    source = open_source()
    assert names(snapshot_of(source)) == ["one", "two"]
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    rewritten = repository.commit(three=pool_yaml("three"))
    snapshot = snapshot_of(source)
    assert (names(snapshot), snapshot.revision) == (["one", "three"], rewritten)


def test_an_unreachable_repository_keeps_the_last_good_commit(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    commit = repository.commit(one=pool_yaml("one"))
    source = open_source()
    snapshot_of(source)
    away = repository.path.with_name("away")
    repository.path.rename(away)

    failed = snapshot_of(source)
    assert names(failed) == ["one"]
    assert failed.revision == commit
    assert not failed.complete
    assert "git fetch of file://" in failed.reason
    assert poll(source) is None

    after_restart = snapshot_of(open_source())
    assert (names(after_restart), after_restart.complete) == (["one"], False)

    away.rename(repository.path)
    back = snapshot_of(source)
    assert (names(back), back.complete, back.reason) == (["one"], True, "")


def test_a_failure_is_tried_again_before_the_interval_and_less_and_less_often(
    tmp_path: Path, open_source: Callable[..., GitSource]
) -> None:
    source = open_source(f"file://{tmp_path}/nowhere", interval=100.0)
    delays = []
    for _ in range(5):
        poll(source)
        delays.append(round(source.delay() + 0.5))
    assert delays == [15, 30, 60, 100, 100]


def test_a_branch_that_is_not_there_is_told(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    repository.commit(one=pool_yaml("one"))
    snapshot = snapshot_of(open_source(branch="nope"))
    assert snapshot.declared == ()
    assert not snapshot.complete
    assert "refs/heads/nope" in snapshot.reason


def test_a_broken_file_forbids_pruning(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    repository.commit(one=pool_yaml("one"), two="kind: [")
    snapshot = snapshot_of(open_source())
    assert names(snapshot) == ["one"]
    assert [problem.file for problem in snapshot.problems] == ["two.yaml"]
    assert not snapshot.complete


def test_a_path_in_the_repository_is_all_that_counts(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text
) -> None:
    repository.commit(one=pool_yaml("one"), hosts__hv1__two=pool_yaml("two"))
    source = open_source(path="hosts/hv1")
    snapshot = snapshot_of(source)
    assert names(snapshot) == ["two"]
    assert source.origin.endswith("#main:hosts/hv1")
    missing = snapshot_of(open_source(path="hosts/hv2"))
    assert not missing.complete
    assert "no such file" in missing.reason


def test_links_do_not_lead_out_of_the_clone(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.yaml").write_text(pool_yaml("secret"))
    (repository.path / "folder").symlink_to(tmp_path / "outside")
    (repository.path / "file.yaml").symlink_to(tmp_path / "outside/secret.yaml")
    repository.commit(one=pool_yaml("one"))

    whole = snapshot_of(open_source())
    assert names(whole) == ["one"]
    assert sorted(problem.file for problem in whole.problems) == ["file.yaml", "folder"]

    part = snapshot_of(open_source(path="folder"))
    assert part.declared == ()
    assert "leads out of the source" in part.reason


def test_hooks_of_the_user_do_not_run(
    repository: Repository,
    open_source: Callable[..., GitSource],
    pool_yaml: Text,
    home: Path,
    tmp_path: Path,
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran-{name}'\n")
        (hooks / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n hooksPath = {hooks}\n fsmonitor = touch '{tmp_path}/ran-monitor'\n"
    )
    repository.commit(one=pool_yaml("one"))
    assert names(snapshot_of(open_source())) == ["one"]
    assert list(tmp_path.glob("ran-*")) == []


def test_what_others_leave_in_the_clone_goes(
    repository: Repository,
    open_source: Callable[..., GitSource],
    pool_yaml: Text,
    tmp_path: Path,
) -> None:
    repository.commit(one=pool_yaml("one"))
    snapshot_of(open_source())
    (tree,) = (tmp_path / "state/git").glob("*/tree")
    (tree / "one.yaml").write_text(pool_yaml("changed"))
    (tree / "stray.yaml").write_text(pool_yaml("stray"))
    (tree / ".git/index.lock").touch()
    assert names(snapshot_of(open_source())) == ["one"]


def test_a_damaged_clone_is_made_anew(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text, tmp_path: Path
) -> None:
    repository.commit(one=pool_yaml("one"))
    source = open_source()
    snapshot_of(source)
    (tree,) = (tmp_path / "state/git").glob("*/tree")
    for item in (tree / ".git/objects").rglob("*"):
        if item.is_file():
            item.chmod(0o600)
            item.write_bytes(b"rubbish")
    repository.commit(two=pool_yaml("two"))
    snapshot = snapshot_of(source)
    assert (names(snapshot), snapshot.complete) == (["one", "two"], True)


def test_a_clone_that_was_begun_and_not_finished_is_made_anew(
    repository: Repository, open_source: Callable[..., GitSource], pool_yaml: Text, tmp_path: Path
) -> None:
    repository.commit(one=pool_yaml("one"))
    snapshot_of(open_source())
    (tree,) = (tmp_path / "state/git").glob("*/tree")
    (tree / ".git/HEAD").unlink()
    assert snapshot_of(open_source()).complete


def test_a_repository_that_does_not_answer_ends_with_its_deadline(
    open_source: Callable[..., GitSource],
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            source = open_source(f"http://127.0.0.1:{server.server_port}/x.git", timeout=1.0)
            snapshot = snapshot_of(source)
        finally:
            Silent.released.set()
            server.shutdown()
            thread.join()
    assert not snapshot.complete
    assert "did not end within 1 s" in snapshot.reason


class Silent(http.server.BaseHTTPRequestHandler):
    released = threading.Event()

    def do_GET(self) -> None:
        self.released.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


class GitOverHttp(http.server.BaseHTTPRequestHandler):
    """git-http-backend(1) behind a password."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        self.asked.append(given)
        wanted = base64.b64encode(b"reader:s3cret/p@ss").decode()
        if given != f"Basic {wanted}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        self._answer()

    do_POST = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(url.path),
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, env=environment, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200 OK").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(repository: Repository, tmp_path: Path, pool_yaml: Text) -> Iterator[str]:
    """Where a server has the repository, with one pool in it."""
    repository.commit(one=pool_yaml("one"))
    handler = type("Handler", (GitOverHttp,), {"root": tmp_path, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}/a%20repository/.git"
        server.shutdown()
        thread.join()


def has_http() -> bool:
    where = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True)
    needed = ("git-http-backend", "git-remote-http")
    return all((Path(where.stdout.strip()) / name).exists() for name in needed)


@pytest.mark.skipif(not has_http(), reason="git-http-backend or git-remote-http is missing")
def test_credentials_of_a_url_reach_the_server_and_nothing_else(
    open_source: Callable[..., GitSource],
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = watched_commands(monkeypatch)
    source = open_source(f"http://reader:s3cret%2Fp%40ss@{server}")
    snapshot = snapshot_of(source)
    assert (names(snapshot), snapshot.reason) == (["one"], "")
    assert source.origin == f"git:http://{server}#main"
    assert commands
    assert "s3cret" not in str(commands)
    holders = [
        path
        for path in (tmp_path / "state").rglob("*")
        if path.is_file() and b"s3cret" in path.read_bytes()
    ]
    assert [(path.name, path.stat().st_mode & 0o777) for path in holders] == [
        ("credentials", 0o600)
    ]


@pytest.mark.skipif(not has_http(), reason="git-http-backend or git-remote-http is missing")
def test_a_refused_password_is_told_without_it_and_without_asking(
    open_source: Callable[..., GitSource], server: str
) -> None:
    wrong = snapshot_of(open_source(f"http://reader:wr0ng@{server}"))
    assert not wrong.complete
    assert "wr0ng" not in str(wrong)
    assert "Authentication failed" in wrong.reason
    none = snapshot_of(open_source(f"http://{server}"))
    assert "could not read Username" in none.reason


def watched_commands(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments and variables of all processes that are started from now on."""
    started: list[Any] = []
    original = subprocess.Popen.__init__

    def record(self: Any, args: Any, *more: Any, **named: Any) -> None:
        if "http-backend" not in args:
            started.append((args, named.get("env")))
        original(self, args, *more, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", record)
    return started


@pytest.mark.parametrize(
    "location",
    [
        "",
        "--upload-pack=touch /tmp/x",
        "-oProxyCommand=x",
        "ext::sh -c true",
        "ext://host/x",
        "ftp://host/x",
        "ssh://-oProxyCommand=x/y",
        "https://",
        "https:///x",
        "https://host:port/x",
        "https://host/a b",
        "https://host/a\nb",
    ],
)
def test_a_location_that_git_could_misread_is_refused(location: str) -> None:
    with pytest.raises(errors.InvalidSpec, match="git URL"):
        Remote.parse(location)


@pytest.mark.parametrize(
    "branch", ["-x", "--all", "a..b", "a b", "a:b", "a^", "/a", "a.lock", "a@{1}", "a\n"]
)
def test_a_branch_that_is_no_name_is_refused(branch: str) -> None:
    with pytest.raises(errors.InvalidSpec, match="branch"):
        Remote.parse("https://host/x", branch=branch)


@pytest.mark.parametrize("path", ["/etc", "..", "a/../../b", ".git", "a/.git/x", "a\0b"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(errors.InvalidSpec, match="path"):
        Remote.parse("https://host/x", path=path)


@pytest.mark.parametrize(
    ("location", "url", "credentials"),
    [
        ("https://host/x.git", "https://host/x.git", ""),
        ("https://u:p@host:8443/x", "https://host:8443/x", "https://u:p@host:8443"),
        ("https://token@host/x", "https://host/x", "https://token:@host"),
        ("ssh://git:p@host/x", "ssh://git@host/x", ""),
        ("git@host:team/x.git", "git@host:team/x.git", ""),
        ("/srv/x y", "file:///srv/x%20y", ""),
    ],
)
def test_locations_are_parted_from_their_credentials(
    location: str, url: str, credentials: str
) -> None:
    remote = Remote.parse(location)
    assert (remote.url, remote.credentials) == (url, credentials)
    assert not credentials or credentials not in repr(remote)


@pytest.mark.parametrize(
    "location",
    [
        "https://u:hidden@host:bad/x",
        "https://u:hid den@host/x",
        "ftp://u:hidden@host/x",
        "https://u:hidden@host/a b",
        "https://u:hidden@/x",
    ],
)
def test_a_refusal_does_not_show_the_password(location: str) -> None:
    with pytest.raises(errors.InvalidSpec) as refused:
        Remote.parse(location)
    assert "hid" not in str(refused.value)


def test_urls_in_text_are_redacted() -> None:
    said = "fatal: unable to access 'https://u:p@ss@host/x/': no; see ssh://git@h/y"
    assert redact(said) == "fatal: unable to access 'https://***@host/x/': no; see ssh://***@h/y"


def test_a_working_copy_is_read_and_left_alone(repository: Repository, pool_yaml: Text) -> None:
    commit = repository.commit(one=pool_yaml("one"))
    (repository.path / "two.yaml").write_text(pool_yaml("two"))
    before = repository.git("status", "--porcelain")
    source = git_source(str(repository.path), checkouts=repository.path.with_name("unused"))
    assert isinstance(source, DirectorySource)

    snapshot = source.poll()

    assert snapshot is not None
    assert names(snapshot) == ["one", "two"]
    assert snapshot.revision == commit == head_commit(repository.path)
    assert snapshot.complete
    assert repository.git("status", "--porcelain") == before
    assert not repository.path.with_name("unused").exists()

    later = repository.commit(three=pool_yaml("three"))
    snapshot = source.poll()
    assert snapshot is not None
    assert (names(snapshot), snapshot.revision) == (["one", "three", "two"], later)


def test_the_commit_of_a_working_copy_is_found_however_it_is_kept(
    repository: Repository, tmp_path: Path, pool_yaml: Text
) -> None:
    assert head_commit(repository.path) == ""
    commit = repository.commit(one=pool_yaml("one"))
    assert head_commit(repository.path) == commit
    repository.git("pack-refs", "--all")
    assert head_commit(repository.path) == commit
    repository.git("checkout", "--quiet", "--detach")
    assert head_commit(repository.path) == commit
    repository.git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    assert head_commit(tmp_path / "side") == commit
    assert head_commit(tmp_path) == ""
