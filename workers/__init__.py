"""The processes: workers, beat, dashboard and command line."""
