"""The page at `/`: what is sent, to whom, and that it needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from importlib.resources import files
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from langchain_pos import ChatParallelReasoning, demo_question
from langchain_pos.server import create_app
from langchain_pos.server.page import PAGE_PATHS
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import URL

FOLDER = files("langchain_pos.server").joinpath("static")
PLACES = (*FOLDER.iterdir(), *FOLDER.joinpath("vendor").iterdir())
TEXTS = {
    f"vendor/{each.name}" if "marked." in each.name else each.name: each.read_text("utf-8")
    for each in PLACES
    if each.is_file()
}
OWN = sorted(name for name in TEXTS if not name.startswith("vendor/"))
LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def chat() -> ChatParallelReasoning:
    """Never asked."""
    return scripted_chat({})[0]


@pytest.fixture(scope="module")
def client(chat: ChatParallelReasoning) -> Iterator[TestClient]:
    """Of a server without a key."""
    with TestClient(create_app(chat), base_url=LOCAL) as found:
        yield found


# ----------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_every_answer_is_locked_down(client: TestClient, path: str) -> None:
    """Nothing from elsewhere, nothing inline, no frames, no sniffing, no referrer."""
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert {part.split(" ", 1)[1] for part in policy} <= {"'none'", "'self'", "'script'"}
    for wanted in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
        assert wanted in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-cache"
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    kind = kinds.get(Path(path).suffix, "text/html")
    assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_what_a_browser_has_is_not_sent_again(client: TestClient, path: str) -> None:
    """By the ETag, also a weak one or one of several; another one gets the file."""
    answer = client.get(path)
    etag = answer.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-security-policy" in again.headers
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == answer.content
    assert client.head(path).headers["etag"] == etag
    assert client.post(path).status_code == 405


def test_etags_differ() -> None:
    """With the content: also between a server that wants a key and one that does not."""
    chat, _ = scripted_chat({})
    open_, keyed = (create_app(chat, api_key=key) for key in (None, "secret"))
    with TestClient(open_, base_url=LOCAL) as one, TestClient(keyed, base_url=LOCAL) as other:
        assert one.get("/").headers["etag"] != other.get("/").headers["etag"]
        assert len({one.get(path).headers["etag"] for path in PAGE_PATHS}) == len(PAGE_PATHS)


def test_the_demo_question_is_at_hand(client: TestClient) -> None:
    """Escaped, for the example of the shipped model; and no placeholder is left."""
    page = client.get("/").text
    filled = re.search(r'<template id="demo-question">(.*?)</template>', page, re.DOTALL)
    assert filled is not None
    assert unescape(filled[1]) == demo_question()
    assert "'" not in filled[1], "it is escaped"
    assert "$" not in page
    assert 'data-wants-key="no"' in page


def test_the_shipped_model_is_listed_as_a_demonstration(client: TestClient) -> None:
    """Another model is not; that is what the page's banner goes by."""
    assert "demonstration" not in client.get("/v1/models").json()["data"][0]
    with TestClient(create_app(ChatParallelReasoning()), base_url=LOCAL) as shipped:
        assert shipped.get("/v1/models").json()["data"][0]["demonstration"] is True


# ---------------------------------------------------------------------------- who may read it


def test_without_a_key_only_this_machine_reads_it(client: TestClient) -> None:
    """A web page whose name points here gets neither the page nor its files."""
    for path in PAGE_PATHS:
        for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""):
            refused = client.get(path, headers={"Host": host})
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "wrong_host"
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
            assert client.get(path, headers={"Host": host}).status_code == 200


def test_with_a_key_the_page_alone_is_read_without_it(chat: ChatParallelReasoning) -> None:
    """Under any name, as with a key everywhere; all else wants the key, whatever its spelling."""
    with TestClient(create_app(chat, api_key="secret"), base_url="http://any.example") as client:
        for path in PAGE_PATHS:
            assert client.get(path).status_code == 200
        assert 'data-wants-key="yes"' in client.get("/").text
        others = ["/page", "/page/", "/page/other.js", "/page/../metrics", "/page/page.js/"]
        others += ["/?/../metrics", "/v1/models", "/metrics", "/page/%2e%2e/v1/models"]
        for path in others:
            found = client.get(path)
            assert found.status_code == (200 if path.startswith("/?") else 401), path
            assert "langchain_pos_requests" not in found.text
        assert client.post(URL, json={}).status_code == 401


def test_other_sites_read_and_ask_nothing(client: TestClient) -> None:
    """No answer has a CORS header, so a browser shows none to other sites and asks for none."""
    cross = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "*"}
    answers = [client.get(path, headers=cross) for path in (*PAGE_PATHS, "/v1/models")]
    answers.append(client.options(URL, headers={**cross, **asking}))
    assert answers[-1].status_code == 405
    plain = {**cross, "Content-Type": "text/plain"}  # what a browser sends without asking first
    answers.append(client.post(URL, content=b"{}", headers=plain))
    assert answers[-1].status_code == 415
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_server_without_the_page(chat: ChatParallelReasoning) -> None:
    """`page=False`: its paths are unknown, and with a key they want it like others."""
    with TestClient(create_app(chat, page=False), base_url=LOCAL) as client:
        for path in PAGE_PATHS:
            found = client.get(path)
            assert found.status_code == 404
            assert "page at /" not in found.json()["error"]["message"]
    keyed = create_app(chat, page=False, api_key="secret")
    with TestClient(keyed, base_url=LOCAL) as client:
        assert client.get("/").status_code == 401


def test_an_unknown_path_names_the_page(client: TestClient) -> None:
    """Beside the API's own paths."""
    assert "a page at /" in client.get("/nowhere").json()["error"]["message"]


# ------------------------------------------------------------------------------- the files


def test_every_file_of_the_folder_is_served() -> None:
    """None is forgotten, none is missing; licences lie beside what they are for."""
    served = {f"/page/{name}" for name in TEXTS if not name.endswith((".html", ".md"))}
    assert served == PAGE_PATHS - {"/"}
    assert "MIT" in TEXTS["vendor/marked.js"][:400]
    assert "Permission is hereby granted" in TEXTS["vendor/marked.LICENSE.md"]


@pytest.mark.parametrize("name", OWN)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    """No address of another host, no fonts, no imports but the folder's own."""
    text = TEXTS[name].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//\w+\.\w+|@import|url\(", text)
    for target in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert f"/{target}" in PAGE_PATHS
    for target in re.findall(r'from "\./([^"]*)"', text):
        assert f"/page/{target}" in PAGE_PATHS


@pytest.mark.parametrize("name", [name for name in sorted(TEXTS) if not name.endswith(".md")])
def test_no_text_becomes_markup_or_code(name: str) -> None:
    """No sink that parses, no inline script, style or handler; nothing that loads by itself."""
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc"
    assert not re.search(sinks, TEXTS[name])
    if name.startswith("vendor/"):
        assert not re.search(r"fetch\(|XMLHttpRequest|\bimport\b|document\.|window\.", TEXTS[name])
    if name.endswith("html"):
        inline = r"\son\w+=|\sstyle=|<style|<script(?! type=\"module\" src=)"
        assert not re.search(inline, TEXTS[name])


@pytest.mark.parametrize("name", OWN)
def test_a_file_has_one_subject(name: str) -> None:
    """Under 400 lines."""
    assert TEXTS[name].count("\n") < 400


def test_the_wheel_has_the_files() -> None:
    """As hatchling chooses them."""
    wheel = pytest.importorskip(
        "hatchling.builders.wheel", reason="hatchling is not installed: pip install hatchling"
    )
    root = Path(__file__).parents[2]
    builder = wheel.WheelBuilder(str(root))
    with builder.config.set_build_data({"artifacts": [], "force_include": {}}):
        included = {file.distribution_path for file in builder.recurse_included_files()}
    assert {f"langchain_pos/server/static/{name}" for name in TEXTS} <= included
