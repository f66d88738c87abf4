-- no-transaction
-- Which accounts and kinds have schedules is asked each minute. Built beside the work; if it was interrupted,
-- `drop index crossover.schedules_kind`, then migrate again.
create index concurrently schedules_kind on crossover.schedules (account, kind);
