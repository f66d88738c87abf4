-- no-transaction
-- Who holds a place of a group, of the tasks. Built beside the work; if it was interrupted, `drop index crossover.tasks_places`, then
-- migrate again. A claim changes none of its columns, so it stays one that writes no index.
create index concurrently tasks_places on crossover.tasks_ready (grp, account) where gated;
