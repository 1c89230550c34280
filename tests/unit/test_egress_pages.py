"""Routes, index pages and the host's configuration: pure parts of the package proxy."""

import base64
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.isolation.egress import pages
from roost.isolation.egress.routes import (
    Package,
    PackageFile,
    ProjectFile,
    ProjectPage,
    file_path,
    parse_route,
    room_environment,
    tarball_url,
)
from roost.isolation.egress.upstreams import read_upstreams, upstream
from roost.model.errors import InvalidArgument, Unavailable

SHA = "ab" * 32


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/pypi/simple/six/", ProjectPage(project="six")),
        ("/pypi/simple/Zope.Interface", ProjectPage(project="zope-interface")),
        ("/pypi/files/six/six-1.tar.gz", ProjectFile(project="six", filename="six-1.tar.gz")),
        ("/pypi/files/t/t-1%2Bcpu-py3.whl", ProjectFile(project="t", filename="t-1+cpu-py3.whl")),
        (
            "/pypi/files/six/six-1-py3.whl.metadata",
            ProjectFile(project="six", filename="six-1-py3.whl", metadata=True),
        ),
        ("/npm/is-odd", Package(name="is-odd")),
        ("/npm/@scope%2fname", Package(name="@scope/name")),
        ("/npm/@scope/name", Package(name="@scope/name")),
        ("/npm/is-odd/-/is-odd-1.0.0.tgz", PackageFile(name="is-odd", filename="is-odd-1.0.0.tgz")),
        ("/npm/@s/n/-/n-1.tgz", PackageFile(name="@s/n", filename="n-1.tgz")),
    ],
)
def test_routes(target, route):
    assert parse_route(target) == route


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/pypi/simple/",
        "/pypi/simple/../../etc/passwd",
        "/pypi/simple/%2e%2e/",
        "/pypi/simple/a%2Fb/",
        "/pypi/simple/six//",
        "/pypi/simple/six/?x",
        "/pypi/simple/six\r\nHost: evil/",
        "/pypi/simple/.six/",
        "/pypi/files/six/../x",
        "/pypi/files/six/a%2Fb",
        "/pypi/files/six/a%5Cb",
        "/pypi/files/six/.hidden",
        "/pypi/files/six",
        "/npm/-/v1/search",
        "/npm/-/npm/v1/security/audits",
        "/npm/@scope",
        "/npm/a/b",
        "/npm/@a/b/c",
        "/npm/@a%252fb",
        "/npm/a/-/../../b.tgz",
        "/npm/a/-/b.zip",
        "/npm/a%2fb",
        "http://evil.example/pypi/simple/six/",
        "//evil.example/pypi/simple/six/",
        "/PYPI/simple/six/",
        "/pypi/simple/" + "a" * 300 + "/",
    ],
)
def test_everything_else_is_no_route(target):
    assert parse_route(target) is None


@given(
    st.text(alphabet="/.%@-_abc25EfF\\?#:", max_size=30), st.sampled_from(["/pypi/simple/", "/pypi/files/", "/npm/"])
)
def test_no_route_names_anything_but_one_plain_component(tail, start):
    route = parse_route(start + tail)
    if route is not None:
        parts = [getattr(route, name, "x") for name in ("project", "filename", "name")]
        for part in parts:
            plain = part.partition("/")[2] if part.startswith("@") else part
            assert "/" not in plain
            assert "\\" not in plain
            assert plain not in ("", ".", "..")


PAGE = f"""<html><head><base href="/files/"></head><body>
<a href="../packages/Six-1-py3-none-any.whl#sha256={SHA}" data-requires-python="&gt;=3.8"
   data-dist-info-metadata="sha256={SHA}" data-yanked="broken">Six</a>
<a href="https://other.example/x/six-1%2Blocal.tar.gz#md5=00">x</a>
<a name="nothing">no link</a></body></html>"""


def test_an_html_page_is_read():
    first, second = pages.read_simple(PAGE.encode(), "text/html", "https://index.example/simple/six/")
    assert first.filename == "Six-1-py3-none-any.whl"
    assert first.url == "https://index.example/packages/Six-1-py3-none-any.whl"
    assert first.digest == pages.Digest(algorithm="sha256", value=SHA) == first.metadata
    assert (first.requires_python, first.yanked) == (">=3.8", "broken")
    assert (second.filename, second.digest) == ("six-1+local.tar.gz", None)


def test_what_is_written_reads_back_in_both_forms():
    files = pages.read_simple(PAGE.encode(), "text/html", "https://index.example/simple/six/")
    for written, kind in (
        (pages.write_simple_json("six", files), pages.SIMPLE_JSON),
        (pages.write_simple_html("six", files), "text/html; charset=utf-8"),
    ):
        again = pages.read_simple(written, kind, "http://127.0.0.1:3128/pypi/simple/six/")
        assert [urlsplit(f.url).path for f in again] == [file_path("six", f.filename) for f in files]
        assert [(f.filename, f.digest, f.metadata, f.requires_python, f.yanked) for f in again] == [
            (f.filename, f.digest, f.metadata, f.requires_python, f.yanked) for f in files
        ]


def test_a_page_cannot_carry_markup_or_odd_names_into_the_room():
    listed = [
        {"url": 'https://i.example/"><script>.whl', "hashes": {}},
        {"url": "https://i.example/fine-1.whl", "requires-python": '"><script>', "hashes": {"sha256": "short"}},
        {"url": 7},
        "text",
    ]
    files = pages.read_simple(json.dumps({"files": listed}).encode(), pages.SIMPLE_JSON, "https://i.example/simple/p/")
    written = pages.write_simple_html("p", files).decode()
    assert "<script>" not in written
    assert written.count("<a ") == 1
    assert files[1].digest is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"files": 3}', b"[" * 100_000])
def test_what_is_no_page_is_the_indexes_fault(content):
    with pytest.raises(Unavailable):
        pages.read_simple(content, pages.SIMPLE_JSON, "https://i.example/")


def test_an_npm_document_is_rewritten():
    digest = bytes(range(64))
    document = {
        "name": "@s/n",
        "dist-tags": {"latest": "2.0.0", "old": "1.0.0"},
        "versions": {
            "1.0.0": {"dist": {"tarball": "https://evil.example/n-1.0.0.tgz", "integrity": ""}},
            "2.0.0": {
                "dist": {
                    "tarball": "https://r.example/@s/n/-/n-2.0.0.tgz",
                    "integrity": "sha1-AAAA sha512-" + base64.b64encode(digest).decode(),
                },
                "dependencies": {"a": "1"},
            },
            "3.0.0": "no version",
        },
    }
    read = pages.read_npm(json.dumps(document).encode(), "@s/n", lambda url: url.startswith("https://r.example/"))
    body = json.loads(read.body)
    assert list(body["versions"]) == ["2.0.0"]
    assert body["versions"]["2.0.0"]["dist"]["tarball"] == tarball_url("@s/n", "n-2.0.0.tgz")
    assert body["versions"]["2.0.0"]["dependencies"] == {"a": "1"}
    assert body["dist-tags"] == {"latest": "2.0.0"}
    assert read.files["n-2.0.0.tgz"].digest == pages.Digest(algorithm="sha512", value=digest.hex())
    with pytest.raises(Unavailable, match="another"):
        pages.read_npm(json.dumps(document).encode(), "another", lambda _: True)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://pypi.org/x", True),
        ("https://files.pythonhosted.org/x", True),
        ("https://FILES.pythonhosted.org:443/x", True),
        ("http://files.pythonhosted.org/x", False),
        ("https://files.pythonhosted.org:8443/x", False),
        ("https://files.pythonhosted.org.evil.example/x", False),
        ("https://pypi.org@evil.example/x", False),
        ("https://user@files.pythonhosted.org/x", False),
        ("https://pypi.org:99999999/x", False),
        ("http://pypi.org/x", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("file:///etc/passwd", False),
        ("/relative", False),
        ("", False),
    ],
)
def test_only_the_indexs_own_hosts_are_called(url, allowed):
    assert upstream("https://pypi.org/simple").allows(url) is allowed


def test_credentials_are_taken_out_of_the_address():
    private = upstream("https://user:p%40ss@index.example:8443/simple")
    assert private.url == "https://index.example:8443/simple/"
    assert private.auth == ("user", "p@ss")
    assert "p@ss" not in repr(private)
    assert private.is_own("https://index.example:8443/x")
    assert not private.is_own("https://index.example/x")
    for bad in ("file:///opt/simple", "ftp://x/", "nonsense", ""):
        with pytest.raises(InvalidArgument, match="http"):
            upstream(bad)


def test_the_public_indexes_unless_configured(tmp_path):
    found = read_upstreams({}, root=tmp_path, prefix=tmp_path)
    assert found.pypi.url == "https://pypi.org/simple/"
    assert found.npm.url == "https://registry.npmjs.org/"
    assert found.pypi.auth is None


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_pips_configuration_in_pips_order(tmp_path):
    home = tmp_path / "home"
    write(tmp_path / "etc/pip.conf", "[global]\nindex-url = https://global.example/simple\ncert = /etc/ca.pem\n")
    environment = {"HOME": str(home)}
    found = read_upstreams(environment, root=tmp_path, prefix=tmp_path / "venv")
    assert found.pypi.url == "https://global.example/simple/"
    assert found.authorities == (Path("/etc/ca.pem"),)
    write(home / ".config/pip/pip.conf", "[global]\nindex_url = https://u:p@user.example/simple\n")
    found = read_upstreams(environment, root=tmp_path, prefix=tmp_path / "venv")
    assert (found.pypi.url, found.pypi.auth) == ("https://user.example/simple/", ("u", "p"))
    write(tmp_path / "venv/pip.conf", "[install]\nindex-url = https://site.example/simple\n")
    assert read_upstreams(environment, root=tmp_path, prefix=tmp_path / "venv").pypi.url.startswith("https://site.")
    write(home / ".pip/pip.conf", "this is no ini file")
    environment["PIP_INDEX_URL"] = "https://environment.example/simple"
    found = read_upstreams(environment, root=tmp_path, prefix=tmp_path / "venv")
    assert found.pypi.url == "https://environment.example/simple/"
    del environment["PIP_INDEX_URL"]
    environment["PIP_CONFIG_FILE"] = "/dev/null"
    assert read_upstreams(environment, root=tmp_path, prefix=tmp_path / "venv").pypi.url == "https://pypi.org/simple/"


def test_npms_configuration(tmp_path):
    home = tmp_path / "home"
    environment = {"HOME": str(home), "TOKEN": "secret"}
    write(
        home / ".npmrc",
        "; note\nregistry = https://npm.example/repo\n//npm.example/repo/:_authToken=${TOKEN}\ncafile=/etc/npm.pem\n",
    )
    found = read_upstreams(environment, root=tmp_path, prefix=tmp_path)
    assert found.npm.url == "https://npm.example/repo/"
    assert found.npm.headers == {"authorization": "Bearer secret"}
    assert Path("/etc/npm.pem") in found.authorities
    environment["npm_config_registry"] = "https://other.example/"
    found = read_upstreams(environment, root=tmp_path, prefix=tmp_path)
    assert (found.npm.url, found.npm.headers) == ("https://other.example/", {})


def test_a_room_is_told_of_its_own_indexes_alone():
    assert room_environment(()) == {}
    assert not any(name.lower().startswith("npm") for name in room_environment(("pypi",)))
    both = room_environment(("pypi", "npm"))
    assert both["PIP_INDEX_URL"] == "http://127.0.0.1:3128/pypi/simple/"
    assert both["npm_config_registry"] == "http://127.0.0.1:3128/npm/"
