"""How the state in Redis is kept: each circuit, gate, window and bucket is one packed string.

Reading a hash, writing it and setting its end are three commands of a dozen words, and every number becomes
text and a number again; a packed string is one command each way. Every field is a double, whole up to 2**53.
The first byte is `LAYOUT`: raise it whenever fields change. State of another layout counts as missing, and so
does what was known of an API (`keys.since`, `keys.restored`): all goes on as with a Redis that was emptied.
"""

import struct

LAYOUT = 1


class Layout:
    """Named fields in their order; after them a `tail` of bytes, which is a string to Lua.

    `lua` defines `load_NAME(key)`, which makes a table of the fields with `key`, and `missing` where nothing
    is kept, and `save_NAME(table, ttl_ms)`, which without a time keeps the end that was set before.
    """

    def __init__(self, name: str, fields: str, *, tail: tuple[str, int] = ("", 0), **first: float) -> None:
        self.name, self.fields = name, tuple(fields.split())
        self._tail, size = tail
        self._struct = struct.Struct(f"<B{'d' * len(self.fields)}")
        self._first = self._struct.pack(LAYOUT, *(first.get(each, 0) for each in self.fields)) + bytes(size)

    def read(self, packed: bytes | None) -> dict[str, float]:
        """The fields, as they are where nothing is kept."""
        known = packed if packed and packed[0] == LAYOUT else self._first
        return dict(zip(self.fields, self._struct.unpack_from(known)[1:], strict=True))

    def at(self, field: str) -> int:
        """How many bytes come before the field."""
        return 1 + 8 * self.fields.index(field)

    @property
    def end(self) -> int:
        """How many bytes come before the tail."""
        return self._struct.size

    @property
    def lua(self) -> str:
        """The definitions for a script."""
        first = "".join(f"\\{byte:03d}" for byte in self._first)
        made = ", ".join(f"{each} = {each}" for each in self.fields)
        kept = ", ".join(f"t.{each}" for each in self.fields)
        tail = f", {self._tail} = string.sub(raw, {self.end + 1})" if self._tail else ""
        and_tail = f" .. t.{self._tail}" if self._tail else ""
        form, fields = self._struct.format, ", ".join(self.fields)
        return f"""
local function load_{self.name}(key)
  local raw = fetch(key)
  local missing, raw = not raw, raw or "{first}"
  local _, {fields} = struct.unpack("{form}", raw)
  return {{key = key, missing = missing, {made}{tail}}}
end

local function save_{self.name}(t, ttl_ms)
  save(t.key, struct.pack("{form}", {LAYOUT}, {kept}){and_tail}, ttl_ms)
end
"""


# plain_admit.lua and plain_settle.lua read the first fields of a circuit and a bucket, and write in place.
# That leaves the end of the whole as it is, which is set anew when it was set (`kept`) long ago. The ring is
# ten slices of a circuit's window: tick, calls, failures, slow; `succeeded` counts what it holds no more.
CIRCUIT = Layout(
    "circuit",
    "state known era till closed failures throttles kept "
    "open good bad quiet succeeded failed opens recovered relapsed open_time opened failed_at changed",
    tail=("ring", 10 * 4 * 8),
)
GATE = Layout("gate", "closed till strikes banned bans violations")
WINDOW = Layout("window", "begin used written live calls")
# A bucket, then its pace (pace.lua).
BUCKET = Layout(
    "bucket",
    "booked started live calls kept backfill gate waited "
    "factor cut spread spread_end cut_at step violations adjustments least greatest",
    factor=1,
)
