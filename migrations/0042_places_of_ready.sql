-- no-transaction
-- Who holds a place of a group, of what is ready. Built beside the work; if it was interrupted, `drop index crossover.ready_places`, then
-- migrate again.
create index concurrently ready_places on crossover.ready (grp, gated_for) where gated_for is not null;
