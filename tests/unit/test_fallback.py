"""Which way is taken, when it is left, and how it comes back."""

import asyncio
import threading
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.circuits import Circuits
from resilience.errors import (
    AllTiersFailedError,
    ApiTimeoutError,
    BadPayloadError,
    CircuitOpenError,
    ConfigurationError,
    DatabaseError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    RetryExhaustedError,
    ServerError,
    Throttled,
    ValidationError,
)
from resilience.fallback import falls, try_or_default, with_fallback, with_timeout
from resilience.policy import BreakerPolicy
from resilience.store import CircuitState
from resilience.store.memory import MemoryStore
from resilience.tiers import Tiers

POLICY = BreakerPolicy(failures=2, open_for=timedelta(seconds=60))


class World:
    """Three tiers whose answers and whose clock a test decides; `say` is what each raises, None for an answer."""

    def __init__(self, asynchronous):
        self.now_us = 1_700_000_000_000_000
        self.called = []
        self.say = {"mcp": None, "sdk": None, "rest": None}
        self.circuits = Circuits(MemoryStore(now_us=lambda: self.now_us), policy=POLICY)
        self.asynchronous = asynchronous
        self.tiers = self.make()

    def make(self, **options):
        make = self.coroutine if self.asynchronous else self.function
        ways = {name: make(name) for name in self.say}
        clock = lambda: self.now_us / 1e6  # noqa: E731
        return Tiers("accounts", ways, api="zoho", circuits=self.circuits, clock=clock, **options)

    def function(self, name):
        def answer(gid):
            self.called.append(name)
            if self.say[name] is not None:
                raise self.say[name]
            return f"{name} {gid}"

        return answer

    def coroutine(self, name):
        answer = self.function(name)

        async def answer_later(gid):
            await asyncio.sleep(0)
            return answer(gid)

        return answer_later

    def call(self):
        self.called.clear()
        call = self.tiers.call("7") if not self.asynchronous else asyncio.run(self.tiers.call_async("7"))
        return call, list(self.called)

    def wait(self, seconds):
        self.now_us += int(seconds * 1e6)

    def state(self, tier):
        return self.circuits.get(f"accounts.{tier}", api="zoho").view.state


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def world(request):
    return World(request.param)


def test_the_best_tier_answers(world):
    """Nobody else is asked."""
    assert world.call() == ("mcp 7", ["mcp"])
    assert world.tiers.tier == "mcp"


def test_the_next_tier_where_one_fails(world):
    """One failure opens no circuit, so the better tier is asked again."""
    world.say["mcp"] = ServerError("away")
    assert world.call() == ("sdk 7", ["mcp", "sdk"])
    assert world.tiers.tier == "sdk"
    world.say["mcp"] = None
    assert world.call() == ("mcp 7", ["mcp"])


def test_a_tier_whose_circuit_is_open_is_left_alone(world):
    """And the one that works is stayed with."""
    world.say["mcp"] = ServerError("away")
    for _ in range(2):
        world.call()
    assert world.state("mcp") is CircuitState.OPEN
    for _ in range(3):
        assert world.call() == ("sdk 7", ["sdk"])


def test_the_way_back_up(world):
    """When the circuit is half-open a call probes; two that succeed close it."""
    world.say["mcp"] = ServerError("away")
    for _ in range(3):
        world.call()
    world.wait(61)
    assert world.call() == ("sdk 7", ["mcp", "sdk"])
    world.say["mcp"] = None
    world.wait(61)
    world.call()
    world.wait(61)
    assert [world.call() for _ in range(3)] == [("mcp 7", ["mcp"])] * 3
    assert world.state("mcp") is CircuitState.CLOSED
    assert world.tiers.tier == "mcp"


def test_a_circuit_closed_by_hand_is_noticed(world):
    """Not at once, but long before its time."""
    world.say["mcp"] = ServerError("away")
    for _ in range(3):
        world.call()
    world.say["mcp"] = None
    world.circuits.reset()
    assert world.call() == ("sdk 7", ["sdk"])
    world.wait(10)
    assert world.call() == ("mcp 7", ["mcp"])


def test_a_wait_the_server_named_is_kept(world):
    """A 429 says nothing about the next tier, and is not provoked again."""
    world.say["mcp"] = RateLimitError(retry_after_s=120)
    world.call()
    for seconds in (0, 60, 59):
        world.wait(seconds)
        assert world.call() == ("sdk 7", ["sdk"])
    world.say["mcp"] = None
    world.wait(2)
    assert world.call() == ("mcp 7", ["mcp"])


def test_all_tiers_fail(world):
    """Each says why; those that are away say what they said last."""
    world.say = {
        "mcp": RateLimitError("slow down", retry_after_s=60),
        "sdk": TimeoutError("late"),
        "rest": ServerError(),
    }
    world.say["rest"] = ServerError("broken")
    for called in (["mcp", "sdk", "rest"], ["sdk", "rest"]):
        with pytest.raises(
            AllTiersFailedError, match=r"accounts: every tier failed: mcp: RateLimitError: slow"
        ) as caught:
            world.call()
        assert world.called == called
        assert caught.value.errors == world.say
    with pytest.raises(AllTiersFailedError) as caught:
        world.call()
    assert [type(error) for error in caught.value.errors.values()] == [
        RateLimitError,
        CircuitOpenError,
        CircuitOpenError,
    ]


@pytest.mark.parametrize(
    "mistake", [TypeError("x"), KeyError("y"), NotFoundError("gone"), InvalidCredentialsError()]
)
def test_a_mistake_is_not_hidden(world, mistake):
    """However often it is made: no other tier answers for it, and no circuit opens."""
    world.say["mcp"] = mistake
    for _ in range(10):
        with pytest.raises(type(mistake)) as caught:
            world.call()
        assert caught.value is mistake
        assert world.called == ["mcp"]
    assert world.state("mcp") is CircuitState.CLOSED


@pytest.mark.parametrize("mistake", [KeyError("y"), TypeError("x")])
def test_a_mistake_is_no_success(world, mistake):
    """It neither closes a half-open circuit, nor makes failures forgotten, and keeps no permit."""
    circuit = world.circuits.get("accounts.mcp", api="zoho")
    circuit.record_failure(ServerError())
    circuit.half_open()
    before = circuit.view
    world.say["mcp"] = mistake
    for _ in range(5):
        with pytest.raises(type(mistake)):
            world.call()
    assert circuit.view == before
    circuit.close()
    circuit.record_failure(ServerError())
    with pytest.raises(type(mistake)) as caught:
        world.call()
    assert circuit.fail_counter == 1
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_another_rule(world):
    """`on` says which errors fall instead."""
    world.tiers = world.make(on=(KeyError, OSError))
    world.say["mcp"] = KeyError("y")
    assert world.call() == ("sdk 7", ["mcp", "sdk"])
    world.say["mcp"] = ServerError()
    with pytest.raises(ServerError):
        world.call()


def test_one_tier_is_none():
    """Nothing to fall back on."""
    with pytest.raises(ConfigurationError, match="1 tiers"):
        Tiers("accounts", {"rest": print})


def test_the_fleet_shares_the_circuits(world):
    """What one process has learnt, another need not pay for."""
    world.say["mcp"] = ServerError("away")
    for _ in range(2):
        world.call()
    world.tiers = world.make()
    assert world.call() == ("sdk 7", ["sdk"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["mcp", "sdk", "rest"]), st.booleans()),
            st.sampled_from([1, 30, 61, 300]),
            st.none(),
        ),
        max_size=60,
    )
)
def test_the_best_that_works_answers_and_all_come_back(steps):
    """Whatever goes down and up, and whenever; `None` is a call. In the end the best tier answers again."""
    world = World(asynchronous=False)
    for step in steps:
        match step:
            case None:
                check_a_call(world)
            case int():
                world.wait(step)
            case tier, works:
                world.say[tier] = None if works else ServerError(tier)
    world.say = dict.fromkeys(world.say)
    for _ in range(3):
        world.wait(3600)
        check_a_call(world)
    assert world.tiers.tier == "mcp"


def check_a_call(world):
    """A tier is passed over only where it fails, or where its circuit does not let a call through."""
    up = [tier for tier, error in world.say.items() if error is None]
    closed = [tier for tier in up if world.state(tier) is CircuitState.CLOSED]
    errors, answer = None, ""
    try:
        answer, _ = world.call()
    except AllTiersFailedError as failed:
        errors = failed.errors
    if errors is not None:
        assert list(errors) == list(world.say)
        assert all(isinstance(errors[tier], CircuitOpenError) for tier in up)
        assert not closed
        return
    tier = answer.split()[0]
    assert tier == world.called[-1] == world.tiers.tier
    assert tier in up
    assert not closed or list(world.say).index(tier) <= list(world.say).index(closed[0])


@pytest.mark.parametrize(
    ("error", "falling"),
    [
        (ServerError(), True),
        (RateLimitError(), True),
        (BadPayloadError(), True),
        (ApiTimeoutError(), True),
        (CircuitOpenError(), True),
        (Throttled(), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (AllTiersFailedError(), True),
        (RetryExhaustedError(cause=ServerError()), True),
        (RetryExhaustedError(cause=NotFoundError()), False),
        (NotFoundError(), False),
        (ValidationError(), False),
        (InvalidCredentialsError(), False),
        (DatabaseError(), False),
        (FileNotFoundError(), False),
        (TypeError(), False),
    ],
)
def test_which_errors_fall(error, falling):
    """What says something about a service, or that the call was refused."""
    assert falls(error) is falling


# decorators


def run(func, *args, **kwargs):
    """Whatever it is."""
    result = func(*args, **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def both(func):
    """A function, and the same as a coroutine function."""

    async def coroutine(*args, **kwargs):
        await asyncio.sleep(0)
        return func(*args, **kwargs)

    return pytest.mark.parametrize("func", [func, coroutine], ids=["sync", "async"])


def away(symbol):
    """A service that is away, except for one symbol; and a bug."""
    if symbol == "bug":
        raise TypeError(symbol)
    if symbol != "BTC":
        raise ServerError(f"no {symbol}")
    return 1


@both(away)
def test_with_fallback(func):
    """The function itself, then the others; a mistake is raised."""
    same_kind = asyncio.iscoroutinefunction(func)

    async def zero_later(_):
        return 0

    decorated = with_fallback(func, zero_later if same_kind else lambda _: 0)(func)
    assert run(decorated, "BTC") == 1
    assert run(decorated, "ETH") == 0
    with pytest.raises(TypeError):
        run(decorated, "bug")


@both(away)
def test_with_fallback_where_all_fail(func):
    """Each error is there under its function's name."""

    def second(symbol):
        raise TimeoutError(symbol)

    async def second_later(symbol):
        raise TimeoutError(symbol)

    other = second_later if asyncio.iscoroutinefunction(func) else second
    with pytest.raises(AllTiersFailedError, match="no ETH") as caught:
        run(with_fallback(other)(func), "ETH")
    assert [type(error) for error in caught.value.errors.values()] == [ServerError, TimeoutError]


@both(away)
def test_try_or_default(func):
    """For what falls; for everything where that is asked for."""
    decorated = try_or_default("none")(func)
    assert [run(decorated, "BTC"), run(decorated, "ETH")] == [1, "none"]
    with pytest.raises(TypeError):
        run(decorated, "bug")
    assert run(try_or_default(None, on=Exception)(func), "bug") is None


@both(away)
def test_with_timeout_in_time(func):
    """Results and errors as they are."""
    decorated = with_timeout(60)(func)
    assert run(decorated, "BTC") == 1
    with pytest.raises(ServerError):
        run(decorated, "ETH")


def test_with_timeout_too_late():
    """The caller goes on, though the thread does not end."""
    go = threading.Event()
    with pytest.raises(ApiTimeoutError, match=r"wait took longer than 0.01 s"):
        with_timeout(0.01)(go.wait)()
    assert with_timeout(0.01, default="late")(go.wait)() == "late"
    go.set()


def test_with_timeout_too_late_async():
    """The coroutine is cancelled."""
    ended = []

    async def wait_for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(ApiTimeoutError, match="took longer"):
        asyncio.run(with_timeout(0.01)(wait_for_ever)())
    assert asyncio.run(with_timeout(0.01, default=None)(wait_for_ever)()) is None
    assert ended == [True, True]


@both(lambda: away("ETH"))
def test_its_own_timeouts_are_its_own(func):
    """A TimeoutError that the function raises in time is no default."""

    def own():
        raise TimeoutError("the server's")

    async def own_later():
        raise TimeoutError("the server's")

    with pytest.raises(TimeoutError, match="the server's"):
        run(with_timeout(60, default=1)(own_later if asyncio.iscoroutinefunction(func) else own))


def test_no_time_at_all():
    """Would never succeed."""
    with pytest.raises(ConfigurationError, match="seconds is 0"):
        with_timeout(0)


def test_ways_of_one_name():
    """Two lambdas are two ways."""
    with pytest.raises(AllTiersFailedError) as caught:
        with_fallback(lambda: away("a"), lambda: away("b"))(lambda: away("c"))()
    assert sorted(str(error) for error in caught.value.errors.values()) == ["no a", "no b", "no c"]


def test_decorators_go_together_and_keep_names():
    """As in the examples."""

    @with_fallback(lambda _: "yesterday")
    @with_timeout(60)
    def price(symbol):
        """Of today."""
        return away(symbol)

    assert (price("BTC"), price("ETH")) == (1, "yesterday")
    assert (price.__name__, price.__doc__) == ("price", "Of today.")
