"""Google's token server, which takes signed assertions of service accounts, too."""

import base64
import json
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.upstream.apis.base import Answer, Request, encode
from tests.upstream.apis.tokens import Tokens

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SKEW_S = 300  # by which a caller's clock may be wrong
LONGEST_S = 3600  # that an assertion may hold


def service_account(email: str) -> tuple[str, dict[str, str]]:
    """The JSON of a new key as the caller keeps it, and what `service_account` of the control endpoint takes."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    held = {
        "type": "service_account",
        "client_email": email,
        "private_key_id": "a-key-of-a-test",
        "private_key": private.decode(),
    }
    return json.dumps(held), {"email": email, "public_key": public.decode()}


class AssertionTokens(Tokens):
    """Gives a token to the subject of an assertion, or to the service account itself where it has none."""

    def __init__(self, name: str, path: str, **options: Any):
        super().__init__(name, **options)
        self.path = path
        self.trusted: dict[str, rsa.RSAPublicKey] = {}

    def trust(self, email: str, public_key: str) -> None:
        """Take the assertions of a service account."""
        key = serialization.load_pem_public_key(public_key.encode())
        if not isinstance(key, rsa.RSAPublicKey):
            raise TypeError("public_key has to be an RSA key in PEM")
        self.trusted[email] = key

    def answer(self, request: Request, now: float) -> Answer:
        form = request.form
        if request.method != "POST" or form.get("grant_type") != JWT_BEARER:
            return super().answer(request, now)
        if self.revoked:
            return self.refuse(400, "invalid_grant")
        try:
            claims = self._verified(form.get("assertion", ""))
            self._check(claims, request, now)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature):
            return self.refuse(400, "invalid_grant")
        if not claims.get("scope"):
            return self.refuse(400, "invalid_scope")
        return Answer(200, encode(self.grant(claims.get("sub") or claims["iss"])))

    def _verified(self, assertion: str) -> dict[str, Any]:
        """The claims, once the signature is found to be that of the account that they name."""
        signed, _, signature = assertion.rpartition(".")
        head, body = (json.loads(_decoded(part)) for part in signed.split("."))
        if head["alg"] != "RS256":
            raise ValueError("only RS256")
        self.trusted[body["iss"]].verify(
            _decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        return dict(body)

    def _check(self, claims: dict[str, Any], request: Request, now: float) -> None:
        audience = urlsplit(claims["aud"])
        if (audience.netloc, audience.path) != (request.headers["host"], f"/{self.path}"):
            raise ValueError("an assertion for another server")
        issued, until = float(claims["iat"]), float(claims["exp"])
        if not (issued - SKEW_S <= now < until <= issued + LONGEST_S):
            raise ValueError("an assertion of another time")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
