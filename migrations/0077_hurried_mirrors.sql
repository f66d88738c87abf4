-- no-transaction
-- What people have changed is told to Temporal first. Built beside the work; if it was interrupted,
-- `drop index crossover.schedule_mirrors_hurried`, then migrate again.
create index concurrently schedule_mirrors_hurried on crossover.schedule_mirrors (due_at) where hurried;
