"""The tables that the shipped collectors fill, one for each kind of row.

`source`, where a table has it, is the collector: the store fills it. A declaration without a table fills
`records` instead.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from tasks.models import ExactDecimal, Json, UtcDateTime, metadata

ohlcv = Table(
    "ohlcv",
    metadata,
    Column("source", String(100), nullable=False),
    Column("symbol", String(50), nullable=False),
    Column("interval", String(10), nullable=False),
    Column("open_time", UtcDateTime, nullable=False),
    Column("open", ExactDecimal, nullable=False),
    Column("high", ExactDecimal, nullable=False),
    Column("low", ExactDecimal, nullable=False),
    Column("close", ExactDecimal, nullable=False),
    Column("volume", ExactDecimal, nullable=False),
    Column("trades", Integer),
    PrimaryKeyConstraint("source", "symbol", "interval", "open_time"),
)

asana_projects = Table(
    "asana_projects",
    metadata,
    Column("gid", String(50), primary_key=True),
    Column("workspace", String(50), nullable=False),
    Column("name", Text, nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("owner", String(50)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("modified_at", UtcDateTime, nullable=False),
    Column("due_on", Date),
    Column("data", Json, nullable=False),
)

asana_tasks = Table(
    "asana_tasks",
    metadata,
    Column("gid", String(50), nullable=False),
    Column("project", String(50), nullable=False),
    Column("name", Text, nullable=False),
    Column("completed", Boolean, nullable=False),
    Column("assignee", String(50)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("modified_at", UtcDateTime, nullable=False),
    Column("due_on", Date),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("project", "gid"),  # a task may stand in several projects
)

calendar_events = Table(
    "calendar_events",
    metadata,
    Column("calendar", String(200), nullable=False),
    Column("id", String(1024), nullable=False),
    Column("status", String(20), nullable=False),  # confirmed | tentative | cancelled
    Column("summary", Text),
    Column("organizer", Text),
    Column("start_at", UtcDateTime),
    Column("end_at", UtcDateTime),
    Column("start_on", Date),  # of an event that lasts whole days
    Column("end_on", Date),  # the day after the last
    Column("updated_at", UtcDateTime),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("calendar", "id"),
)

gmail_messages = Table(
    "gmail_messages",
    metadata,
    Column("mailbox", String(200), nullable=False),
    Column("id", String(50), nullable=False),
    Column("thread", String(50), nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("sender", Text),
    Column("subject", Text),
    Column("snippet", Text, nullable=False),
    Column("labels", Json, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes, as Google estimates them
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("mailbox", "id"),
)

glassnode_metrics = Table(
    "glassnode_metrics",
    metadata,
    Column("metric", String(100), nullable=False),  # market/price_usd_close
    Column("asset", String(20), nullable=False),
    Column("at", UtcDateTime, nullable=False),  # the day's beginning
    Column("value", ExactDecimal, nullable=False),
    PrimaryKeyConstraint("metric", "asset", "at"),
)

greenlake_devices = Table(
    "greenlake_devices",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("serial", String(100), nullable=False),
    Column("type", String(50), nullable=False),
    Column("model", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("data", Json, nullable=False),
)

greenlake_subscriptions = Table(
    "greenlake_subscriptions",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("key", String(100), nullable=False),
    Column("sku", String(100)),
    Column("quantity", BigInteger, nullable=False),
    Column("available", BigInteger),
    Column("starts_at", UtcDateTime),
    Column("ends_at", UtcDateTime),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("data", Json, nullable=False),
)

lunarcrush_coins = Table(
    "lunarcrush_coins",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("symbol", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("price", ExactDecimal),
    Column("market_cap", ExactDecimal),
    Column("galaxy_score", ExactDecimal),
    Column("alt_rank", ExactDecimal),
    Column("data", Json, nullable=False),
)

lunarcrush_hours = Table(
    "lunarcrush_hours",
    metadata,
    Column("coin", String(60), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("open", ExactDecimal),
    Column("high", ExactDecimal),
    Column("low", ExactDecimal),
    Column("close", ExactDecimal),
    Column("volume_24h", ExactDecimal),
    Column("market_cap", ExactDecimal),
    Column("interactions", ExactDecimal),
    Column("contributors_active", ExactDecimal),
    Column("posts_active", ExactDecimal),
    Column("sentiment", ExactDecimal),
    Column("social_dominance", ExactDecimal),
    Column("galaxy_score", ExactDecimal),
    Column("alt_rank", ExactDecimal),
    PrimaryKeyConstraint("coin", "at"),
)

moralis_prices = Table(
    "moralis_prices",
    metadata,
    Column("chain", String(20), nullable=False),
    Column("token", String(50), nullable=False),
    Column("block", BigInteger, nullable=False),
    Column("usd", ExactDecimal, nullable=False),
    Column("native", String(80)),  # in the smallest part of the chain's own coin, up to 78 digits
    Column("exchange", Text),
    Column("liquidity_usd", ExactDecimal),
    PrimaryKeyConstraint("chain", "token", "block"),
)

moralis_transfers = Table(
    "moralis_transfers",
    metadata,
    Column("chain", String(20), nullable=False),
    Column("transaction_hash", String(100), nullable=False),
    Column("log_index", Integer, nullable=False),
    Column("token", String(50), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("block", BigInteger, nullable=False),
    Column("sender", String(50), nullable=False),
    Column("receiver", String(50), nullable=False),
    Column("value", String(80), nullable=False),  # in the token's smallest part, up to 78 digits
    Column("decimals", Integer),
    Column("possible_spam", Boolean, nullable=False),
    PrimaryKeyConstraint("chain", "transaction_hash", "log_index"),
)

reddit_posts = Table(
    "reddit_posts",
    metadata,
    Column("id", String(20), primary_key=True),
    Column("subreddit", String(50), nullable=False),
    Column("author", String(50), nullable=False),
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("score", BigInteger, nullable=False),
    Column("comments", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("data", Json, nullable=False),
)

x_posts = Table(
    "x_posts",
    metadata,
    Column("found_by", String(200), nullable=False),  # the query, or the id of the user
    Column("id", String(30), nullable=False),
    Column("author", String(30), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("text", Text, nullable=False),
    Column("lang", String(20)),
    Column("likes", BigInteger, nullable=False),
    Column("reposts", BigInteger, nullable=False),
    Column("replies", BigInteger, nullable=False),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("found_by", "id"),
)

xero_contacts = Table(
    "xero_contacts",
    metadata,
    Column("tenant", String(50), nullable=False),
    Column("id", String(50), nullable=False),
    Column("name", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("email", Text),
    Column("is_customer", Boolean, nullable=False),
    Column("is_supplier", Boolean, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

xero_invoices = Table(
    "xero_invoices",
    metadata,
    Column("tenant", String(50), nullable=False),
    Column("id", String(50), nullable=False),
    Column("number", Text),
    Column("type", String(20), nullable=False),
    Column("status", String(20), nullable=False),
    Column("contact", String(50), nullable=False),
    Column("invoiced_on", Date),
    Column("due_on", Date),
    Column("currency", String(10), nullable=False),
    Column("total", ExactDecimal, nullable=False),
    Column("amount_due", ExactDecimal, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

zoho_accounts = Table(
    "zoho_accounts",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner", String(50), nullable=False),
    Column("industry", Text),
    Column("phone", Text),
    Column("website", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("modified_at", UtcDateTime, nullable=False),
    Column("data", Json, nullable=False),
)
