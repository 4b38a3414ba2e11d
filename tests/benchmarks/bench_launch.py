"""P6: launching a wave, against Celery's own group and chord with the very same signatures."""

import tempfile
from pathlib import Path

import redis

from tests.benchmarks.measure import Result, configure, interleaved, seconds
from workers.embedded import EmbeddedRedis

QUEUE = "collect.pond"


def measure(quick):
    units, repetitions = (200, 3) if quick else (1000, 9)
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as server:
        configure(Path(folder), server.url)
        from celery import chord, group
        from celery.utils import uuid

        from tasks.launch import launch
        from tasks.runs import advance
        from tasks.units import collect
        from workers.celery import app

        app.loader.import_default_modules()
        client = redis.Redis.from_url(server.url)
        body = advance.s(run=1, wave=1)

        def timed(send):
            header = [
                collect.s(run=1, n=n, endpoint="pond.klines", symbol=f"SYM{n:05d}").set(queue=QUEUE)
                for n in range(units)
            ]
            taken = seconds(lambda: send(header))
            assert client.llen(QUEUE) == units, "messages went astray"
            client.delete(QUEUE)
            return units / taken

        found = interleaved(
            {
                "ours": lambda: timed(lambda header: launch(chord(header, body.clone(), task_id=uuid()))),
                "group": lambda: timed(lambda header: group(header).apply_async()),
                "chord": lambda: timed(lambda header: chord(header)(body.clone())),
            },
            repetitions + 1,
        )
        client.close()
        # Shared by the first ones: imports, connections, declarations.
        ours, plain, chorded = (found[name][1:] for name in ("ours", "group", "chord"))
    what = f"launching a wave of {units:,}"
    return [
        Result("P6", what, ours, plain, "group().apply_async", "units/s", at_least=5),
        Result("P6", what, ours, chorded, "chord()", "units/s"),
    ]
