-- no-transaction
-- Who holds a place of a group, of what runs. Built beside the work; if it was interrupted, `drop index crossover.running_places`, then
-- migrate again.
create index concurrently running_places on crossover.running (grp, gated_for) where gated_for is not null;
