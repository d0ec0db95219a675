"""The ledger walks at random beside a model in plain Python, on both databases."""

import threading
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broll.errors import NoCredits
from broll.jobs import credits, keys
from broll.jobs.tables import api_keys, entries, tenants
from tests.jobs.machines import PROFILES, Money, any_number, emptied


@pytest.mark.parametrize("profile", PROFILES)
def test_whatever_happens_to_credits_the_books_agree(database, profile):
    run_state_machine_as_test(lambda: Ledger(database), settings=profile)


@dataclass
class Hold:
    tenant: str
    key: str | None
    amount: int


class Ledger(RuleBasedStateMachine):
    """Grants, holds and settlements, some of them at the same moment."""

    def __init__(self, database):
        super().__init__()
        emptied(database)
        self.database = database
        self.open: dict[str, Hold] = {}
        self.over: dict[str, tuple[Hold, int]] = {}
        self.money, self.caps, self.revenue, self.count = {}, {}, 0, 0
        with database.write() as c:
            for name, cap in (("one", None), ("two", 50)):
                tenant = keys.create_tenant(c, name)
                key, _ = keys.create_key(c, b"pepper", tenant, "key", cap=cap)
                self.money[tenant], self.caps[key] = Money(0, spent={key: 0}), cap

    def name(self):
        self.count += 1
        return f"job_{self.count}"

    def room(self, tenant, key):
        """Most that can be held now."""
        money, cap = self.money[tenant], self.caps.get(key)
        return money.available if cap is None else min(money.available, cap - money.spent[key])

    def took(self, name, hold):
        self.open[name] = hold
        money = self.money[hold.tenant]
        money.available -= hold.amount
        money.held += hold.amount
        if hold.key is not None:
            money.spent[hold.key] += hold.amount

    @rule(who=st.integers(0, 1), amount=st.integers(-60, 120).filter(bool))
    def grant(self, who, amount):
        tenant, money = list(self.money.items())[who]
        if money.available + amount < 0:
            with pytest.raises(NoCredits), self.database.write() as c:
                credits.grant(c, tenant, amount)
            return
        with self.database.write() as c:
            credits.grant(c, tenant, amount, "a gift")
        money.available += amount

    @rule(who=st.integers(0, 1), keyed=st.booleans(), amount=st.integers(0, 40))
    def hold(self, who, keyed, amount):
        tenant, money = list(self.money.items())[who]
        key = next(iter(money.spent)) if keyed else None
        name = self.name()
        if amount and amount > self.room(tenant, key):
            with pytest.raises(NoCredits), self.database.write() as c:
                credits.hold(c, tenant, key, name, amount)
            return
        with self.database.write() as c:
            credits.hold(c, tenant, key, name, amount)
        self.took(name, Hold(tenant, key, amount))

    @rule(who=st.integers(0, 1), amount=st.integers(1, 30), many=st.integers(2, 5))
    def many_hold_at_once(self, who, amount, many):
        """As many as there is room for, whatever the order."""
        tenant, money = list(self.money.items())[who]
        key = next(iter(money.spent))
        expected = min(many, self.room(tenant, key) // amount)
        done, refused = [], []

        def hold(name):
            try:
                with self.database.write() as c:
                    credits.hold(c, tenant, key, name, amount)
                done.append(name)
            except NoCredits:
                refused.append(name)

        threads = [threading.Thread(target=hold, args=(self.name(),)) for _ in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(done), len(refused)) == (expected, many - expected)
        for name in done:
            self.took(name, Hold(tenant, key, amount))

    @rule(number=any_number, share=st.floats(0, 1))
    @precondition(lambda self: self.open)
    def settle(self, number, share):
        name = list(self.open)[number % len(self.open)]
        hold = self.open.pop(name)
        charge = int(hold.amount * share)
        with self.database.write() as c:
            credits.settle(c, hold.tenant, hold.key, name, hold.amount, charge)
        money = self.money[hold.tenant]
        money.held -= hold.amount
        money.available += hold.amount - charge
        if hold.key is not None:
            money.spent[hold.key] -= hold.amount - charge
        self.revenue += charge
        self.over[name] = (hold, charge)

    @rule(number=any_number)
    @precondition(lambda self: any(hold.amount for hold, _ in self.over.values()))
    def nothing_is_held_or_settled_twice(self, number):
        names = [name for name, (hold, _) in self.over.items() if hold.amount]
        name = names[number % len(names)]
        hold, charge = self.over[name]
        with pytest.raises(sa.exc.IntegrityError), self.database.write() as c:
            credits.settle(c, hold.tenant, hold.key, name, hold.amount, charge)
        with pytest.raises((sa.exc.IntegrityError, NoCredits)), self.database.write() as c:
            credits.hold(c, hold.tenant, hold.key, name, hold.amount)

    @invariant()
    def the_books_agree(self):
        with self.database.read() as c:
            assert credits.drift(c) == 0
            for tenant, money in self.money.items():
                own = credits.balance(c, tenant)
                assert (own.available, own.held) == (money.available, money.held)
                assert own.available >= 0 and own.held >= 0
            rows = c.execute(sa.select(entries.c.transfer, entries.c.account, entries.c.amount)).all()
            spent = c.execute(sa.select(api_keys.c.id, api_keys.c.spent, api_keys.c.cap)).all()
            held = c.execute(sa.select(sa.func.sum(tenants.c.held))).scalar_one()
        transfers: dict[str, list[int]] = {}
        for row in rows:
            transfers.setdefault(row.transfer, []).append(row.amount)
        assert all(len(amounts) == 2 and sum(amounts) == 0 for amounts in transfers.values())
        assert sum(row.amount for row in rows if row.account == "revenue") == self.revenue
        assert held == sum(hold.amount for hold in self.open.values())
        for row in spent:
            assert row.spent == next(m.spent[row.id] for m in self.money.values() if row.id in m.spent)
            assert row.spent >= 0 and (row.cap is None or row.spent <= row.cap)
