"""Events of an imagined web shop for tests of models: made by chance, the same for the same seed,
and landed in raw tables as streams land them, late, twice and out of order."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from tarn.storage.lake import Lake
from tarn.storage.writer import write

Row = dict[str, Any]
START = datetime(2017, 12, 30, 20)
_TEXT, _WHOLE, _TIME, _REAL = pa.string(), pa.int64(), pa.timestamp("us"), pa.float64()
_MONEY = pa.decimal128(12, 2)
_LANDED = {"_partition": _TEXT, "_offset": _WHOLE, "_sent_at": _TIME}
_LOADED = {"_load_id": _TEXT, "_loaded_at": _TIME}
TABLES: Mapping[str, Mapping[str, pa.DataType]] = {
    "raw_web_shop.clicks": {
        "event_id": _TEXT,
        "visitor_id": _TEXT,
        "household_id": _WHOLE,
        "page__type": _TEXT,
        "page__product_id": _WHOLE,
        "page__department": _TEXT,
        "order_id": _WHOLE,
        "referrer": _TEXT,
        "device": _TEXT,
        "occurred_at": _TIME,
    },
    "raw_web_shop.orders": {
        "event_id": _TEXT,
        "order_id": _WHOLE,
        "household_id": _WHOLE,
        "store_id": _WHOLE,
        "event_type": _TEXT,
        "amount": _MONEY,
        "item_count": _WHOLE,
        "promised_at": _TIME,
        "delivery__latitude": _REAL,
        "delivery__longitude": _REAL,
        "van_id": _TEXT,
        "occurred_at": _TIME,
    },
    "raw_payments.payments": {
        "payment_id": _TEXT,
        "order_id": _WHOLE,
        "household_id": _WHOLE,
        "amount": _MONEY,
        "currency": _TEXT,
        "method": _TEXT,
        "status": _TEXT,
        "reason": _TEXT,
        "place__latitude": _REAL,
        "place__longitude": _REAL,
        "occurred_at": _TIME,
    },
    "raw_sign_ups.sign_ups": {
        "sign_up_id": _TEXT,
        "household_id": _WHOLE,
        "email": _TEXT,
        "city": _TEXT,
        "channel": _TEXT,
        "occurred_at": _TIME,
    },
    "raw_vans.positions": {
        "van_id": _TEXT,
        "sequence": _WHOLE,
        "latitude": _REAL,
        "longitude": _REAL,
        "speed_kmh": _REAL,
        "heading": _WHOLE,
        "order_id": _WHOLE,
        "occurred_at": _TIME,
    },
}
"""Columns of each raw table that come with the message."""


@dataclass
class Shop:
    """What a shop of that seed sends."""

    seed: int
    visitors: int = 12
    orders: int = 40
    hours: float = 9
    start: datetime = START
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def events(self) -> list[tuple[str, Row]]:
        """Events with their tables, by when they happened."""
        made = [*self._clicks(), *self._orders(), *self._sign_ups()]
        return sorted(made, key=lambda event: event[1]["occurred_at"])

    def arrivals(self, late: float = 0.1, twice: float = 0.05) -> list[tuple[str, Row]]:
        """The events in the order they come: some late, some again."""
        chance, coming = self._chance, []
        for table, row in self.events():
            times = 2 if chance.random() < twice else 1
            for _ in range(times):
                delay = chance.expovariate(1 / 3600) if chance.random() < late else chance.random()
                coming.append((row["occurred_at"] + timedelta(seconds=delay), table, row))
        return [(table, row) for _, table, row in sorted(coming, key=lambda event: event[0])]

    def _moment(self) -> datetime:
        return self.start + timedelta(
            milliseconds=round(self.hours * 3.6e6 * self._chance.random())
        )

    def _clicks(self) -> Iterator[tuple[str, Row]]:
        chance, number = self._chance, 0
        for visitor in range(self.visitors):
            moment = self._moment()
            for _ in range(chance.randint(1, 60)):
                number += 1
                page = chance.choice(["home", "department", "product", "basket", "checkout"])
                yield (
                    "raw_web_shop.clicks",
                    {
                        "event_id": f"c{self.seed}-{chance.getrandbits(32):08x}-{number}",
                        "visitor_id": f"v{self.seed}-{visitor}",
                        "household_id": chance.choice([None, visitor]),
                        "page__type": page,
                        "page__product_id": chance.randint(1, 9) if page == "product" else None,
                        "device": chance.choice(["phone", "desktop"]),
                        "referrer": chance.choice([None, "search"]),
                        "occurred_at": moment,
                    },
                )
                # At times in the same moment, and at times exactly half an hour later.
                gap = chance.choice([0, 9, 600, 1200, 1799.999, 1800, 1800.001, 4000])
                moment += timedelta(seconds=gap)

    def _orders(self) -> Iterator[tuple[str, Row]]:
        chance = self._chance
        for number in range(self.orders):
            order_id, placed_at = self.seed * 10_000 + number, self._moment()
            household, amount = chance.randint(1, 8), Decimal(chance.randint(500, 20_000)) / 100
            order = {
                "order_id": order_id,
                "household_id": household,
                "store_id": 300 + household % 3,
                "amount": amount,
                "item_count": chance.randint(1, 40),
                "promised_at": placed_at + timedelta(hours=3),
                "delivery__latitude": 40 + household / 100,
                "delivery__longitude": -74.0,
            }
            yield from self._paid(order, placed_at)
            steps = ["placed", "picked", "dispatched", "delivered"]
            steps = ["placed", "cancelled"] if chance.random() < 0.1 else steps
            steps = steps[: chance.choice([1, 2, 3, 4, 4, 4])]
            moment, van = placed_at, f"van-{number % 4}"
            for step in steps:
                yield (
                    "raw_web_shop.orders",
                    {
                        **order,
                        "event_id": f"o{order_id}-{step}",
                        "event_type": step,
                        "van_id": van if step in ("dispatched", "delivered") else None,
                        "occurred_at": moment,
                    },
                )
                if step == "dispatched":
                    yield from self._driven(order_id, van, moment)
                moment += timedelta(minutes=chance.choice([0, 30, 50, 70]))

    def _paid(self, order: Row, moment: datetime) -> Iterator[tuple[str, Row]]:
        chance = self._chance
        for attempt in range(chance.choice([1, 1, 2])):
            payment = {
                "payment_id": f"p{order['order_id']}-{attempt}",
                "order_id": order["order_id"],
                "household_id": order["household_id"],
                "amount": order["amount"],
                "currency": "USD",
                "method": chance.choice(["card", "wallet"]),
                "place__latitude": order["delivery__latitude"],
                "place__longitude": order["delivery__longitude"],
            }
            for status in chance.choice([["authorized"], ["declined"], ["authorized", "refunded"]]):
                reason = None if status == "authorized" else "of its own"
                told = {"status": status, "reason": reason, "occurred_at": moment}
                yield "raw_payments.payments", {**payment, **told}
                moment += timedelta(minutes=chance.choice([0, 1, 300]))

    def _driven(self, order_id: int, van: str, moment: datetime) -> Iterator[tuple[str, Row]]:
        for leg in range(self._chance.randint(0, 12)):
            yield (
                "raw_vans.positions",
                {
                    "van_id": van,
                    "sequence": order_id * 100 + leg,
                    "latitude": 40 + self._chance.random() / 10,
                    "longitude": -74 + self._chance.random() / 10,
                    "speed_kmh": 40.0,
                    "heading": self._chance.randint(0, 359),
                    "order_id": order_id if leg < 9 else None,
                    "occurred_at": moment + timedelta(seconds=10 * leg),
                },
            )

    def _sign_ups(self) -> Iterator[tuple[str, Row]]:
        for number in range(self.visitors):
            yield (
                "raw_sign_ups.sign_ups",
                {
                    "sign_up_id": f"s{self.seed}-{number}",
                    "household_id": number if number % 3 else None,
                    "email": f"Someone{number}@example.com",
                    "city": " Troy ",
                    "channel": "search",
                    "occurred_at": self._moment(),
                },
            )


def land(lake: Lake, arrivals: Sequence[tuple[str, Row]], loaded_at: datetime) -> None:
    """Append the messages to their raw tables, each table in one commit. Tables without a
    message are made if they are missing."""
    for name, columns in TABLES.items():
        rows = [row for table, row in arrivals if table == name]
        if not rows and lake.table(name) is not None:
            continue
        schema = pa.schema({**columns, **_LANDED, **_LOADED})
        landed = {"_partition": f"{name}-0", "_load_id": "load", "_loaded_at": loaded_at}
        stamped = [
            {**row, **landed, "_offset": offset, "_sent_at": row["occurred_at"]}
            for offset, row in enumerate(rows)
        ]
        write(lake, name, pa.Table.from_pylist(stamped, schema), mode="append")
