"""Keys, certificates and limits as they are read, and what happens when their files change."""

import hashlib
import socketserver
import subprocess
import threading

import pytest

from server.access import Access
from server.admin import Admin, Refused
from server.errors import UsageError
from server.keys import BadKeys, Key, map_lines, parse_keys
from server.limits import ClientLimits
from server.refresh import Refresh, Source

ONE, TWO = "one-0123456789abcdef", "two/0123456789abcdef=="


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest().upper()


# Keys


def test_a_line_has_a_name_a_key_and_models_or_only_a_key():
    text = f"# ours\n\nalice:{ONE}  digits, branch # until May\n{TWO}\r\nbob: three-0123456789\n"
    assert parse_keys(text) == [
        Key("alice", digest(ONE), ("digits", "branch")),
        Key("-", digest(TWO)),
        Key("bob", digest("three-0123456789")),
    ]


def test_haproxy_gets_digests():
    lines = list(map_lines(parse_keys(f"alice:{ONE} digits branch\n{TWO}")))
    assert lines == [
        f"{digest(ONE)} alice|digits,branch",
        f"{digest(ONE)}/digits 1",
        f"{digest(ONE)}/branch 1",
        f"{digest(TWO)} -|",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no key in it"),
        ("# nothing", "there is no key in it"),
        (f"{ONE}\n{ONE}", "lines 1 and 2 hold the same key"),
        (f"a:{ONE}\n\nb:{ONE}", "lines 1 and 3 hold the same key"),
        ("a:short-0123456", "line 1: the key has 13 characters, expected at least 16"),
        (f"{ONE}\na b:{ONE}", "line 2: the key has 1 characters"),
        (f"a b|c {ONE}", "line 1: the key has 1 characters"),
        (f"a,b:{ONE}", "line 1: the key has 1 characters"),
        (f"a|b:{ONE}", "line 1: before the colon"),
        (f"{ONE}é", "line 1: a key is made of"),
        (f"{ONE}#x", "line 1: a key is made of"),
        (f"{ONE} a|b", "line 1: after the key, expected names of models"),
        (f'{{"keys": ["{ONE}"]}}', "line 1: before the colon"),
    ],
)
def test_a_line_that_is_none_is_named_and_the_key_is_not_shown(text, said):
    with pytest.raises(BadKeys) as caught:
        parse_keys(text)
    assert said in str(caught.value)
    assert "0123456" not in str(caught.value)


def test_a_file_of_keys_that_cannot_be_used(tmp_path):
    path = tmp_path / "keys"
    with pytest.raises(UsageError, match="not there") as caught:
        Access(keys=path / ONE).check(front=True)
    assert ONE not in str(caught.value)
    for content, said in ((b"\xff" * 20, "UTF-8"), (b"#" * 1_000_001, "1000000 bytes")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            Access(keys=path).check(front=True)
    with pytest.raises(UsageError, match="cannot be read"):
        Access(keys=tmp_path).check(front=True)


def test_only_the_front_asks_for_keys_and_speaks_tls(tmp_path):
    Access().check(front=False)
    with pytest.raises(UsageError, match="--api-keys needs the front"):
        Access(keys=tmp_path / "k").check(front=False)
    with pytest.raises(UsageError, match="--tls needs the front"):
        Access(tls=tmp_path / "c").check(front=False)


# Certificates


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A certificate and its key, as text."""
    folder = tmp_path_factory.mktemp("pair")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 2 -subj /CN=x"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return (folder / "c").read_text(), (folder / "k").read_text()


def test_a_certificate_has_its_key_with_it_or_beside_it(tmp_path, pair):
    certificate, key = pair
    (tmp_path / "one.pem").write_text(certificate + key)
    (tmp_path / "tls.crt").write_text(certificate)
    (tmp_path / "tls.key").write_text(key)
    assert Access(tls=tmp_path / "one.pem").read_certificate() == certificate + key
    assert key in Access(tls=tmp_path / "tls.crt").read_certificate()


def test_a_certificate_that_cannot_be_used(tmp_path, pair):
    certificate, key = pair
    path = tmp_path / "c.pem"
    encrypt = "openssl pkcs8 -topk8 -v2 aes128 -passout pass:x"
    encrypted = subprocess.run(
        encrypt.split(), input=key, capture_output=True, text=True, check=True
    ).stdout
    for text, said in (
        (certificate, "no private key, and there is no c.key beside it"),
        (key, "OpenSSL refuses it"),
        (certificate + key.replace("M", "N"), "OpenSSL refuses it"),
        (certificate + encrypted, "its key is encrypted"),
        ("é", "not a PEM file"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            Access(tls=path).check(front=True)


# ClientLimits


def test_limits_leave_room_for_others():
    assert ClientLimits.read({}, 2**20) == ClientLimits(16384, 8192, 0)
    assert ClientLimits.read({}, 1200) == ClientLimits(500, 250, 0)
    settings = {"front_connections": "10", "front_connections_per_client": "10"}
    settings["front_requests_per_second"] = "3"
    assert ClientLimits.read(settings, 2**20) == ClientLimits(10, 10, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"front_connections": "0"}, "front_connections is '0'; expected a whole number, 1"),
        ({"front_connections_per_client": "-1"}, "front_connections_per_client is '-1'"),
        ({"front_requests_per_second": "0.5"}, "front_requests_per_second is '0.5'"),
        ({"front_connections": "20000"}, "enough for 9900 connections"),
    ],
)
def test_a_limit_that_is_none(settings, said):
    with pytest.raises(UsageError, match=said):
        ClientLimits.read(settings, 20_000)


def test_only_the_front_counts_requests():
    ClientLimits.read({}, 20_000).check(front=False)
    limits = ClientLimits.read({"front_requests_per_second": "3"}, 20_000)
    limits.check(front=True)
    with pytest.raises(UsageError, match="no front to count"):
        limits.check(front=False)


# Files that change


class File:
    """A file that is read in its place; `use` may refuse."""

    def __init__(self):
        self.content, self.refusal, self.used, self.said = "a", None, [], []
        self.refresh = Refresh([Source("It", self.read, self.use)], self.said.append)

    def read(self):
        if self.content is None:
            raise UsageError("It is broken.")
        return self.content

    def use(self, content):
        if self.refusal:
            raise Refused(self.refusal)
        self.used.append(content)

    def look(self, *contents):
        for content in contents:
            self.content = content
            self.refresh.look()


def test_a_change_is_used_when_it_was_the_same_twice():
    file = File()
    file.look("a", "b")
    assert file.used == []
    file.look("bc", "bc", "bc", "bc")
    assert file.used == ["bc"]
    assert len(file.said) == 1


def test_a_broken_file_leaves_what_was_and_is_told_once():
    file = File()
    file.look("a", None, "a", "a")
    assert file.said == []
    file.look(None, None, None, "a", "a", None, None, "b", "b")
    assert file.said[:2] == ["It is broken. What was read before still holds."] * 2
    assert file.used == ["b"]


def test_what_is_refused_is_tried_again():
    file = File()
    file.refusal = "no"
    file.look("b", "b", "b", "b")
    assert (file.used, len(file.said)) == ([], 1)
    file.refusal = None
    file.look("b")
    assert file.used == ["b"]


# HAProxy's socket


@pytest.fixture
def haproxy(tmp_path):
    """A socket that answers as HAProxy's, or as `answers` says; and what it was told."""
    told, answers = [], {"prepare": "New version created: 7", "set": "Transaction created for c!"}
    answers["commit ssl"] = "Committing c.\nSuccess!"

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            text = self.request.recv(65536).decode()
            told.append(text)
            said = [answer for start, answer in answers.items() if text.startswith(start)]
            self.wfile.write("".join([*said, "\n"]).encode())

    with socketserver.UnixStreamServer(str(tmp_path / "s"), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Admin(tmp_path / "s"), told, answers
        server.shutdown()


def test_a_map_is_replaced_in_one_step_and_in_parts_that_fit(haproxy, tmp_path):
    admin, told, _ = haproxy
    lines = [f"{number:064} x|" for number in range(1000)]
    admin.replace_map(tmp_path / "a b", lines)
    name = f"{tmp_path}/a\\ b"
    assert (told[0], told[-1]) == (f"prepare map {name}\n", f"commit map @7 {name}\n")
    sent = []
    for part in told[1:-1]:
        first, _, payload = part.partition("\n")
        assert first == f"add map @7 {name} <<"
        assert len(part) < 32_768
        assert payload.endswith("\n\n")
        sent += payload.split("\n")[:-2]
    assert sent == lines


def test_what_haproxy_refuses_is_told(haproxy, tmp_path):
    admin, told, answers = haproxy
    answers["add map"] = "Out of memory"
    with pytest.raises(Refused, match="Out of memory"):
        admin.replace_map(tmp_path / "m", ["a b"])
    answers["prepare"] = "Unknown map"
    with pytest.raises(Refused, match="Unknown map"):
        admin.replace_map(tmp_path / "m", ["a b"])
    admin.replace_certificate(tmp_path / "c", "one\n\n\ntwo\n")
    assert told[-2:] == [
        f"set ssl cert {tmp_path}/c <<\none\ntwo\n\n",
        f"commit ssl cert {tmp_path}/c\n",
    ]
    answers["commit ssl"] = "Failed!"
    with pytest.raises(Refused, match="Failed!"):
        admin.replace_certificate(tmp_path / "c", "one")
    assert told[-1] == f"abort ssl cert {tmp_path}/c\n"
    answers["set"] = "Can't load the key"
    with pytest.raises(Refused, match="load the key"):
        admin.replace_certificate(tmp_path / "c", "one")
    with pytest.raises(Refused, match="socket"):
        Admin(tmp_path / "none").replace_map(tmp_path / "m", [])
