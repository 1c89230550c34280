"""Which names and addresses rules let a room reach, and what TLS says before it is encrypted."""

from __future__ import annotations

import ipaddress
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.isolation.egress import client_hello
from roost.isolation.egress.addresses import canonical, is_public
from roost.isolation.egress.client_hello import Hello, NoHello
from roost.isolation.egress.rules import Policy, Reach, Target, parse_networks, parse_rule, parse_rules
from roost.model.errors import InvalidArgument

PUBLIC = ipaddress.ip_address("93.184.215.14")


def target(name: str = "", port: int = 443, *, address: str = str(PUBLIC), method: str = "", path: str = "") -> Target:
    return Target(name=name, address=ipaddress.ip_address(address), port=port, method=method, path=path)


@pytest.mark.parametrize(
    ("host", "form"),
    [
        ("Example.COM", "example.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("a_b.example.com", "a_b.example.com"),
        ("192.0.2.1", ipaddress.ip_address("192.0.2.1")),
        ("[2001:DB8::1]", ipaddress.ip_address("2001:db8::1")),
        ("::ffff:127.0.0.1", ipaddress.ip_address("127.0.0.1")),
    ],
)
def test_a_host_has_one_form(host: str, form: object) -> None:
    assert canonical(host) == form


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "example.com.", "example..com", ".example.com", "exa mple.com", "example.com\0", "example.com\r\nx: y",
        "münchen.de", "example。com", "-a.com", "a-.com", "a" * 64 + ".com", "a." * 130 + "com", "2130706433", "0x7f.1",
        "0177.0.0.1", "127.1", "1.2.3.4.5", "127.0.0.0x1", "[example.com]", "[::1", "fe80::1%eth0", "example.com:80",
        "user@example.com", "example.com/path", "*.example.com",
    ],
)  # fmt: skip
def test_what_could_be_taken_for_another_host_is_none(host: str) -> None:
    with pytest.raises(InvalidArgument):
        canonical(host)


@given(st.text(max_size=30))
def test_whatever_is_asked_for_has_a_form_or_none(host: str) -> None:
    try:
        form = canonical(host)
    except InvalidArgument:
        return
    assert canonical(str(form)) == form
    assert str(form).isascii()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.255", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.100.100.200", "100.64.0.1", "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
        "2002:7f00:1::1", "2002:a00:1::1", "2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_the_internet_s(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert not Reach().has(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_an_operator_opens_networks() -> None:
    reach = Reach(private=parse_networks(["10.1.0.0/16", "::1"]))
    assert reach.has(ipaddress.ip_address("10.1.2.3"))
    assert reach.has(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert reach.has(ipaddress.ip_address("::1"))
    assert not reach.has(ipaddress.ip_address("10.2.0.1"))


@pytest.mark.parametrize(
    ("rule", "asked", "allowed"),
    [
        ("example.com", target("example.com"), True),
        ("example.com", target("example.com", 80), True),
        ("example.com", target("example.com", 8080), False),
        ("Example.com", target("example.com"), True),
        ("example.com", target("www.example.com"), False),
        ("example.com", target("example.com.evil.org"), False),
        ("example.com", target("notexample.com"), False),
        ("example.com", target(), False),  # by its address
        ("*.example.com", target("www.example.com"), True),
        ("*.example.com", target("a.b.example.com"), True),
        ("*.example.com", target("example.com"), False),
        ("*.example.com", target("evilexample.com"), False),
        ("*", target("anything.org", 22), True),
        ("*", target(port=22), True),
        ("*:443", target("anything.org"), True),
        ("*:443", target("anything.org", 80), False),
        ("example.com:5432", target("example.com", 5432), True),
        ("example.com:5432", target("example.com"), False),
        ("93.184.0.0/16", target("whoever.org", 22), True),
        ("93.184.215.14", target(port=1), True),
        ("93.184.215.15", target(), False),
        ("0.0.0.0/0", target("whoever.org"), True),
        ("0.0.0.0/0", target(address="2606:4700::1111"), False),
        ("GET example.com", target("example.com", 80, method="GET", path="/x"), True),
        ("GET example.com", target("example.com", 80, method="POST", path="/x"), False),
        ("GET,POST example.com", target("example.com", 80, method="POST", path="/x"), True),
        ("GET example.com", target("example.com", 443), False),  # in a tunnel nobody sees it
        ("example.com/v1/*", target("example.com", 80, method="GET", path="/v1/a/b"), True),
        ("example.com/v1/*", target("example.com", 80, method="GET", path="/v2"), False),
        ("example.com/v1/*", target("example.com", 80, method="GET", path="/v1/../admin"), False),
        ("example.com/v1/*", target("example.com", 80, method="GET", path="/v1/%2e%2e/admin"), False),
        ("example.com/v1/*", target("example.com", 80, method="GET", path="/v1/..%2fadmin"), False),
        ("example.com/v1/*", target("example.com", 80, method="GET", path="/v1/%252e%252e/admin"), False),
    ],
)
def test_what_a_rule_is_about(rule: str, asked: Target, allowed: bool) -> None:
    assert Policy(allow=parse_rules([rule])).allows(asked) is allowed
    assert Policy(deny=parse_rules([rule]), otherwise=parse_rules(["*"])).allows(asked) is not allowed


def test_allow_wins_over_deny_and_deny_over_what_is_usual() -> None:
    policy = Policy(
        allow=parse_rules(["good.example.com"]),
        deny=parse_rules(["*.example.com", "93.184.0.0/16"]),
        otherwise=parse_rules(["*"]),
    )
    assert policy.allows(target("good.example.com"))
    assert not policy.allows(target("bad.example.com", address="1.1.1.1"))
    assert not policy.allows(target("whoever.org"))  # it is in a network that is denied
    assert policy.allows(target("whoever.org", address="1.1.1.1"))


def test_no_rule_is_nothing() -> None:
    assert not Policy().opens
    assert not Policy(deny=parse_rules(["*"])).opens
    assert not Policy().allows(target("example.com"))
    assert Policy(allow=parse_rules(["example.com"])).opens


def test_only_names_that_rules_are_about_are_resolved() -> None:
    policy = Policy(allow=parse_rules(["*.example.com", "example.org:22"]))
    assert policy.may_resolve("www.example.com", 443)
    assert not policy.may_resolve("secret-data.evil.org", 443)
    assert not policy.may_resolve("example.org", 443)
    assert policy.may_resolve("example.org", 22)
    assert Policy(allow=parse_rules(["0.0.0.0/0"])).may_resolve("whoever.org", 1)


@pytest.mark.parametrize(
    "rule",
    [
        "", " ", "http://example.com", "example.com:", "example.com:0", "example.com:65536", "example.com:x", "a..b",
        "*example.com", "*.*.com", "exam*ple.com", "get example.com", "GET ", "10.0.0.0/33", "1.2.3.4:80",
        "x" * 301,
        "GET 10.0.0.0/8", "127.1", "[::1]:80",
    ],
)  # fmt: skip
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_rule(rule)


def test_there_are_so_many_rules_at_most() -> None:
    with pytest.raises(InvalidArgument, match="At most 1000"):
        parse_rules(["example.com"] * 1001)


def hello(name: str | None) -> bytes:
    """As OpenSSL makes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_the_name_in_a_hello() -> None:
    assert client_hello.read(hello("Www.Example.com")) == Hello(name="www.example.com", encrypted=False)
    assert client_hello.read(hello(None)) == Hello(name="", encrypted=False)


def test_a_hello_that_comes_in_pieces_and_in_records() -> None:
    whole = hello("example.com")
    for length in range(len(whole)):
        assert client_hello.read(whole[:length]) is None
    message = whole[5:]
    split = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in (message[:7], message[7:]))
    assert client_hello.read(split) == Hello(name="example.com", encrypted=False)


def test_a_hidden_name_is_seen_to_be_hidden() -> None:
    whole = hello("example.com")
    extension = b"\xfe\x0d\x00\x01\x00"
    at = whole.rfind(b"\x00\x0b\x00\x04")  # one of the extensions that OpenSSL sends
    assert at > 0
    body = bytearray(whole[:at] + extension + whole[at:])
    for place, size, grown in ((3, 2, 5), (6, 3, 5)):
        length = int.from_bytes(body[place : place + size], "big") + grown
        body[place : place + size] = length.to_bytes(size, "big")
    session = 5 + 4 + 34 + 1 + body[5 + 4 + 34]
    ciphers = session + 2 + int.from_bytes(body[session : session + 2], "big")
    extensions = ciphers + 1 + body[ciphers]
    length = int.from_bytes(body[extensions : extensions + 2], "big") + 5
    body[extensions : extensions + 2] = length.to_bytes(2, "big")
    assert client_hello.read(bytes(body)) == Hello(name="example.com", encrypted=True)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x16\x02\x00\x00\x01\x00",
        b"\x80.\x01\x03",
    ],
)
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(NoHello):
        client_hello.read(data)


@given(st.binary(max_size=600))
def test_any_bytes_are_judged(data: bytes) -> None:
    for begun in (data, hello("example.com")[:60] + data):
        try:
            found = client_hello.read(begun)
        except NoHello:
            continue
        assert found is None or isinstance(found, Hello)


def test_a_hello_without_end_is_given_up() -> None:
    with pytest.raises(NoHello):
        client_hello.read(b"\x16\x03\x01\xff\xff\x01\x00\x3f\xf0" + bytes(17_000))
