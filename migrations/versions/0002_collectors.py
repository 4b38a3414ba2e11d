"""What the collectors of more APIs need: their rows, and what is known of accounts, symbols and bad rows."""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
