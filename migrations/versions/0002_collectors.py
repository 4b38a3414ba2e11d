"""What the collectors of more APIs need: their rows, and what is known of accounts, symbols and bad rows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("units", sa.Column("tier", sa.String(length=50), nullable=True))


def downgrade() -> None:
    op.drop_column("units", "tier")
