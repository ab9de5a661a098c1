"""Who gets the live page: on loopback everybody of this machine, elsewhere who has the token."""

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import fluffle_cli.dashboard
import fluffle_cli.dashboard.server as server_module
from fluffle.errors import ConfigError
from fluffle_cli.dashboard.server import MAX_CONNECTIONS, PageServer, is_loopback, serving, token_for
from fluffle_cli.watching.view import FederationView, Worker

EVERYWHERE = "0.0.0.0"
ASSETS = Path(fluffle_cli.dashboard.__file__).parent / "assets"
FILES = {
    "/": "text/html; charset=utf-8",
    "/style.css": "text/css; charset=utf-8",
    "/icon.svg": "image/svg+xml",
    **dict.fromkeys(
        [f"/{name}.js" for name in ("app", "charts", "page", "quality", "text", "workers")],
        "text/javascript; charset=utf-8",
    ),
    "/vendor/uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "/vendor/uPlot.min.css": "text/css; charset=utf-8",
}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: str


def view() -> FederationView:
    return FederationView(
        federation="digits", taken_at=0.0, trouble="</script>", workers={"site-1": Worker(name="site-1")}
    )


def ask(server: PageServer, path: str, *, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read().decode())
    finally:
        connection.close()


def test_a_path_that_cannot_be_read_is_a_bad_request_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        serving(PageServer(view, "127.0.0.1", 0)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as browser,
    ):
        browser.sendall(b"GET http://[/ HTTP/1.0\r\n\r\n")
        answer = browser.recv(100)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert capsys.readouterr().err == ""


def test_on_loopback_the_page_and_its_files_are_there_for_whoever_asks() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server:
        answers = {path: ask(server, path) for path in FILES}

        assert server.url == f"http://127.0.0.1:{server.port}/"
    assert {answer.status for answer in answers.values()} == {200}
    assert {path: answer.headers["Content-Type"] for path, answer in answers.items()} == FILES
    for answer in answers.values():
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    page = answers["/"].body
    assert "style=" not in page
    assert "onclick" not in page
    assert page.count("<script") == page.count("<script src=") == 2
    assert "http" not in page


def test_no_script_of_ours_writes_markup() -> None:
    for script in ASSETS.glob("*.js"):
        text = script.read_text()
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert way not in text, script.name


def test_a_name_of_somebodys_that_leads_to_loopback_is_turned_away() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server:
        statuses = {
            host: ask(server, "/api/state", Host=host).status
            for host in (
                "evil.example",
                "127.0.0.1.evil.example:80",
                "[::1",
                "localhost:8089",
                "[::1]:8089",
                "",
            )
        }

    assert statuses == {
        "evil.example": 421,
        "127.0.0.1.evil.example:80": 421,
        "[::1": 421,
        "localhost:8089": 200,
        "[::1]:8089": 200,
        "": 421,
    }


def test_elsewhere_the_token_in_the_address_is_exchanged_for_a_cookie() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server:
        assert server.token is None
        # Nothing in these tests listens where others reach it.
        server.token = token_for(EVERYWHERE)
        assert server.token is not None
        path = server.url.removeprefix(f"http://127.0.0.1:{server.port}")

        without = [ask(server, each) for each in ("/", "/app.js", "/api/state", "/?token=wrong", "/?token=")]
        wrong = ask(server, "/", Cookie=f"{server.cookie}=wrong")
        let_in = ask(server, path)
        cookie = let_in.headers["Set-Cookie"]
        inside = ask(server, "/api/state", Cookie=cookie.partition(";")[0], Host="any.example")

    assert {answer.status for answer in (*without, wrong)} == {403}
    assert server.token not in "".join(answer.body for answer in without)
    assert (let_in.status, let_in.headers["Location"]) == (303, "/")
    assert "HttpOnly" in cookie
    assert "SameSite" in cookie
    assert json.loads(inside.body)["trouble"] == "</script>"


def test_there_is_nothing_to_change_and_nothing_beside_the_page() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server:
        changing = {
            method: ask(server, "/api/state", method=method).status for method in ("POST", "PUT", "DELETE")
        }
        others = [
            ask(server, path).status
            for path in ("/../server.py", "/assets/app.js", "/vendor/", "/%2e%2e/server.py")
        ]

    assert set(changing.values()) == {405}
    assert set(others) == {404}


def test_head_is_answered_as_get_is_without_the_body() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server:
        whole, heads = (
            {path: ask(server, path, method=method) for path in ("/", "/api/state", "/no")}
            for method in ("GET", "HEAD")
        )

    for path, head in heads.items():
        assert (head.status, head.body) == (whole[path].status, "")
        assert head.headers["Content-Length"] == str(len(whole[path].body.encode()))


def test_which_workers_are_wanted_is_read_with_care() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server:
        good = [
            json.loads(ask(server, f"/api/workers?sort=updates&order=descending&page=2&search={sought}").body)
            for sought in ("SITE", "x" * 300)
        ]
        bad = [
            ask(server, f"/api/workers?{query}").status
            for query in ("sort=__class__", "page=one", "page=" + "9" * 5000)
        ]

    assert [(page["found"], page["workers"], page["page"]) for page in good] == [(1, 1, 0), (0, 1, 0)]
    assert bad == [400, 400, 400]


def test_a_connection_over_which_no_request_comes_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_LIFE_S", 0.2)

    with (
        serving(PageServer(view, "127.0.0.1", 0)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as browser,
    ):
        browser.sendall(b"GET / HTTP/1.1\r\n")
        with suppress(ConnectionResetError):
            assert browser.recv(1) == b""


def test_too_many_connections_at_a_time_are_told_to_come_again() -> None:
    with serving(PageServer(view, "127.0.0.1", 0)) as server, ExitStack() as browsers:
        for _ in range(MAX_CONNECTIONS):
            browsers.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))

        assert ask(server, "/").status == 503
        browsers.close()
        assert wait_for_status(server, 200)


def wait_for_status(server: PageServer, status: int) -> bool:
    """Ask until the answer is this one, for at most 30 s."""
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        if ask(server, "/").status == status:
            return True
    return False


def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port}"):
            PageServer(view, "127.0.0.1", port)


def test_only_the_page_itself_loads_the_web_server() -> None:
    program = "import sys, fluffle_cli.main; print({'starlette', 'uvicorn'} & set(sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout == "set()\n"


def test_what_only_this_machine_reaches_is_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in (EVERYWHERE, "::", "192.0.2.7", "example.org", ""))
