"""A collector as a class; the test says what its server answers."""

from tasks.base import BaseCollector


class Ticker(BaseCollector):
    key = ("id",)

    def _validate_config(self):
        if not self.api_key:
            raise ValueError("api_key is missing")

    def collect_data(self):
        found = self._make_request("/prices", params={"of": self.config["symbol"]})
        self.store(found["rows"])
        return {
            "success": not found.get("error"),
            "data_points": len(found["rows"]),
            "errors": [found.get("error")],
        }

    def backfill_historical(self, start_time, end_time, **kwargs):
        days = (end_time - start_time).total_seconds() / 86400
        return self._make_request(
            "/past", params={"from": start_time.day, "days": days, **kwargs}, method="POST"
        )


ticker = Ticker(
    collector_name="ticker",
    api_url="http://127.0.0.1:1",
    api_key="TICKER_KEY",
    config={"symbol": "BTC", "collection_interval": 30, "max_retries": 1, "retry_delay": 0.01},
)
