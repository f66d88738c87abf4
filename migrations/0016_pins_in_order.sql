-- no-transaction
-- The comparator reads pins in the order in which they were made, some hundreds at a time. With a BRIN index each look
-- sorts everything that it has not read yet: a comparator that was away for a million pins caught up at 300 a second.
--
-- Built beside the work (`concurrently`), so it can't be part of a transaction. If it was interrupted, an invalid index
-- is left and this migration says that it exists: `drop index crossover.pins_in_order`, then migrate again.
create index concurrently pins_in_order on crossover.pins (created_at) where stage in ('shadow', 'live');
