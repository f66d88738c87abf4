-- no-transaction
-- The search for an account's interactions, newest first. A pin writes it when it is made and once more when it ends (which moves
-- it out of other indexes, so none of them is spared); docs/postgres.md says what that costs. Tasks have no such index: their
-- partitions and ids are in the order of their time.
--
-- Built beside the work. If it was interrupted, an invalid index is left and this migration says that it exists: `drop index
-- crossover.pins_of_account`, then migrate again.
create index concurrently pins_of_account on crossover.pins (account, created_at, id);
