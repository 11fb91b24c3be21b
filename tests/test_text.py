"""Near names, and what is shown of a client's words and of secrets."""

from __future__ import annotations

import time
from collections.abc import Callable
from difflib import get_close_matches
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcomm.auth.tokens import new_token
from zcomm.text import did_you_mean, quoted, redact, redact_command, redact_url


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("emial", '; did you mean "email"?'),
        ("EMAIL", '; did you mean "email"?'),
        ("naem", '; did you mean "Name"?'),
        ("xyz", ""),
        ("", ""),
        (5, ""),
        (None, ""),
        ("email" * 21, ""),
    ],
)
def test_a_near_name_is_named(name: object, hint: str):
    """Case aside, and only where there is one; a name that is none or very long has none."""
    assert did_you_mean(name, iter(["email", "Name"])) == hint
    assert did_you_mean(name, ["email", "Name"], or_list=True) == (hint or "; known are email, Name")


def test_b12_a_hint_costs_little_whatever_is_known():
    """A few names are compared letter by letter, and of few it is asked whether they may be told of."""
    known = [f"function_number_{number}" for number in range(100_000)]
    asked: list[str] = []

    def allowed(name: str) -> bool:
        asked.append(name)
        return name != "function_number_77"

    hint = did_you_mean("funtcion_nubmer_77", known, allowed=allowed)
    assert hint.startswith('; did you mean "function_number_') and '"function_number_77"' not in hint
    assert asked[0] == "function_number_77" and len(asked) < 500
    for name in ("a" * 64, "ab" * 32, "funtcion_nubmer_77"):
        started = process_time()
        did_you_mean(name, ["ab" * 29 + str(number) for number in range(100_000)])
        assert process_time() - started < 1


@given(st.text(min_size=1, max_size=12), st.lists(st.text(min_size=1, max_size=12), max_size=3))
def test_b12_the_nearest_is_as_near_as_any(name: str, known: list[str]):
    """Of a few, where all are compared, it is the one that the library finds."""
    hint = did_you_mean(name, known)
    near = get_close_matches(name.lower(), [each.lower() for each in known], 1)
    assert bool(hint) is bool(near)


@given(st.text(max_size=300))
def test_quoted_text_is_short_and_printable(text: str):
    """Whatever a client sent: one line of at most 66 characters."""
    shown = quoted(text)
    assert shown.isprintable() and len(shown) <= 66 and shown[0] == shown[-1] == '"'
    assert quoted(5) == '"of that kind"'


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("GET /?token=SECRET HTTP/1.1", "GET /?token=*** HTTP/1.1"),
        ("/?a=1&token=SECRET&b=2#x", "/?a=1&token=***&b=2#x"),
        ("/?api_key=SECRET", "/?api_key=***"),
        ("/?API_KEY=SECRET", "/?API_KEY=***"),
        ("http://127.0.0.1:56891/#token=SECRET", "http://127.0.0.1:56891/#token=***"),
        ("token%3DSECRET", "token%3D***"),
        ("/?token=SEC%52ET==", "/?token=***"),
        ("Authorization: Bearer SECRET", "Authorization: Bearer ***"),
        ("bearer   SECRET", "bearer   ***"),
        (
            "Sec-WebSocket-Protocol: zbifrost.v1, bearer.SECRET",
            "Sec-WebSocket-Protocol: zbifrost.v1, bearer.***",
        ),
        ("bearer.SECRET, zbifrost.v1", "bearer.***, zbifrost.v1"),
        ('{"token": "SECRET", "a": 1}', '{"token": "***", "a": 1}'),
        ("{'api_key': 'SECRET'}", "{'api_key': '***'}"),
        ('{"password":"SECRET"}', '{"password":"***"}'),
        ("token: SECRET", "token: ***"),
        ("zc_abc123_SECRETSECRETSECRET", "***"),
        ("a zc_operator_SECRET-_SECRET b", "a *** b"),
        ("token=SECRET&token=SECRET", "token=***&token=***"),
        ("", ""),
        ("no secret here", "no secret ***"),
        ("token=", "token="),
        ("a token of alice", "a token *** alice"),
        ("tokens.json", "tokens.json"),
        ("bearer", "bearer"),
        ("redis-server --requirepass hunter2 --port 1", "redis-server --requirepass *** --port 1"),
        ("app --db-password=hunter2", "app --db-password=***"),
        (
            "requirepass x1 password=x1 PASSWORD 'x1' token: \"x1\"",
            "requirepass *** password=*** PASSWORD '***' token: \"***\"",
        ),
        ("password 'two words' after", "password '***' after"),
        ("password 'never closed", "password '***'"),
        ("secret x1, token 'abc', a secret of theirs", "secret *** token '***', a secret *** theirs"),
        ("DB_PASSPHRASE=x1 MY_TOKENS: x1", "DB_PASSPHRASE=*** MY_TOKENS: ***"),
        ("password hunter", "password ***"),
        ("token\thunter", "token\t***"),
        ('secret "two words" after', 'secret "***" after'),
        ('password "with \\" in it" after', 'password "***" after'),
        ("password 'over\ntwo lines' after", "password '***' after"),
        ("password=a,b;c&d#e<f>'g", "password=***"),
        ("password,hunter", "password***"),
        ("/?a=1&token=a,b;'c&b=2", "/?a=1&token=***&b=2"),
        ("token=a,password=b", "token=***"),
        ("api_key=abctoken=", "api_key=***"),
        ("token bearer SECRET", "token bearer ***"),
        ("secret: Bearer SECRET, more", "secret: Bearer ***, more"),
        ("app --api-key hunter --port 1", "app --api-key *** --port 1"),
        ("authors: Ann, passed: 3, passes 4", "authors: Ann, passed: 3, passes 4"),
    ],
)
def test_secrets_are_blanked(text: str, kept: str):
    """A12, L1: queries, headers, subprotocols, fragments and JSON keep their shape and lose their secrets."""
    assert redact(text) == kept


def test_known_secrets_are_blanked():
    """Wherever they stand; an empty one stands nowhere."""
    assert redact("connect with hunter2 now", "hunter2", "") == "connect with *** now"


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["app", "--auth", "hunter"], "app --auth ***"),
        (["app", "--authfile", "hunter", "-v"], "app --authfile *** -v"),
        (["app", "passphrase", "hunter"], "app passphrase ***"),
        (["app", "my-token", "two words", "-v"], "app my-token *** -v"),
        (["app", "--password=two words", "-v"], "app --password=*** -v"),
        (["app", "--password=a,b;c&d#e", "-v"], "app --password=*** -v"),
        (["sh", "-c", "PGPASSWORD=hunter psql"], "sh -c PGPASSWORD=***"),
        (["app", "--api-key", "hunter"], "app --api-key ***"),
        (["app", "-v", "http://host/?token=SECRET"], "app -v http://host/?token=***"),
        (["app", "--secret"], "app --secret"),
        ([], ""),
    ],
)
def test_command_lines_are_blanked(arguments: list[str], kept: str):
    """Whatever follows an argument that speaks of a secret, to the end of its own argument."""
    assert redact_command(arguments) == kept


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://user:hunter@host:1/data", "postgresql://user:***@host:1/data"),
        ("postgresql://user@host:1/data", "postgresql://user@host:1/data"),
        ("postgresql://user:@host/data", "postgresql://user:***@host/data"),
        ("postgresql://us%40er:hun%40ter@host/data", "postgresql://us%40er:***@host/data"),
        ("postgresql://user:h@u:n@host/data", "postgresql://user:***@host/data"),
        ("postgresql://user:h/u?n#t@host/data?sslmode=require", "postgresql://user:***@host/data?sslmode=require"),
        ("postgresql://host:1/data?user=a&password=hunter", "postgresql://host:1/data?user=a&password=***"),
        ("postgresql://host/data?password=h&unter&user=a", "postgresql://host/data?password=***&user=a"),
        ("postgresql://host/data?sslpassword=h#u@nter&a=1", "postgresql://host/data?sslpassword=***"),
        ("postgresql://host/data?pass%77ord=hunter&a=1", "postgresql://host/data?pass%77ord=***"),
        ("postgresql://host/data?PASSWORD=&passfile=/a", "postgresql://host/data?PASSWORD=***&passfile=/a"),
        ("postgresql://user:hunter@host?password=hunter", "postgresql://user:***@host?password=***"),
        ("postgresql://host/data?sslpassword=h#u@nter&port=1", "postgresql://host/data?sslpassword=***&port=1"),
        ("postgresql://host/data?pass%77ord=hunter&port=1", "postgresql://host/data?pass%77ord=***&port=1"),
        ("postgresql://host/data?pwd=hunter&sslmode=require", "postgresql://host/data?pwd=***&sslmode=require"),
        ("postgresql://host/data?pasword=hunter", "postgresql://host/data?pasword=***"),
        ("postgresql://host/data?sslmode=require&hunter", "postgresql://host/data?sslmode=***"),
        ("postgresql://host/data?hunter&port=1", "postgresql://host/data?***&port=1"),
        ("postgresql://host/data?hun%20ter,=1", "postgresql://host/data?***"),
        ("postgresql://host/data?port=1&host=u:hunter", "postgresql://host/data?port=1&host=***"),
        ("postgresql://host/data?host=a:1,b:2&HOST=%2Frun", "postgresql://host/data?host=a:1,b:2&HOST=%2Frun"),
        ("postgresql://us;er:hunter@host/data", "postgresql://***:***@host/data"),
        ("postgresql://user%3Ahunter@host/data", "postgresql://***@host/data"),
        ("postgresql://user:hunter%40host/data", "postgresql://user:***"),
        ("postgresql://user:hunter/data?port=1", "postgresql://user:***"),
        ("postgresql://user:123456/data", "postgresql://user:***"),
        ("postgresql:///user:hunter/data?port=1", "postgresql:///***?port=1"),
        ("postgresql://user/x:hunter@host", "postgresql://user/***"),
        ("postgresql://%2Frun%2Fpg/data", "postgresql://%2Frun%2Fpg/data"),
        ("postgresql://a:1,[::1]:2,c/data", "postgresql://a:1,[::1]:2,c/data"),
        ("http://x/?redirect=postgresql://u:hunter@h/d", "http://x/?redirect=***"),
        ("x/?redirect=postgresql://u:hunter@h/d", "***://u:***@h/d"),
        ("mysql+pymysql://h/db?pwd=hunter", "mysql+pymysql://h/db?pwd=***"),
        ("sqlite:////a/x.db?mode=ro&uri=true&key=hunter", "sqlite:////a/x.db?mode=ro&uri=true&key=***"),
        ("sqlite+pysqlcipher://:hunter/x.db?cipher=aes", "sqlite+pysqlcipher://:***"),
        ("postgresql:user:hunter", "postgresql:user:***"),
        ("host=a user=b pwd=hunter\\ hunter", "host=a user=b pwd=***"),
        ("postgresql://host:1/data?user=a&password=hun@ter", "postgresql://host:***"),
        ("postgresql://host?password=hun:t@er/data", "postgresql://host?password=***"),
        ("postgresql://postgres@/data?host=/run/a@b", "postgresql://postgres@/data?host=/run/a@b"),
        ("postgresql://[::1]:5432/data", "postgresql://[::1]:5432/data"),
        ("postgresql:user:hunter@host", "***@host"),
        ("host=a password=hunter", "host=a password=***"),
        ("sqlite:////home/a:b@c/x.sqlite3", "sqlite:////home/a:b@c/x.sqlite3"),
        ("service:postgresql", "service:postgresql"),
        ("", ""),
    ],
)
def test_urls_are_blanked(url: str, kept: str):
    """Before the host and in the query, escaped or not; the rest, which tells where the URL leads, stays."""
    assert redact_url(url) == kept


@pytest.mark.parametrize(
    "name",
    """
    pw PW pwd passwort passwordx password1 credential credentials key apikey access_key scram_client_key
    scram_server_key authkey sig signature sslkey options odbc_connect dsn url p%2561ssword PasswordHash host%3D
    """.split(),
)
def test_no_setting_is_shown_that_may_be_a_secret(name: str):
    """Whatever it is called: those are listed that may be shown, and of the rest the names alone are."""
    for query in (f"{name}=hunter", f"port=1&{name}=a&hunter=1&x=hunter", f"{name}==&hunter", f"{name}=a;b=hunter"):
        assert "hunter" not in redact_url(f"postgresql://host/data?{query}&sslmode=require")
        assert redact_url(f"postgresql://host/data?{query}&sslmode=require").endswith("=***&sslmode=require")


@given(st.text(max_size=20), st.text(min_size=1, max_size=5), st.text(max_size=20))
@settings(max_examples=300)
def test_a_password_never_gets_through_a_url(before: str, secret: str, after: str):
    """Whatever characters it is made of, at either place."""
    word = f"{before}{secret}\N{SNOWMAN}{after}".replace("=", "")
    for url in (
        f"postgresql://u:{word}@h/d",
        f"postgresql://h/d?a=1&password={word}",
        f"postgresql://h/?token={word}&b",
    ):
        assert "\N{SNOWMAN}" not in redact_url(url)


def seconds(redacting: Callable[[str], object], text: str) -> float:
    """Processor time of redacting, the shortest of some."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        redacting(text)
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.parametrize(
    "redacting",
    [
        redact,
        lambda text: redact_command(text.split(" ")),
        lambda text: redact_url(text.replace(" ", "://", 1)),
        redact_url,
    ],
)
@pytest.mark.parametrize(
    "part",
    [
        "x",
        "token-",
        "token ",
        "token",
        "&token=",
        "bearer ",
        "token='",
        "token='\\\" ",
        "token \"'",
        "password=a&",
        "?password=",
        "&port=1",
        "&port=1&x",
        "?x",
        ":1,",
        "h,",
        "a:b@",
        " ",
        "\\",
    ],
)
def test_redacting_takes_time_by_the_length(part: str, redacting: Callable[[str], object]):
    """A command line of another program is as long as it likes to be: time does not grow as the square of it."""
    few, many = (f"app token={part * number}" for number in (5_000, 20_000))
    assert seconds(redacting, many) < 12 * seconds(redacting, few) + 0.05


@given(
    st.text(max_size=50),
    st.sampled_from(["token=", "api_key=", "Bearer ", "bearer.", '"token": "']),
    st.text(max_size=50),
)
@settings(max_examples=300)
def test_a_token_never_gets_through(before: str, mark: str, after: str):
    """Whatever stands around it, a token of ours is not in what is left."""
    token, _ = new_token("abcdefghij")
    assert token not in redact(f"{before} {mark}{token}{after}")
