"""
Fake APIs in the real wire formats that enforce their documented limits and misbehave when told to.

Start one with `python -m tests.upstream --port 0`, or from a test with `tests.upstream.client.Upstream`.
What they serve is computed by the pure functions of `tests.upstream.data`, so a test can say row by row
what a collector must have stored.
"""
