"""What the collectors of more APIs need: their rows, and what is known of accounts, symbols and bad rows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tasks.models import ExactDecimal, Id, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("units", sa.Column("tier", sa.String(length=50), nullable=True))
    op.create_table(
        "glassnode_metrics",
        sa.Column("metric", sa.String(length=100), nullable=False),
        sa.Column("asset", sa.String(length=20), nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("value", ExactDecimal(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "asset", "at", name=op.f("pk_glassnode_metrics")),
    )
    op.create_table(
        "lunarcrush_coins",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("price", ExactDecimal(), nullable=True),
        sa.Column("market_cap", ExactDecimal(), nullable=True),
        sa.Column("galaxy_score", ExactDecimal(), nullable=True),
        sa.Column("alt_rank", ExactDecimal(), nullable=True),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lunarcrush_coins")),
    )
    op.create_table(
        "lunarcrush_hours",
        sa.Column("coin", sa.String(length=60), nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("open", ExactDecimal(), nullable=True),
        sa.Column("high", ExactDecimal(), nullable=True),
        sa.Column("low", ExactDecimal(), nullable=True),
        sa.Column("close", ExactDecimal(), nullable=True),
        sa.Column("volume_24h", ExactDecimal(), nullable=True),
        sa.Column("market_cap", ExactDecimal(), nullable=True),
        sa.Column("interactions", ExactDecimal(), nullable=True),
        sa.Column("contributors_active", ExactDecimal(), nullable=True),
        sa.Column("posts_active", ExactDecimal(), nullable=True),
        sa.Column("sentiment", ExactDecimal(), nullable=True),
        sa.Column("social_dominance", ExactDecimal(), nullable=True),
        sa.Column("galaxy_score", ExactDecimal(), nullable=True),
        sa.Column("alt_rank", ExactDecimal(), nullable=True),
        sa.PrimaryKeyConstraint("coin", "at", name=op.f("pk_lunarcrush_hours")),
    )
    op.create_table(
        "moralis_prices",
        sa.Column("chain", sa.String(length=20), nullable=False),
        sa.Column("token", sa.String(length=50), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("usd", ExactDecimal(), nullable=False),
        sa.Column("native", sa.String(length=80), nullable=True),
        sa.Column("exchange", sa.Text(), nullable=True),
        sa.Column("liquidity_usd", ExactDecimal(), nullable=True),
        sa.PrimaryKeyConstraint("chain", "token", "block", name=op.f("pk_moralis_prices")),
    )
    op.create_table(
        "moralis_transfers",
        sa.Column("chain", sa.String(length=20), nullable=False),
        sa.Column("transaction_hash", sa.String(length=100), nullable=False),
        sa.Column("log_index", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=50), nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("sender", sa.String(length=50), nullable=False),
        sa.Column("receiver", sa.String(length=50), nullable=False),
        sa.Column("value", sa.String(length=80), nullable=False),
        sa.Column("decimals", sa.Integer(), nullable=True),
        sa.Column("possible_spam", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "transaction_hash", "log_index", name=op.f("pk_moralis_transfers")),
    )
    op.create_table(
        "x_posts",
        sa.Column("found_by", sa.String(length=200), nullable=False),
        sa.Column("id", sa.String(length=30), nullable=False),
        sa.Column("author", sa.String(length=30), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("lang", sa.String(length=20), nullable=True),
        sa.Column("likes", sa.BigInteger(), nullable=False),
        sa.Column("reposts", sa.BigInteger(), nullable=False),
        sa.Column("replies", sa.BigInteger(), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("found_by", "id", name=op.f("pk_x_posts")),
    )
    op.create_table(
        "asana_projects",
        sa.Column("gid", sa.String(length=50), nullable=False),
        sa.Column("workspace", sa.String(length=50), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("owner", sa.String(length=50), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("modified_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("due_on", sa.Date(), nullable=True),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("gid", name=op.f("pk_asana_projects")),
    )
    op.create_table(
        "calendar_events",
        sa.Column("calendar", sa.String(length=200), nullable=False),
        sa.Column("id", sa.String(length=1024), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("organizer", sa.Text(), nullable=True),
        sa.Column("start_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("end_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("start_on", sa.Date(), nullable=True),
        sa.Column("end_on", sa.Date(), nullable=True),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("calendar", "id", name=op.f("pk_calendar_events")),
    )
    op.create_table(
        "gmail_messages",
        sa.Column("mailbox", sa.String(length=200), nullable=False),
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("thread", sa.String(length=50), nullable=False),
        sa.Column("received_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("sender", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("snippet", sa.Text(), nullable=False),
        sa.Column(
            "labels",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("mailbox", "id", name=op.f("pk_gmail_messages")),
    )
    op.create_table(
        "greenlake_devices",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("serial", sa.String(length=100), nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_greenlake_devices")),
    )
    op.create_table(
        "greenlake_subscriptions",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("sku", sa.String(length=100), nullable=True),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("available", sa.BigInteger(), nullable=True),
        sa.Column("starts_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("ends_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_greenlake_subscriptions")),
    )
    op.create_table(
        "reddit_posts",
        sa.Column("id", sa.String(length=20), nullable=False),
        sa.Column("subreddit", sa.String(length=50), nullable=False),
        sa.Column("author", sa.String(length=50), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("score", sa.BigInteger(), nullable=False),
        sa.Column("comments", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reddit_posts")),
    )
    op.create_table(
        "xero_contacts",
        sa.Column("tenant", sa.String(length=50), nullable=False),
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("is_customer", sa.Boolean(), nullable=False),
        sa.Column("is_supplier", sa.Boolean(), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name=op.f("pk_xero_contacts")),
    )
    op.create_table(
        "xero_invoices",
        sa.Column("tenant", sa.String(length=50), nullable=False),
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("number", sa.Text(), nullable=True),
        sa.Column("type", sa.String(length=20), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("contact", sa.String(length=50), nullable=False),
        sa.Column("invoiced_on", sa.Date(), nullable=True),
        sa.Column("due_on", sa.Date(), nullable=True),
        sa.Column("currency", sa.String(length=10), nullable=False),
        sa.Column("total", ExactDecimal(), nullable=False),
        sa.Column("amount_due", ExactDecimal(), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name=op.f("pk_xero_invoices")),
    )
    op.add_column("units", sa.Column("bad_rows", sa.Integer(), server_default="0", nullable=False))
    op.add_column("results", sa.Column("bad_rows", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "bad_rows",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        sa.Column("symbol", sa.String(length=200), nullable=False),
        sa.Column("run", Id, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.Column("seen_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_bad_rows")),
    )
    op.create_index("ix_bad_rows_endpoint", "bad_rows", ["endpoint", "seen_at"])
    op.create_table(
        "symbol_lists",
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        sa.Column("found_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("tried_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("endpoint", name=op.f("pk_symbol_lists")),
    )
    op.create_table(
        "symbols",
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        sa.Column("symbol", sa.String(length=200), nullable=False),
        sa.Column("added_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("removed_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("endpoint", "symbol", name=op.f("pk_symbols")),
    )
    op.create_table(
        "fields",
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("normal_types", sa.Text(), nullable=True),
        sa.Column("always", sa.Boolean(), nullable=False),
        sa.Column("first_seen_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("missing_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("endpoint", "name", name=op.f("pk_fields")),
    )
    op.create_table(
        "zoho_accounts",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(length=50), nullable=False),
        sa.Column("industry", sa.Text(), nullable=True),
        sa.Column("phone", sa.Text(), nullable=True),
        sa.Column("website", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("modified_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "data",
            sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_zoho_accounts")),
    )
    op.add_column("accounts", sa.Column("version", sa.Integer(), server_default="0", nullable=False))
    op.add_column("accounts", sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True))
    op.add_column("accounts", sa.Column("salt", sa.String(length=32), server_default="", nullable=False))
    for name in ("begun", "refused"):
        kind = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
        op.add_column("accounts", sa.Column(name, kind, server_default="[]", nullable=False))
    op.add_column("accounts", sa.Column("stopped_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column("accounts", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column("units", sa.Column("vanished", sa.Integer(), server_default="0", nullable=False))
    op.add_column("results", sa.Column("vanished", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "validators",
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        sa.Column("symbol", sa.String(length=200), nullable=False),
        sa.Column("asked", sa.String(length=64), nullable=False),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("modified", sa.Text(), nullable=True),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "symbol", name=op.f("pk_validators")),
    )
    op.drop_index("ix_units_due", "units")
    op.create_index("ix_units_due", "units", ["run", "state", "endpoint", "n"])
    op.create_index(
        "ix_units_reserved",
        "units",
        ["state", "not_before"],
        sqlite_where=sa.text("ticket IS NOT NULL"),
        postgresql_where=sa.text("ticket IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_units_reserved", "units")
    op.drop_index("ix_units_due", "units")
    op.create_index("ix_units_due", "units", ["run", "state", "not_before"])
    op.drop_table("validators")
    op.drop_column("results", "vanished")
    op.drop_column("units", "vanished")
    op.drop_table("zoho_accounts")
    op.drop_table("fields")
    op.drop_table("symbols")
    op.drop_table("symbol_lists")
    for name in ("reason", "stopped_at", "refused", "begun", "salt", "leased_until", "version"):
        op.drop_column("accounts", name)
    op.drop_table("bad_rows")
    op.drop_column("results", "bad_rows")
    op.drop_column("units", "bad_rows")
    op.drop_table("xero_invoices")
    op.drop_table("xero_contacts")
    op.drop_table("reddit_posts")
    op.drop_table("greenlake_subscriptions")
    op.drop_table("greenlake_devices")
    op.drop_table("gmail_messages")
    op.drop_table("calendar_events")
    op.drop_table("asana_projects")
    op.drop_table("x_posts")
    op.drop_table("moralis_transfers")
    op.drop_table("moralis_prices")
    op.drop_table("lunarcrush_hours")
    op.drop_table("lunarcrush_coins")
    op.drop_table("glassnode_metrics")
    op.drop_column("units", "tier")
