"""A collector as a user writes one: river levels from a Datasette that nobody here wrote."""

from tasks.collectors import Api, Limit, Token

STATIONS = ["Aare", "Inn", "Limmat/Zürich", "Rhône, Gletsch"]

gauges = Api("gauges", "http://127.0.0.1:8001", limits=[Limit("6000/1m"), Limit("3 at once")])


@gauges.endpoint(
    "/rivers/levels.json",
    symbols=STATIONS,
    params={"station": "{symbol}", "_shape": "objects", "_sort": "day"},
    page=Token(param="_next", at="next", size_param="_size", size=100),
    rows="rows",
    key=("station", "day"),
    every="1h",
)
def levels(row, unit):
    return {"station": row["station"], "day": row["day"], "level_mm": row["level_mm"], "note": row["note"]}
