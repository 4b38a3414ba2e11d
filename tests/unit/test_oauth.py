"""What is asked of a token server, and what its answer means."""

import base64
import contextlib
import json
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import (
    AuthenticationError,
    BadPayloadError,
    ConfigurationError,
    InvalidCredentialsError,
    RateLimitError,
    ServerError,
    TokenFetchError,
)
from tasks.collectors import Answer, Api, Bearer, GoogleServiceAccount, GoogleUser, OAuth2, Rule
from tasks.collectors.oauth import GOOGLE_TOKEN_URL, Grant, read_grant

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
URL = "https://login.shop.example/token"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
SECRETS = {
    "ID": "our/id",
    "SECRET": "s3cret",
    "REFRESH": "refresh-0",
    "WORKSPACE": "ab/12",
    "USER": json.dumps({"client_id": "gid", "client_secret": "gs", "refresh_token": "gr", "type": "x"}),
    "ROBOT": json.dumps(
        {"client_email": "robot@x.example", "private_key": PRIVATE, "token_uri": "https://evil"}
    ),
    "NO_JSON": "sec ret",
    "NO_KEY": json.dumps({"client_email": "robot@x.example", "private_key": "sec ret"}),
}


def asked(auth, refresh=None, account="default"):
    """The request's parts, its form decoded."""
    request = auth.request(SECRETS.__getitem__, refresh=refresh, account=account, now=NOW)
    form = {name: value for name, (value,) in parse_qs(request.body.decode()).items()}
    return request.method, request.url, request.headers, form


def answer(status=200, headers=None, **body):
    return Answer(status, headers or {}, json.dumps(body).encode(), 0.1)


def test_client_credentials_by_basic_header():
    """The header carries id and secret, the form what is asked for."""
    method, url, headers, form = asked(OAuth2(URL, "ID", "SECRET", scope="read"))
    assert (method, url) == ("POST", URL)
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"our/id:s3cret"
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert form == {"grant_type": "client_credentials", "scope": "read"}


def test_refresh_token_in_the_body():
    """The refresh token is the one that is handed in, not the first one."""
    auth = OAuth2(URL, "ID", "SECRET", "REFRESH", client="body", scheme="Zoho-oauthtoken")
    assert auth.first_refresh(SECRETS.__getitem__) == "refresh-0"
    _, _, headers, form = asked(auth, refresh="refresh-7")
    assert "Authorization" not in headers
    assert form == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-7",
        "client_id": "our/id",
        "client_secret": "s3cret",
    }
    carried = {}
    auth.carry(carried, "abc")
    assert carried == {"Authorization": "Zoho-oauthtoken abc"}


def test_a_secret_in_the_path_of_the_token_url():
    """Quoted, so that it stays one part of the path."""
    auth = OAuth2("https://x.example/oauth2/{WORKSPACE}/token", "ID", "SECRET")
    assert asked(auth)[1] == "https://x.example/oauth2/ab%2F12/token"
    assert auth.secrets == ("ID", "SECRET", "WORKSPACE")


def test_google_user():
    """Everything out of the one JSON."""
    auth = GoogleUser("USER")
    assert auth.first_refresh(SECRETS.__getitem__) == "gr"
    _, url, _, form = asked(auth, refresh="gr")
    assert url == GOOGLE_TOKEN_URL
    assert form == {
        "grant_type": "refresh_token", "refresh_token": "gr", "client_id": "gid", "client_secret": "gs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "account", "speaks_for"),
    [
        (None, "default", None),
        ("a@x.example", "default", "a@x.example"),
        ("{symbol}", "b@x.example", "b@x.example"),
    ],
)
def test_google_service_account(subject, account, speaks_for):
    """The assertion is signed by the key; what the key's file says of addresses is not believed."""
    auth = GoogleServiceAccount("ROBOT", scopes=["scope-a", "scope-b"], subject=subject)
    assert auth.account("b@x.example") == account
    _, url, _, form = asked(auth, account=account)
    assert url == GOOGLE_TOKEN_URL
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    claims = jwt.decode(form["assertion"], certs=PUBLIC, verify=False)
    assert jwt.decode(form["assertion"], certs=PUBLIC, verify=False) == {
        "iss": "robot@x.example",
        "scope": "scope-a scope-b",
        "aud": GOOGLE_TOKEN_URL,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 3600,
    } | ({"sub": speaks_for} if speaks_for else {})
    assert claims.get("sub") == speaks_for
    signed, _, signature = form["assertion"].rpartition(".")
    from google.auth.crypt import verify_signature

    assert verify_signature(signed, base64.urlsafe_b64decode(signature + "=="), PUBLIC)


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        (GoogleUser("NO_JSON"), "NO_JSON has to hold the JSON of a Google account"),
        (GoogleServiceAccount("NO_JSON", ["s"]), "NO_JSON has to hold the JSON"),
        (GoogleServiceAccount("USER", ["s"]), "the JSON that USER holds has no client_email"),
        (GoogleServiceAccount("NO_KEY", ["s"]), "what NO_KEY holds is no private key"),
    ],
)
def test_a_secret_of_another_shape(auth, said):
    """Named, and not shown."""
    with pytest.raises(ConfigurationError, match=said) as raised:
        asked(auth)
    assert "sec ret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OAuth2("login.example/token", "ID", "SECRET"), "OAuth2: token_url has to look like"),
        (lambda: OAuth2("https://u:p@x.example/t", "ID", "SECRET"), "OAuth2: token_url"),
        (lambda: OAuth2("https://{HOST}/t", "ID", "SECRET"), "OAuth2: token_url"),
        (lambda: OAuth2("https://x.example/t?k=1", "ID", "SECRET"), "OAuth2: token_url"),
        (lambda: OAuth2("https://x.example/{a b}", "ID", "SECRET"), "takes the name of a secret"),
        (lambda: OAuth2(URL, "k-4711", "SECRET"), "OAuth2 takes the name of a secret"),
        (lambda: OAuth2(URL, "ID", ""), "OAuth2 takes the name of a secret"),
        (
            lambda: OAuth2(URL, "ID", "SECRET", client="header"),
            "client is 'header'; it is one of basic, body",
        ),
        (lambda: OAuth2(URL, "ID", "SECRET", scheme="Bearer x"), "scheme is one word"),
        (lambda: GoogleServiceAccount("ROBOT", []), "scopes has to be a list"),
        (lambda: GoogleServiceAccount("ROBOT", "scope"), "scopes has to be a list"),
        (lambda: GoogleServiceAccount("ROBOT", ["s"], subject=""), "subject is an address"),
        (lambda: Api("shop", "https://shop.example", auth="sk-4711"), "shop: auth is a str, but has to be"),
        (lambda: Api("shop", "https://shop.example", auth=Bearer), "shop: auth is a type"),
        (
            lambda: Api("shop", "https://shop.example", secret_headers={"tenant": "4-7"}),
            "shop: secret_headers takes the name of a secret",
        ),
        (
            lambda: Api("shop", "https://shop.example", auth=Bearer("T")).with_overrides(token_url=URL),
            "shop has no token_url: its auth fetches no tokens",
        ),
    ],
)
def test_wrong_declarations(make, said):
    """Each names the field and what is allowed, and shows no value that may be a secret."""
    with pytest.raises(ConfigurationError, match=said) as raised:
        make()
    assert "4711" not in str(raised.value)


def test_token_url_of_an_installation():
    """It replaces the declared one; the declaration stays as it is."""
    api = Api(
        "shop", "https://shop.example", auth=OAuth2(URL, "ID", "SECRET"), secret_headers={"tenant": "TENANT"}
    )
    changed = api.with_overrides(token_url="http://127.0.0.1:1/t")
    assert asked(changed.auth)[1] == "http://127.0.0.1:1/t"
    assert asked(api.auth)[1] == URL
    assert changed.secrets == ("ID", "SECRET", "TENANT")


def test_what_a_token_server_gives():
    """A refresh token that is not in the answer goes on to hold; a lifetime may be text, or missing."""
    assert read_grant("shop", answer(access_token="a", expires_in=1800, refresh_token="r")) == Grant(
        "a", "r", 1800
    )
    assert read_grant("shop", answer(access_token="a", expires_in="60")) == Grant("a", None, 60)
    assert read_grant("shop", answer(access_token="a", refresh_token="")) == Grant("a", None, 3600)
    assert read_grant("shop", answer(access_token="a", expires_in=float("inf"))).expires_s == 3600
    assert read_grant("shop", answer(access_token="a", expires_in=-5)).expires_s == 1
    assert "secret" not in repr(Grant("secret-a", "secret-r", 1))


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (answer(400, error="invalid_grant"), InvalidCredentialsError, "answered 400, invalid_grant"),
        (answer(401, error="invalid_client"), InvalidCredentialsError, "answered 401, invalid_client"),
        (answer(401, message="Unauthorized", error=401), InvalidCredentialsError, "answered 401"),
        (answer(200, error="invalid_code"), InvalidCredentialsError, "answered 200, invalid_code"),
        (answer(400, error="Access Denied"), TokenFetchError, "answered 400, Access Denied"),
        (answer(403), TokenFetchError, "answered 403"),
        (answer(302), TokenFetchError, "answered 302"),
        (answer(400, error={"token": "s3cret"}), TokenFetchError, "answered 400, an error"),
        (answer(400, error="s3cret-r"), TokenFetchError, "answered 400, an error"),
        (answer(429, {"Retry-After": "7"}), RateLimitError, "answered 429"),
        (answer(503), ServerError, "answered 503"),
        (answer(200), BadPayloadError, "with no access token in it"),
        (answer(200, access_token=7), BadPayloadError, "no access token"),
        (answer(200, access_token="s3cret\n"), BadPayloadError, "no access token"),
        (answer(200, access_token="s3cret", refresh_token=["r"]), BadPayloadError, "no access token"),
        (Answer(200, {}, b"<html>s3cret", 0.1), BadPayloadError, "no access token"),
        (Answer(200, {}, b"[" * 100_000, 0.1), BadPayloadError, "no access token"),
    ],
)
def test_what_it_has_against_it(given, kind, said):
    """Each by its class, and none shows what stood in the answer."""
    with pytest.raises(kind, match=rf"shop: the token server .*{said}") as raised:
        read_grant("shop", given)
    assert "s3cret" not in str(raised.value)
    assert raised.value.recoverable is not isinstance(raised.value, InvalidCredentialsError)


def test_wait_that_a_token_server_asks_for():
    """It is kept."""
    with pytest.raises(RateLimitError) as raised:
        read_grant("shop", answer(429, {"Retry-After": "7"}))
    assert raised.value.retry_after_s == 7


@given(
    st.integers(100, 599), st.binary(max_size=200) | st.lists(st.none()).map(lambda d: json.dumps(d).encode())
)
def test_any_answer_is_a_grant_or_one_of_our_errors(status, body):
    """Whatever a token server sends."""
    with contextlib.suppress(AuthenticationError, ServerError, RateLimitError, BadPayloadError):
        read_grant("shop", Answer(status, {}, body, 0.1))


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [(401, b"{}", True), (403, b"{}", False), (401, b"not yours", False), (403, b"revoked", True), (200, b"bad key", True),
     (403, b"one endpoint", False), (404, b"", False), (200, b"[]", False)],
)  # fmt: skip
def test_which_answers_refuse_the_credentials(status, body, refused):
    """A 401, unless a rule says otherwise; a 403 may be about one resource, unless a rule says otherwise."""
    rules = [
        Rule("not_found", status=401, body="not yours"),
        Rule("unauthorized", status=403, body="revoked"),
        Rule("unauthorized", status=403, body="one endpoint", scope="endpoint"),
        Rule("token_expired", status=200, body="bad key"),
    ]
    api = Api("shop", "https://shop.example", auth=Bearer("TOKEN"), rules=rules)
    assert api.refuses(Answer(status, {}, body, 0.1)) is refused
