"""What the token keeper decides, with accounts in memory, a clock of its own and a server that rotates."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilience.errors import ApiTimeoutError, ConfigurationError, DatabaseError, InvalidCredentialsError
from tasks import accounts as real
from tasks import tokens
from tasks.accounts import Account
from tasks.collectors import Api, Bearer, GoogleServiceAccount, OAuth2
from tasks.collectors.oauth import Grant
from tasks.seal import Seal, Tokens, fingerprint, new_key
from tasks.tokens import AccountStopped, Await, Credential, Keeper, Refresh, TokenWait, Use, decide

KEY = new_key()
URL = "https://login.shop.example/token"
SHOP = Api("shop", "https://shop.example", auth=OAuth2(URL, "ID", "SECRET", "REFRESH"))
CLIENT = Api("club", "https://club.example", auth=OAuth2(URL, "ID", "SECRET"))
STATIC = Api("desk", "https://desk.example", auth=Bearer("SECRET"))
STORED = Tokens("access", "refresh")


@pytest.mark.parametrize(
    ("account", "stored", "past", "decided"),
    [
        ({}, None, None, Refresh()),
        ({"left_s": 9}, STORED, None, Use("access")),
        ({"left_s": 0}, STORED, None, Refresh()),
        ({"left_s": 9, "version": 3}, STORED, 3, Refresh()),
        ({"left_s": 9, "version": 4}, STORED, 3, Use("access")),
        ({"left_s": 9, "leased_s": 5}, STORED, None, Use("access")),
        ({"left_s": 0, "leased_s": 5}, STORED, None, Await(5)),
        ({"left_s": 9, "leased_s": 5, "version": 3}, STORED, 3, Await(5)),
        ({"left_s": 9, "leased_s": 5}, None, None, Await(5)),
        ({"left_s": 9}, None, None, Refresh()),
    ],
)
def test_decide(account, stored, past, decided):
    """A stored token as long as it is good and not the refused one; else one refreshes, and all others wait."""
    assert decide(Account("shop", "default", **account), stored, past=past) == decided


class Rows:
    """`tasks.accounts` in memory, on a clock that only sleeping moves."""

    titled = staticmethod(real.titled)
    name_of = staticmethod(real.name_of)

    def __init__(self):
        self.now, self.rows, self.events = 1000.0, {}, []
        self.until = {}  # (api, name) → when the token and when the lease end
        self.away = 0  # how often a write fails

    def sleep(self, seconds):
        self.now += seconds

    def read(self, api, name):
        account = self.rows.get((api, name), Account(api, name))
        good, leased = self.until.get((api, name), (0.0, 0.0))
        return replace(account, left_s=max(0.0, good - self.now), leased_s=max(0.0, leased - self.now))

    def ready(self, api, name):
        self.rows.setdefault((api, name), Account(api, name, salt="salt"))
        return self.read(api, name)

    def lock(self, account, seconds):
        now = self.ready(account.api, account.name)
        if now.version != account.version or now.leased_s > 0:
            return None
        self.write(now, leased=self.now + seconds, fence=now.fence + 1)
        return self.read(account.api, account.name)

    def unlock(self, account):
        now = self.ready(account.api, account.name)
        if now.fence == account.fence:
            self.write(now, leased=0.0)

    def keep(self, account, token, left_s, begun, refused):
        if self.away:
            self.away -= 1
            raise DatabaseError("away")
        now = self.ready(account.api, account.name)
        if now.fence != account.fence and now.version != account.version:
            return False
        prints = (*now.begun, begun) if begun else now.begun
        self.write(
            now, good=self.now + left_s, leased=0.0, token=token, version=now.version + 1, begun=prints,
            refused=refused, stopped_at=None, reason=None,
        )  # fmt: skip
        return True

    def stop(self, account, secret, reason):
        now = self.ready(account.api, account.name)
        if now.version != account.version or secret in now.refused:
            return False
        stopped_at = datetime.fromtimestamp(self.now, UTC)
        self.write(now, leased=0.0, refused=(*now.refused, secret), stopped_at=stopped_at, reason=reason)
        self.events.append(account.title)
        return True

    def go_on(self, account):
        self.write(account, stopped_at=None, reason=None)

    def write(self, account, *, good=None, leased=None, **changes):
        key = account.api, account.name
        old_good, old_leased = self.until.get(key, (0.0, 0.0))
        self.until[key] = (old_good if good is None else good, old_leased if leased is None else leased)
        self.rows[key] = replace(account, **changes)


class Server:
    """Gives tokens; a refresh token that was turned over serves for `grace_s` more."""

    def __init__(self, rows, grace_s=0.0, lifetime_s=1800.0):
        self.rows, self.grace_s, self.lifetime_s = rows, grace_s, lifetime_s
        self.refresh, self.replaced, self.access, self.granted = "refresh-0", {}, {}, 0

    def grant(self, refresh):
        since = self.replaced.get(refresh)
        if refresh is not None and refresh != self.refresh and not (
            since is not None and self.rows.now - since < self.grace_s
        ):  # fmt: skip
            raise InvalidCredentialsError("shop: the token server answered 400, invalid_grant", status=400)
        self.granted += 1
        access = f"access-{self.granted}"
        self.access[access] = self.rows.now + self.lifetime_s
        if refresh is None:
            return Grant(access, None, self.lifetime_s)
        self.replaced[self.refresh] = self.rows.now
        self.refresh = f"refresh-{self.granted}"
        return Grant(access, self.refresh, self.lifetime_s)


class Process(Keeper):
    """A keeper whose calls go to the server above; `before` and `after` may interfere with one."""

    def __init__(self, rows, server, secrets=None, keys=(KEY,)):
        secrets = {"ID": "id", "SECRET": "s3cret-value", "REFRESH": "refresh-0"} | (secrets or {})
        settings = SimpleNamespace(
            token_keys=keys, secret=secrets.__getitem__, inline_wait_s=2, call_timeout_s=30
        )
        super().__init__(settings, clock=lambda: rows.now, sleep=rows.sleep)
        self.server, self.before, self.after, self.asked = server, None, None, []

    def _ask(self, asked, auth, refresh):
        self.asked.append(refresh)
        if self.before is not None:
            self.before()
        grant = self.server.grant(refresh)
        if self.after is not None:
            self.after()
        return grant


@pytest.fixture
def rows(monkeypatch):
    made = Rows()
    monkeypatch.setattr(tokens, "accounts", made)
    return made


@pytest.fixture
def server(rows):
    return Server(rows)


class KilledError(BaseException):
    """As by kill -9: nothing is cleaned up."""


def kill(rows):
    """What `after` does to a process that dies: its lease stays."""

    def die():
        until = rows.until["shop", "default"]
        rows.unlock = lambda account: rows.until.update({("shop", "default"): until})
        raise KilledError

    return die


def test_one_token_for_all_until_it_is_used_up(rows, server):
    """Ten processes, one refresh; the next one a margin before the end, by the refresh token that came."""
    processes = [Process(rows, server) for _ in range(10)]
    assert {each.credential(SHOP, "").access for each in processes} == {"access-1"}
    rows.sleep(1800 - 61)
    assert {each.credential(SHOP, "").access for each in processes} == {"access-1"}
    rows.sleep(2)
    assert {each.credential(SHOP, "").access for each in processes} == {"access-2"}
    assert [refresh for each in processes for refresh in each.asked] == ["refresh-0", "refresh-1"]


def test_without_a_key_each_process_has_its_own(rows, server):
    """Nothing is stored; a refresh token would be lost, so there it is a mistake."""
    first, second = (Process(rows, server, keys=()) for _ in range(2))
    assert [first.credential(CLIENT, "").access for _ in range(3)] == ["access-1"] * 3
    rows.sleep(60)
    assert first.credential(CLIENT, "").access == "access-1"
    assert second.credential(CLIENT, "").access == "access-2"
    assert first.credential(CLIENT, "", refused=first.credential(CLIENT, "")).access == "access-3"
    assert not rows.rows
    with pytest.raises(ConfigurationError, match="shop: PENSTOCK_TOKEN_KEY is missing"):
        first.credential(SHOP, "")


def test_an_api_without_credentials_has_none(rows, server):
    """And nothing is looked up."""
    assert Process(rows, server).credential(Api("open", "https://open.example"), "") is None


def test_whose_account():
    """A subject that is the symbol makes an account of each; a host of its own has its own."""
    many = Api("mail", "https://mail.example", auth=GoogleServiceAccount("KEY", ["s"], subject="{symbol}"))
    one = Api("mail", "https://mail.example", auth=GoogleServiceAccount("KEY", ["s"], subject="a@x.example"))
    assert [real.name_of(each, "b@x.example") for each in (many, one, STATIC)] == [
        "b@x.example", "default", "default",
    ]  # fmt: skip
    many.account = "mcp"
    assert real.name_of(many, "b@x.example") == "mcp/b@x.example"
    assert (real.titled("mail", "default"), real.titled("mail", "b")) == ("mail", "mail/b")


def test_who_waits_waits_two_seconds(rows, server):
    """Then its unit goes back; the lease of a process that died ends, and another one refreshes."""
    server.grace_s = 1800
    dead, other = Process(rows, server), Process(rows, server)
    dead.after = kill(rows)
    with pytest.raises(KilledError):
        dead.credential(SHOP, "")
    began = rows.now
    with pytest.raises(TokenWait) as raised:
        other.credential(SHOP, "")
    assert 2 <= rows.now - began < 2.3
    assert raised.value.seconds == 2
    rows.sleep(35)
    assert other.credential(SHOP, "").access == "access-2"
    assert other.asked == ["refresh-0"]


def test_a_second_thread_waits_no_longer(rows, server):
    """The thread that refreshes may take as long as a call."""
    process = Process(rows, server)
    process._wait_s = 0.01
    begun, go_on = threading.Event(), threading.Event()
    process.before = lambda: (begun.set(), go_on.wait(10))
    thread = threading.Thread(target=process.credential, args=(SHOP, ""))
    thread.start()
    assert begun.wait(10)
    with pytest.raises(TokenWait, match="the token of shop"):
        process.credential(SHOP, "")
    go_on.set()
    thread.join(10)
    assert process.credential(SHOP, "").access == "access-1"


def test_without_grace_a_death_in_between_stops_the_account(rows, server):
    """Nothing else can be done; it is told once, and a new refresh token lets it go on."""
    dead, other, third = (Process(rows, server) for _ in range(3))
    dead.after = kill(rows)
    with pytest.raises(KilledError):
        dead.credential(SHOP, "")
    rows.sleep(36)
    with pytest.raises(InvalidCredentialsError):
        other.credential(SHOP, "")
    for each in (other, third, other):
        with pytest.raises(AccountStopped, match=r"shop is stopped.*invalid_grant.*accounts release shop"):
            each.credential(SHOP, "")
    assert rows.events == ["shop"]
    assert (other.asked, third.asked) == (["refresh-0"], [])
    server.refresh = "by-hand"
    new = Process(rows, server, {"REFRESH": "by-hand"})
    assert new.credential(SHOP, "").access == "access-2"
    with pytest.raises(
        AccountStopped, match="old ones"
    ):  # who has not heard of it makes no call, and tells nobody
        third.credential(SHOP, "")
    assert rows.events == ["shop"]


def test_a_lost_race_heals_itself(rows, server):
    """Its lease had ended, another one refreshed, and the server no longer takes what it sent."""
    slow, quick = Process(rows, server), Process(rows, server)

    def meanwhile():
        slow.before = None
        rows.sleep(36)
        quick.credential(SHOP, "")

    slow.before = meanwhile
    assert slow.credential(SHOP, "").access == "access-1"
    assert rows.events == []
    assert server.granted == 1


def test_who_was_slow_may_still_store(rows, server):
    """The other one was refused and stopped the account; what comes late is the only token there is."""
    slow, other = Process(rows, server), Process(rows, server)

    def meanwhile():
        slow.after = None
        rows.sleep(36)
        with pytest.raises(InvalidCredentialsError):
            other.credential(SHOP, "")

    slow.after = meanwhile
    assert slow.credential(SHOP, "").access == "access-1"
    assert other.credential(SHOP, "").access == "access-1"
    rows.sleep(1800)
    assert other.credential(SHOP, "").access == "access-2"


def test_who_asked_last_wins(rows, server):
    """In a grace both get tokens; those of the second are newer, whoever stores first."""
    server.grace_s = 1800
    slow, other = Process(rows, server), Process(rows, server)

    def meanwhile():
        slow.after = None
        rows.sleep(36)
        assert other.credential(SHOP, "").access == "access-2"

    slow.after = meanwhile
    assert slow.credential(SHOP, "").access == "access-2"
    rows.sleep(1800)
    assert slow.credential(SHOP, "").access == "access-3"
    assert slow.asked[-1] == "refresh-2"


def test_a_database_that_is_away_loses_no_refresh_token(rows, server):
    """It is stored by a later try, or by the next call, and before that nobody uses its access token."""
    process = Process(rows, server)
    rows.away = 3
    assert process.credential(SHOP, "").access == "access-1"
    rows.sleep(1800)
    rows.away = 5
    with pytest.raises(DatabaseError):
        process.credential(SHOP, "")
    assert process.credential(SHOP, "").access == "access-2"
    assert server.granted == 2


def test_a_server_that_is_away_leaves_the_lease(rows, server):
    """The next one need not wait for its end."""
    process, other = Process(rows, server), Process(rows, server)

    def late():
        raise ApiTimeoutError("late")

    process.before = late
    with pytest.raises(ApiTimeoutError):
        process.credential(SHOP, "")
    assert other.credential(SHOP, "").access == "access-1"


def test_a_refused_token_is_replaced_once(rows, server):
    """By whoever finds out first; the others take what it got."""
    processes = [Process(rows, server) for _ in range(3)]
    held = [each.credential(SHOP, "") for each in processes]
    newer = [each.credential(SHOP, "", refused=old) for each, old in zip(processes, held, strict=True)]
    assert {each.access for each in newer} == {"access-2"}
    assert server.granted == 2
    for each, credential in zip(processes, newer, strict=True):
        each.stop(SHOP, "", credential, "shop answered 401")
    assert rows.events == ["shop"]
    with pytest.raises(AccountStopped):
        processes[0].credential(SHOP, "")


def test_an_older_token_stops_nobody(rows, server):
    """A newer one is there, and it may be good."""
    process = Process(rows, server)
    old = process.credential(SHOP, "")
    process.credential(SHOP, "", refused=old)
    process.stop(SHOP, "", old, "shop answered 401")
    assert rows.events == []


def test_secrets_without_tokens(rows, server):
    """Others learn within two seconds that they were refused; new ones are tried."""
    first, second = Process(rows, server), Process(rows, server)
    assert second.credential(STATIC, "") == Credential(None, 0)
    first.stop(STATIC, "", first.credential(STATIC, ""), "desk answered 401")
    second.stop(STATIC, "", second.credential(STATIC, ""), "desk answered 401")
    assert rows.events == ["desk"]
    rows.sleep(2)
    with pytest.raises(AccountStopped, match="desk answered 401"):
        second.credential(STATIC, "")
    new = Process(rows, server, {"SECRET": "another-value"})
    assert new.credential(STATIC, "") == Credential(None, 0)
    with pytest.raises(AccountStopped, match="old ones"):
        second.credential(STATIC, "")
    assert rows.events == ["desk"]


def test_tokens_that_no_key_opens(rows, server):
    """Those that can be had again are; a refresh token cannot."""
    process = Process(rows, server)
    assert (process.credential(CLIENT, "").access, process.credential(SHOP, "").access) == (
        "access-1",
        "access-2",
    )
    other = Process(rows, server, keys=(new_key(),))
    assert other.credential(CLIENT, "").access == "access-3"
    with pytest.raises(ConfigurationError, match="shop: no key in PENSTOCK_TOKEN_KEY opens its tokens"):
        other.credential(SHOP, "")
    assert Process(rows, server, keys=(new_key(), KEY)).credential(SHOP, "").access == "access-2"
    server.refresh = "by-hand"
    other = Process(rows, server, {"REFRESH": "by-hand"}, keys=(new_key(),))
    assert other.credential(SHOP, "").access == "access-4"


def test_what_is_sealed():
    """It says nothing, opens for its account only, and shows nothing in a repr."""
    seal = Seal([KEY])
    text = seal.close("shop", Tokens("acc3ss", "r3fresh"))
    assert "acc3ss" not in text
    assert seal.open("shop", text) == Tokens("acc3ss", "r3fresh")
    for account, other in (("desk", seal), ("shop", Seal([new_key()]))):
        with pytest.raises(ConfigurationError) as raised:
            other.open(account, text)
        assert raised.value.__cause__ is None
    shown = repr(
        [
            Tokens("acc3ss", "r3fresh"),
            Credential("acc3ss", 1),
            Use("acc3ss"),
            Account("a", "b", token="acc3ss"),
        ]
    )
    assert "acc3ss" not in shown
    assert "r3fresh" not in shown


def test_fingerprint():
    """The same for the same secrets and salt only."""
    assert fingerprint("salt", "a", "b") == fingerprint("salt", "a", "b")
    assert len({fingerprint("salt", "a", "b"), fingerprint("salt", "ab"), fingerprint("tlas", "a", "b")}) == 3


class Patient(Server):
    """Takes a refresh token until one that it gave for it is used."""

    def __init__(self, rows, **kwargs):
        super().__init__(rows, **kwargs)
        self.given_for, self.over = {}, set()

    def grant(self, refresh):
        if refresh in self.over:
            raise InvalidCredentialsError("invalid_grant")
        self.over.add(self.given_for.get(refresh))
        self.refresh = refresh
        grant = super().grant(refresh)
        self.given_for[grant.refresh] = refresh
        return grant


class Fleet(RuleBasedStateMachine):
    """Processes that call, die, find the database away and come back, while time passes.

    The server turns its refresh token over each time, and takes the one before as long as nobody has used it.
    """

    @initialize()
    def begin(self):
        self.rows = Rows()
        self.old, tokens.accounts = tokens.accounts, self.rows
        self.server = Patient(self.rows, lifetime_s=600)
        self.processes = [Process(self.rows, self.server) for _ in range(3)]

    def teardown(self):
        if hasattr(self, "old"):
            tokens.accounts = self.old

    @rule(n=st.integers(0, 2))
    def call(self, n):
        try:
            credential = self.processes[n].credential(SHOP, "")
        except TokenWait:
            return
        assert self.server.access[credential.access] > self.rows.now
        stored = Seal([KEY]).open("shop", self.rows.rows["shop", "default"].token)
        assert stored.access in self.server.access
        assert stored.refresh != "refresh-0"

    @rule(n=st.integers(0, 2))
    def die(self, n):
        process = self.processes[n]
        process.after = kill(self.rows)
        try:
            process.credential(SHOP, "")
        except (KilledError, TokenWait):
            pass
        finally:
            vars(self.rows).pop("unlock", None)
        self.processes[n] = Process(self.rows, self.server)

    @rule(n=st.integers(0, 2), times=st.integers(1, 6))
    def find_the_database_away(self, n, times):
        self.rows.away = times
        try:
            self.processes[n].credential(SHOP, "")
        except (DatabaseError, TokenWait):
            pass
        finally:
            self.rows.away = 0

    @rule(n=st.integers(0, 2))
    def be_refused(self, n):
        process = self.processes[n]
        held = process._held.get(("shop", "default"))
        if held is None:
            return
        try:
            newer = process.credential(SHOP, "", refused=held.credential)
        except TokenWait:
            return
        assert newer.version > held.credential.version

    @rule(seconds=st.sampled_from([1, 3, 36, 300, 541]))
    def wait(self, seconds):
        self.rows.sleep(seconds)

    @invariant()
    def nobody_is_stopped(self):
        assert not getattr(self, "rows", Rows()).events


Fleet.TestCase.settings = settings(
    deadline=None, max_examples=60, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
TestFleet = Fleet.TestCase
