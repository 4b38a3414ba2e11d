"""A budget of retries that a fleet shares, in Redis."""

import multiprocessing

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience.retry import RetryBudget
from resilience.store import RetrySpec
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore

steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 999, 400_000, 2_000_000]), st.sampled_from([0, 0, 1, 300_000, 9_000_000])
    ),
    max_size=30,
)


@given(steps)
@settings(suppress_health_check=list(HealthCheck), max_examples=40, deadline=None, database=None)
def test_both_stores_agree(each_redis_url, run):
    """The same questions at the same times get the same answers."""
    now = [1_700_000_000_000_000]
    spec = RetrySpec("a", f"budget-{id(run)}", 1_000_000, 3_000_000)
    stores = MemoryStore(now_us=lambda: now[0]), RedisStore(each_redis_url, now_us=lambda: now[0])
    stores[1]._command(("FLUSHALL",))
    for wait_us, earned_us in run:
        now[0] += wait_us
        ours, theirs = [store.retry(spec, earned_us) for store in stores]
        assert ours is theirs
    stores[1].close()


def _spend(url, calls, allowed):
    store = RedisStore(url)
    budget = RetryBudget(api="a", share=0.2, least_per_s=0.01, saved_s=1000, store=store)
    for _ in range(calls):
        budget.deposit()
        if budget.withdraw():
            with allowed.get_lock():
                allowed.value += 1
    store.close()


def test_one_budget_for_all_processes(each_redis_url):
    """Four processes in which everything fails: a fifth of the calls, and the ten that were saved."""
    context = multiprocessing.get_context("spawn")
    allowed = context.Value("i", 0)
    crowd = [context.Process(target=_spend, args=(each_redis_url, 100, allowed)) for _ in range(4)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join(60)
    assert [each.exitcode for each in crowd] == [0] * 4
    assert 88 <= allowed.value <= 91


def test_a_budget_ends_with_its_api(each_redis_url):
    """Its key lives for a day, in the slot of its API."""
    store = RedisStore(each_redis_url)
    RetryBudget(api="a", store=store).withdraw()
    assert store._command(("KEYS", "*")) == [b"penstock:{a}:retries:all"]
    assert 0 < store._command(("TTL", "penstock:{a}:retries:all")) <= 86_400
    store.close()
