-- no-transaction
-- What remote workers claim, by group. Built beside the work (`concurrently`), so it can't be part of a transaction. If it was interrupted,
-- an invalid index is left and this migration says that it exists: `drop index crossover.ready_remote`, then migrate again.
--
-- A claim asks for this very expression, because no other index has it in order: of two that seem equally good by statistics of yesterday
-- the primary key would be the one that reads what waits for all other groups.
create index concurrently ready_remote on crossover.ready (grp, (rank - 1000), seq) where rank > 500 and execute;
